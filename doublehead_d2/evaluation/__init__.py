"""Evaluation: detectron2's evaluators, chosen by data set."""

from doublehead_d2.evaluation.build import build_evaluator

__all__ = ["build_evaluator"]
