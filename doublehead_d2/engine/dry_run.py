"""A training tried out: everything is built, a few steps are run, nothing is left behind."""

import argparse
import datetime
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from doublehead_d2.engine.progress import count_images
from doublehead_d2.engine.setup import setup
from doublehead_d2.engine.trainer import Trainer
from doublehead_d2.engine.validation_loss import build_loss_loader, validation_losses

WARM_UP, MEASURED = 1, 3  # steps; the first one is slower

logger = logging.getLogger(__name__)


class Costs(NamedTuple):
    """Seconds and bytes, those of the process that needs most."""

    step: float
    evaluation: float  # of all test images, without the metric itself; 0 without a test set
    memory: float


def dry_run(args: argparse.Namespace) -> None:
    """Do what a training with `args` would begin with, and say what it would take.

    What is written meanwhile lies in a folder that is removed at the end.

    Args:
        args: as :func:`~doublehead_d2.engine.setup.setup`.

    Raises:
        ValueError: it is no training, or one that cannot be run.
    """
    if args.eval_only:
        raise ValueError("--dry-run is for a training; allowed: without --eval-only")
    with tempfile.TemporaryDirectory(prefix="dry_run_") as folder:
        cfg = setup(args, folder)
        elsewhere = cfg.clone()
        elsewhere.defrost()
        elsewhere.OUTPUT_DIR = folder
        trainer = Trainer(elsewhere)
        trainer.checkpointer.save_dir = cfg.OUTPUT_DIR  # to resume from; nothing is saved
        trainer.resume_or_load(resume=args.resume)
        costs = _measure(trainer)
    logger.info("%s", report(cfg, trainer.model, costs, trainer.start_iter))


def report(cfg: CfgNode, model: nn.Module, costs: Costs, done: int = 0) -> str:
    """What a training takes and leaves, in lines for people.

    Args:
        cfg: its config.
        model: with its parameters frozen as they will be.
        costs: as measured.
        done: iterations before it is resumed.
    """
    solver, folder = cfg.SOLVER, cfg.OUTPUT_DIR
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    count = sum(size for size, _ in sizes)
    weights = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    # Beside the weights a checkpoint has the optimizer's momentum of what is trained.
    checkpoint = weights + 4 * trained
    steps = max(solver.MAX_ITER - done, 0)
    evaluations = count_evaluations(cfg, done)
    seconds = steps * costs.step + evaluations * costs.evaluation
    kept = solver.MAX_ITER // solver.CHECKPOINT_PERIOD - done // solver.CHECKPOINT_PERIOD
    where = "GPU memory" if torch.cuda.is_available() else "memory"
    lines = [
        "Dry run: the training can begin. Nothing was kept of the steps that were run.",
        f"parameters: {count:,}, of them trained {trained:,}",
        f"{where}: {costs.memory / 2**20:,.0f} MB at most in a process",
        f"a step of {solver.IMS_PER_BATCH} images: {costs.step:.3g} s",
        f"an evaluation: {_duration(costs.evaluation)}, without the metric itself",
        f"all: {_duration(seconds)}, for {steps} iterations and {evaluations} evaluations",
        f"would be written to {os.path.abspath(folder)}"
        f"{'' if os.path.isdir(folder) else ' (a new folder)'}:",
        "  log.txt, config.yaml, metrics.json, events.out.tfevents.*, inference/",
        f"  {kept} checkpoints model_*.pth of {checkpoint / 2**20:,.0f} MB, model_final.pth",
    ]
    if cfg.TEST.BEST.METRIC:
        lines.append(f"  model_best.pth of {weights / 2**20:,.0f} MB")
    return "\n  ".join(lines)


def count_evaluations(cfg: CfgNode, done: int = 0) -> int:
    """Evaluations from iteration `done` on: each period's, and one at the end."""
    period, last = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER
    if not cfg.DATASETS.TEST:
        return 0
    periodic = max((last - 1) // period - done // period, 0) if period > 0 else 0
    return periodic + 1


def _measure(trainer: Trainer) -> Costs:
    """Run some steps of training and some images of each test set."""
    cfg, model = trainer.cfg, trainer.model
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    step, evaluation = _seconds(_steps(trainer)), 0.0
    for name in cfg.DATASETS.TEST:
        evaluator = trainer.build_evaluator(cfg, name)
        evaluator.reset()
        loader = trainer.build_test_loader(cfg, name)
        seconds = _seconds([_evaluating(model, evaluator, batch) for batch in _some(loader)])
        evaluation += seconds * (count_images(loader) or 0)
    if cfg.TEST.LOSS:
        loader = build_loss_loader(cfg)
        batches = _some(loader)
        # At once, since all processes take part, however many images each of them has.
        seconds = _seconds([lambda: validation_losses(model, batches)]) / max(len(batches), 1)
        evaluation += seconds * (count_images(loader) or 0)
    evaluation /= comm.get_world_size()
    costs = comm.all_gather((step, evaluation, peak_memory()))
    return Costs(*(max(values) for values in zip(*costs, strict=True)))


def _some(loader: Any) -> list[list[dict[str, Any]]]:
    return list(itertools.islice(loader, WARM_UP + MEASURED))


def _steps(trainer: Trainer) -> list[Callable[[], Any]]:
    trainer.storage = EventStorage(trainer.start_iter)

    def step() -> None:
        trainer.iter = trainer.storage.iter = trainer.start_iter
        with trainer.storage:
            trainer.run_step()

    return [step] * (WARM_UP + MEASURED)


def _evaluating(model: nn.Module, evaluator: Any, batch: list[dict]) -> Callable[[], None]:
    def evaluate() -> None:
        with inference_context(model), torch.no_grad():
            evaluator.process(batch, model(batch))

    return evaluate


def _seconds(actions: list[Callable[[], Any]]) -> float:
    """The mean of actions, without those that warm up where there are more; 0 for none."""
    times = []
    for action in actions:
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    measured = times[WARM_UP:] or times
    return sum(measured) / len(measured) if measured else 0.0


def peak_memory() -> int:
    """The most bytes that this process has held: on the GPU if there is one, else in all."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
