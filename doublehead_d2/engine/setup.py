"""From command line to config, with everything checked that would fail later."""

import argparse
import logging
import os

from detectron2.config import CfgNode
from detectron2.engine import default_setup

from doublehead_d2 import model_zoo
from doublehead_d2.checkpoint.whole import has_checkpoint
from doublehead_d2.config import check_config, fall_back_to_cpu, merge_opts
from doublehead_d2.config.keys import differences
from doublehead_d2.data.check import check_datasets
from doublehead_d2.data.classes import check_not_empty, class_names
from doublehead_d2.data.registration import add_datasets
from doublehead_d2.engine.determinism import make_deterministic
from doublehead_d2.engine.log import start_logging
from doublehead_d2.engine.run_data import check_data, infer_num_classes
from doublehead_d2.engine.run_folder import check_folder, claim, refuse_used
from doublehead_d2.engine.schedule import scale_schedule
from doublehead_d2.evaluation.metrics import check_metric

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace, folder: str | None = None) -> CfgNode:
    """Build the config that `args` ask for and prepare the job as `default_setup` does.

    Args:
        args: what `argument_parser` gives: `config_file` (a file or a name of the zoo), `opts`,
            `eval_only`, `resume` and, if there are, `overwrite` and `dataset` (NAME=TEXT, several).
        folder: where log and config are written; None for OUTPUT_DIR, which a training then has
            for itself (:mod:`~doublehead_d2.engine.run_folder`).

    Returns:
        the frozen config as :func:`complete_config` gives it.

    Raises:
        ValueError, FileNotFoundError: names the option, key or data set and what is expected.
    """
    if not args.config_file:
        raise ValueError(
            "--config-file is missing; give a YAML file or a name of the zoo, such as "
            f"{model_zoo.suggestions()}"
        )
    path = args.config_file
    if not os.path.isfile(path):
        path = model_zoo.get_config_file(path)
    cfg = model_zoo.read_config(path)
    as_in_file = cfg.clone()
    add_datasets(cfg.DATASETS.REGISTER, getattr(args, "dataset", None) or ())
    merge_opts(cfg, args.opts or [])
    resumes = args.resume and has_checkpoint(cfg.OUTPUT_DIR)
    overwrite = getattr(args, "overwrite", False)
    if args.resume and overwrite:
        raise ValueError("--resume goes on with what --overwrite removes; allowed: one of them")
    if args.eval_only and not resumes and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "--eval-only would evaluate random weights: MODEL.WEIGHTS is empty; "
            "add `MODEL.WEIGHTS path/to/model_final.pth`"
        )
    notes = check_run(cfg, eval_only=args.eval_only, resume=args.resume)
    if not args.resume and not args.eval_only:
        refuse_used(cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, overwrite=overwrite)

    # From here on there is a folder of the job, and what is said is in its log.
    check_folder(folder or cfg.OUTPUT_DIR)
    if folder is None and not args.eval_only:
        claim(cfg.OUTPUT_DIR, overwrite=overwrite)
    start_logging(folder or cfg.OUTPUT_DIR)
    for note in notes:
        logger.warning("%s", note)
    cfg = complete_config(cfg, eval_only=args.eval_only)
    cfg.freeze()
    written = cfg.clone()
    written.defrost()
    written.OUTPUT_DIR = folder or cfg.OUTPUT_DIR
    default_setup(written, argparse.Namespace(**{**vars(args), "config_file": path}))
    if cfg.SOLVER.DETERMINISTIC:
        make_deterministic()
    _report(cfg, as_in_file, args.config_file, kept=folder is None)
    return cfg


def check_run(cfg: CfgNode, *, eval_only: bool = False, resume: bool = False) -> list[str]:
    """Refuse what a training or an evaluation would stumble over, before anything is built.

    Every process may call it; none waits for another.

    Args:
        cfg: a config with the keys of this package.
        eval_only: it is an evaluation of DATASETS.TEST.
        resume: it goes on from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        what is legitimate about the data and yet worth a word, a line each.

    Raises:
        ValueError, FileNotFoundError: names the key or data set and what is expected.
    """
    if eval_only and not cfg.DATASETS.TEST:
        raise ValueError("--eval-only has nothing to evaluate on: DATASETS.TEST is empty")
    if not eval_only:
        check_not_empty(cfg.DATASETS.TRAIN)
    check_datasets(cfg.DATASETS.TEST if eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST)
    check_config(cfg, eval_only=eval_only)
    if not eval_only:
        check_metric(cfg)
    return check_data(cfg, eval_only=eval_only, resume=resume)


def complete_config(cfg: CfgNode, *, eval_only: bool = False) -> CfgNode:
    """Fill in what depends on this machine and, for a training, on its data and its batch.

    Args:
        cfg: a config that :func:`check_run` has seen.
        eval_only: it is for an evaluation.

    Returns:
        a copy: MODEL.DEVICE is there; for a training DATASETS.CLASS_NAMES are those of its data,
        and lr and schedule follow SOLVER.IMS_PER_BATCH (:func:`scale_schedule`), as `Trainer`
        expects it. MODEL.ROI_HEADS.NUM_CLASSES 0 becomes the number that the training data has, for
        an evaluation that of the model's own config, or else of the test data.

    Raises:
        ValueError: the model has not as many classes as the data.
    """
    cfg = cfg.clone()
    fall_back_to_cpu(cfg)
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not eval_only:
        cfg.DATASETS.CLASS_NAMES = class_names(cfg.DATASETS.TRAIN, count)
        cfg = scale_schedule(cfg)
    if not count:
        infer_num_classes(cfg, eval_only=eval_only)
    return cfg


def _report(cfg: CfgNode, as_in_file: CfgNode, name: str, *, kept: bool) -> None:
    """Say which config it is and what this run changes of it."""
    changes = differences(as_in_file, cfg)
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    logger.info(
        "Config %s, %s%s",
        name,
        "with these changes:\n  " + "\n  ".join(changes) if changes else "as it stands.",
        f"\nThe whole of it is in {path}, the environment in log.txt beside it." if kept else "",
    )
