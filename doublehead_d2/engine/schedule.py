"""Learning rate and schedule that follow the total batch."""

import logging
from collections.abc import Callable

from detectron2.config import CfgNode

from doublehead_d2.config.checks import check_batch

logger = logging.getLogger(__name__)


def scale_schedule(cfg: CfgNode) -> CfgNode:
    """Adapt lr and schedule to SOLVER.IMS_PER_BATCH if SOLVER.REFERENCE_IMS_PER_BATCH is set.

    With s = IMS_PER_BATCH / REFERENCE_IMS_PER_BATCH the learning rates are multiplied by s, and
    iterations, steps, warm-up and the periods of checkpoints and evaluations are divided by it, so
    that a training sees the same number of images (the linear scaling rule,
    https://arxiv.org/abs/1706.02677). How many GPUs share the batch plays no role.

    Returns:
        `cfg` itself where nothing is to be done, else a copy, frozen like `cfg`, whose reference
        is its own batch: applied twice, it does nothing more.

    Raises:
        ValueError: as `config.checks.check_batch`.
    """
    check_batch(cfg)
    reference, batch = cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference in (0, batch):
        return cfg

    scaled = cfg.clone()
    scaled.defrost()
    scaled.SOLVER.REFERENCE_IMS_PER_BATCH = batch
    factor = batch / reference
    changes = [_change(scaled, name, lambda lr: lr * factor) for name in _learning_rates(cfg)]
    for name in ("MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        changes.append(_change(scaled, f"SOLVER.{name}", lambda its: _divide(its, factor)))
    changes.append(_change(scaled, "TEST.EVAL_PERIOD", lambda its: _divide(its, factor)))
    logger.warning(
        "LEARNING RATE AND SCHEDULE SCALED: the config is written for batches of %d images "
        "(SOLVER.REFERENCE_IMS_PER_BATCH), SOLVER.IMS_PER_BATCH is %d, factor %g:\n  %s\n"
        "To take the values as they stand, set SOLVER.REFERENCE_IMS_PER_BATCH 0.",
        reference,
        batch,
        factor,
        "\n  ".join(changes),
    )
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def _learning_rates(cfg: CfgNode) -> list[str]:
    """Keys that are learning rates; detectron2 0.6 has no BASE_LR_END."""
    names = ("SOLVER.BASE_LR", "SOLVER.BASE_LR_END")
    return [name for name in names if name.split(".")[1] in cfg.SOLVER]


def _divide(iterations: int | tuple[int, ...], factor: float) -> int | tuple[int, ...]:
    """Iterations divided by `factor`, at least 1 where they were; 0 (off) stays 0."""
    if isinstance(iterations, (tuple, list)):
        return tuple(max(1, round(it / factor)) if it else 0 for it in iterations)
    return max(1, round(iterations / factor)) if iterations else 0


def _change(cfg: CfgNode, key: str, change: Callable) -> str:
    """Change the value of `key` in place and describe it."""
    section, name = key.split(".")
    old = cfg[section][name]
    cfg[section][name] = change(old)
    return f"{key}: {old} -> {cfg[section][name]}"
