"""What one process of a training or evaluation job does."""

import argparse
import logging
import os
from typing import Any

import torch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.engine.divergence import save_batch
from doublehead_d2.engine.dry_run import dry_run
from doublehead_d2.engine.memory import keep_freed_memory
from doublehead_d2.engine.run_folder import release
from doublehead_d2.engine.setup import setup
from doublehead_d2.engine.stopping import StopWhenAsked
from doublehead_d2.engine.trainer import Trainer

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train, or with `args.eval_only` evaluate, as detectron2's `tools/train_net.py` does.

    Args:
        args: what detectron2's `default_argument_parser` gives.

    Returns:
        results by task (by data set, then task, if there are several), e.g. `["bbox"]["AP"]` in
        percent; None from training without TEST.EXPECTED_RESULTS.

    Raises:
        ValueError: the training diverged, or as :func:`setup`.
        KeyboardInterrupt: the training was interrupted; how to go on is in the log.
    """
    if getattr(args, "dry_run", False):
        dry_run(args)
        return None
    try:
        return _main(args)
    finally:
        release()


def _main(args: argparse.Namespace) -> dict[str, Any] | None:
    cfg = setup(args)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return _train(trainer, resume=args.resume)

    model = Trainer.build_model(cfg)
    checkpointer = DoubleHeadCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _train(trainer: Trainer, *, resume: bool) -> dict[str, Any] | None:
    """Train, and say where a resumed training begins and how an interrupted one goes on."""
    folder, before = trainer.cfg.OUTPUT_DIR, _last_checkpoint(trainer)
    if resume and not trainer.checkpointer.has_checkpoint():
        logger.warning("--resume: %s has no checkpoint; the training begins anew.", folder)
    elif resume and trainer.start_iter >= trainer.max_iter:
        logger.warning(
            "--resume: nothing is left to train. %s was saved after %d iterations, and "
            "SOLVER.MAX_ITER is %d; to train on, set it above %d.",
            trainer.checkpointer.get_checkpoint_file(),
            trainer.start_iter,
            trainer.max_iter,
            trainer.start_iter,
        )
    try:
        return trainer.train()
    except FloatingPointError as error:  # of a loss, of what the RPN predicts, of weights
        raise ValueError(_divergence(trainer, " ".join(str(error).split()))) from error
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f"the memory of the GPU is too small for iteration {trainer.iter} "
            f"({str(error).splitlines()[0]}); what takes less: SOLVER.ACCUMULATION_STEPS above "
            f"{trainer.cfg.SOLVER.ACCUMULATION_STEPS}, SOLVER.AMP.ENABLED True, a smaller "
            "INPUT.MAX_SIZE_TRAIN and INPUT.MIN_SIZE_TRAIN, or a smaller SOLVER.IMS_PER_BATCH "
            "(with SOLVER.REFERENCE_IMS_PER_BATCH the schedule follows); of Double-Head, too, "
            "MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.USE_ACT_CHECKPOINT True"
        ) from error
    except KeyboardInterrupt:
        for hook in trainer._hooks:
            if isinstance(hook, StopWhenAsked):
                hook.save()  # of the last whole step, if it came between two
        after, period = _last_checkpoint(trainer), trainer.cfg.SOLVER.CHECKPOINT_PERIOD
        # One that was there before belongs to another training, unless this one resumed it.
        if after is None or (after == before and not resume):
            way = f"has no checkpoint yet (SOLVER.CHECKPOINT_PERIOD is {period})"
        else:
            way = f"goes on from {trainer.checkpointer.get_checkpoint_file()} with --resume"
        logger.warning("Interrupted in iteration %d; the training %s.", trainer.iter, way)
        raise


def _divergence(trainer: Trainer, reason: str) -> str:
    """What is said of a training that diverged; which images it saw is written down."""
    cfg, images = trainer.cfg, getattr(trainer._trainer, "images", [])
    path = save_batch(cfg.OUTPUT_DIR, trainer.iter, reason, images)
    names = f"{', '.join(images[:2])}{f' and {len(images) - 2} more' if len(images) > 2 else ''}"
    last = trainer.checkpointer.get_checkpoint_file()
    return (
        f"the training diverged in iteration {trainer.iter}: {reason} The images of its batch are "
        f"in {path}: {names}. "
        f"{f'The last checkpoint, from before, is {last}. ' if last else ''}"
        f"Try a SOLVER.BASE_LR below {cfg.SOLVER.BASE_LR:g}, or more SOLVER.WARMUP_ITERS than "
        f"{cfg.SOLVER.WARMUP_ITERS}"
    )


def _last_checkpoint(trainer: Trainer) -> int | None:
    """When the file that names the last checkpoint was written, None without one."""
    try:
        return os.stat(os.path.join(trainer.cfg.OUTPUT_DIR, "last_checkpoint")).st_mtime_ns
    except OSError:
        return None
