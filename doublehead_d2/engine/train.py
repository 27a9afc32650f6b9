"""What one process of a training or evaluation job does."""

import argparse
from typing import Any

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.engine.memory import keep_freed_memory
from doublehead_d2.engine.setup import setup
from doublehead_d2.engine.trainer import Trainer


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train, or with `args.eval_only` evaluate, as detectron2's `tools/train_net.py` does.

    Args:
        args: what detectron2's `default_argument_parser` gives.

    Returns:
        results by task (by data set, then task, if there are several), e.g. `["bbox"]["AP"]` in
        percent; None from training without TEST.EXPECTED_RESULTS.
    """
    cfg = setup(args)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()

    model = Trainer.build_model(cfg)
    checkpointer = DoubleHeadCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
