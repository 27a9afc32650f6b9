"""Evaluation: detectron2's evaluators, chosen by data set, and scoring one model several ways."""

from doublehead_d2.evaluation.build import build_coco_evaluator, build_evaluator
from doublehead_d2.evaluation.modes import (
    ModesEvaluator,
    all_modes,
    configured_mode,
    find_heads,
    score_modes,
)

__all__ = [
    "ModesEvaluator",
    "all_modes",
    "build_coco_evaluator",
    "build_evaluator",
    "configured_mode",
    "find_heads",
    "score_modes",
]
