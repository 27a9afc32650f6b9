"""Which hooks a training has, and in which order."""

import logging
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.utils import comm

from doublehead_d2.engine.best_checkpoint import NAME, BestCheckpoint
from doublehead_d2.engine.evaluation_hook import EvaluationHook
from doublehead_d2.engine.exact_resume import ExactResume
from doublehead_d2.engine.first_iterations import FirstIterations
from doublehead_d2.engine.freeze import FrozenNorms
from doublehead_d2.engine.stopping import StopWhenAsked
from doublehead_d2.engine.trained_config import TrainedConfigWriter
from doublehead_d2.engine.validation_loss import ValidationLoss, build_loss_loader

Hooks = list[HookBase | None]

logger = logging.getLogger(__name__)


def complete_hooks(trainer: Any, hooks: Hooks) -> Hooks:
    """Add to the hooks of `DefaultTrainer` those of this package.

    Args:
        trainer: the package's `Trainer`.
        hooks: what `DefaultTrainer.build_hooks` gave.

    Returns:
        those that write config and progress, and those that the config asks for.
    """
    cfg = trainer.cfg
    writers = [hook for hook in hooks if isinstance(hook, PeriodicWriter)]
    hooks = [hook for hook in hooks if hook not in writers]
    if cfg.TEST.BEST.METRIC or cfg.TEST.LOSS:
        # Evaluations are then neither left out nor repeated.
        evaluate = EvaluationHook(cfg.TEST.EVAL_PERIOD, trainer.test_at_iteration)
        hooks = [evaluate if isinstance(hook, EvalHook) else hook for hook in hooks]
    # Behind the checkpoints, before evaluations, which are not waited for
    first = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
    hooks.insert(first, StopWhenAsked(trainer.checkpointer, cfg.TEST.EVAL_PERIOD))
    hooks.insert(0, ExactResume(trainer._trainer.data_loader, seed=cfg.SEED))
    if cfg.MODEL.FREEZE:
        hooks.insert(0, FrozenNorms(trainer.model))
    if cfg.TEST.LOSS:
        loader = build_loss_loader(cfg)
        hooks.append(
            ValidationLoss(eval_period=cfg.TEST.EVAL_PERIOD, model=trainer.model, loader=loader)
        )
    best = _best_checkpoint(trainer)
    hooks.append(best)
    if cfg.TEST.AUG.ENABLED:  # only once: it costs many evaluations
        hooks.append(EvalHook(0, trainer.test_with_tta_at_end))
    if comm.is_main_process():
        # First, since an evaluation that fails or is interrupted keeps the others from running.
        hooks.insert(0, TrainedConfigWriter(cfg))
        if best is not None and cfg.TEST.BEST.IN_CONFIG:
            hooks.append(TrainedConfigWriter(cfg, lambda: _weights_for_config(best)))
        # Last, so that what others have put is written.
        hooks += writers
        hooks.append(FirstIterations(trainer.build_printer()))
    return hooks


def _best_checkpoint(trainer: Any) -> BestCheckpoint | None:
    best = trainer.cfg.TEST.BEST
    if not best.METRIC:
        return None
    return BestCheckpoint(
        eval_period=trainer.cfg.TEST.EVAL_PERIOD,
        checkpointer=trainer.checkpointer,
        metric=best.METRIC,
        mode=best.MODE,
        patience=best.PATIENCE,
        min_delta=best.MIN_DELTA,
    )


def _weights_for_config(best: BestCheckpoint) -> str:
    """The best weights if there are any; what an older training left does not count."""
    if best.saved is not None:
        return f"{NAME}.pth"
    logger.warning("TEST.BEST.IN_CONFIG: there is no %s.pth to name in config.yaml.", NAME)
    return "model_final.pth"
