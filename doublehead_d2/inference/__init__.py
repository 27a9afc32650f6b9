"""Config, weights and images in, detections out."""

from doublehead_d2.inference.predictor import Predictor
from doublehead_d2.inference.results import Result

__all__ = ["Predictor", "Result"]
