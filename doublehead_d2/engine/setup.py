"""From command line to config, with everything checked that would fail later."""

import argparse
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from doublehead_d2 import model_zoo
from doublehead_d2.config import check_deformable_convolution, check_tta_config, fall_back_to_cpu
from doublehead_d2.data.check import check_datasets
from doublehead_d2.engine.schedule import scale_schedule
from doublehead_d2.modeling import DoubleHeadROIHeads

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config that `args` ask for and prepare the job as `default_setup` does.

    Args:
        args: what detectron2's `default_argument_parser` gives: `config_file` (a file or a name of
            the zoo), `opts`, `eval_only`, `resume`.

    Returns:
        the frozen config; its DATASETS.CLASS_NAMES are those of the training data.

    Raises:
        ValueError, FileNotFoundError: names the option, key or data set and what is expected.
    """
    if not args.config_file:
        raise ValueError(
            "--config-file is missing; give a YAML file or a name of the zoo: "
            + ", ".join(model_zoo.list_configs())
        )
    path = args.config_file
    if not os.path.isfile(path):
        path = model_zoo.get_config_file(path)
    cfg = model_zoo.read_config(path)
    cfg.merge_from_list(args.opts or [])
    if args.eval_only and not args.resume and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "--eval-only would evaluate random weights: MODEL.WEIGHTS is empty; "
            "add `MODEL.WEIGHTS path/to/model_final.pth`"
        )
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ValueError("--eval-only has nothing to evaluate on: DATASETS.TEST is empty")
    check_datasets(cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST)
    _check_evaluation(cfg)
    _check_proposals(cfg, ("TEST",) if args.eval_only else ("TRAIN", "TEST"))

    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="doublehead_d2")
    fall_back_to_cpu(cfg)
    check_deformable_convolution(cfg)
    if not args.eval_only:
        cfg.DATASETS.CLASS_NAMES = _class_names(cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        cfg = scale_schedule(cfg)
    cfg.freeze()
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": path}))
    return cfg


def _check_evaluation(cfg: CfgNode) -> None:
    """Ways to evaluate that the model does not have; found only after the training otherwise."""
    if cfg.TEST.AUG.ENABLED:
        check_tta_config(cfg)
    name = cfg.MODEL.ROI_HEADS.NAME
    if cfg.TEST.DOUBLE_HEAD_MODES and not issubclass(
        ROI_HEADS_REGISTRY.get(name), DoubleHeadROIHeads
    ):
        raise ValueError(
            f"TEST.DOUBLE_HEAD_MODES is True and MODEL.ROI_HEADS.NAME is '{name}', which has one "
            "box head; allowed: 'DoubleHeadROIHeads', or TEST.DOUBLE_HEAD_MODES False"
        )


def _check_proposals(cfg: CfgNode, splits: Sequence[str]) -> None:
    """Precomputed proposals need two keys and a file for every data set."""
    load, name = cfg.MODEL.LOAD_PROPOSALS, cfg.MODEL.PROPOSAL_GENERATOR.NAME
    precomputed = "PrecomputedProposals"
    if load and name != precomputed:
        # detectron2 would load them and then not use them.
        raise ValueError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is '{name}'; with MODEL.LOAD_PROPOSALS True allowed: "
            f"'{precomputed}'"
        )
    if name == precomputed and not load:
        raise ValueError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is '{precomputed}', which needs "
            "MODEL.LOAD_PROPOSALS True"
        )
    for split in splits if load else ():
        datasets, files = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if len(datasets) != len(files):
            raise ValueError(
                f"DATASETS.PROPOSAL_FILES_{split} has {len(files)} files for {len(datasets)} data "
                f"sets; allowed: one for each of {', '.join(datasets)}"
            )
        for path in files:
            if not PathManager.isfile(path):
                raise FileNotFoundError(f"DATASETS.PROPOSAL_FILES_{split}: there is no file {path}")


def _class_names(datasets: Sequence[str], num_classes: int) -> list[str]:
    """Class names of the training data, which must be as many as the model has classes."""
    if not datasets:
        raise ValueError("DATASETS.TRAIN is empty; give at least one data set to train on")
    for name in datasets:
        if not MetadataCatalog.get(name).get("thing_classes"):
            # Data sets registered from a COCO file learn their names when they are loaded.
            DatasetCatalog.get(name)
        class_names = list(MetadataCatalog.get(name).get("thing_classes", []))
        if class_names and len(class_names) != num_classes:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but data set '{name}' has "
                f"{len(class_names)} classes: {', '.join(class_names)}"
            )
    return list(MetadataCatalog.get(datasets[0]).get("thing_classes", []))
