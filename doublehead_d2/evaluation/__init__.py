"""Evaluation: detectron2's evaluators, chosen by data set, and scoring one model several ways."""

from doublehead_d2.evaluation.build import build_evaluator
from doublehead_d2.evaluation.modes import (
    ModesEvaluator,
    configured_mode,
    find_heads,
    score_modes,
)

__all__ = [
    "ModesEvaluator",
    "build_evaluator",
    "configured_mode",
    "find_heads",
    "score_modes",
]
