"""Config, weights and images in, detections out."""

from doublehead_d2.inference.predictor import Predictor

__all__ = ["Predictor"]
