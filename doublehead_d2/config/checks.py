"""Everything about a config that would fail later, looked at before anything is built."""

import logging
import re
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils.file_io import PathManager

from doublehead_d2.config import training
from doublehead_d2.config.coco_api import uses_hotcoco
from doublehead_d2.config.defaults import SYSTEMS
from doublehead_d2.config.shared import (
    check_between,
    check_deformable_convolution,
    check_device,
    check_positive,
    check_word,
)

RESIZE_RULES = ("detectron2", "mmdet", "maskrcnn_benchmark")

logger = logging.getLogger(__name__)


def check_config(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Refuse what a training or, with `eval_only`, an evaluation would stumble over.

    What depends on the data sets themselves is looked at in `data.check`.

    Raises:
        ValueError, FileNotFoundError: names the key, its value and what is allowed.
    """
    check_model(cfg, classes_from_data=True)
    check_evaluation(cfg)
    check_proposals(cfg, ("TEST",) if eval_only else ("TRAIN", "TEST"))
    check_between("DATALOADER.NUM_WORKERS", cfg.DATALOADER.NUM_WORKERS, 0)
    if not eval_only:
        check_batch(cfg)
        check_positive("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER)
        check_positive("SOLVER.CHECKPOINT_PERIOD", cfg.SOLVER.CHECKPOINT_PERIOD)
        training.check(cfg)


def check_model(cfg: CfgNode, *, classes_from_data: bool = False) -> None:
    """Refuse what no model can be built from, or no image be resized by.

    Args:
        cfg: a config.
        classes_from_data: the number of classes may still be 0, as many as the data has.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":  # others need no RoI heads
        names = [name for name, _ in ROI_HEADS_REGISTRY]
        check_word("MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, names)
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        check_positive("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", size)
        for system in SYSTEMS:
            system.check(cfg)
        check_num_classes(cfg, from_data=classes_from_data)
    if not falls_back_to_cpu(cfg.MODEL.DEVICE):
        check_device("MODEL.DEVICE", cfg.MODEL.DEVICE)
    check_deformable_convolution(cfg)
    check_word("INPUT.RESIZE_RULE", cfg.INPUT.RESIZE_RULE, RESIZE_RULES)


def check_num_classes(cfg: CfgNode, *, from_data: bool = False) -> None:
    """Refuse a number of classes below 0, and 0 where no data says how many there are.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if count < 0:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {count}; allowed: 0 (as the data) or more"
        )
    if not count and not from_data:
        raise ValueError(
            "MODEL.ROI_HEADS.NUM_CLASSES is 0, as many as the data has, and no data is asked here; "
            "allowed: a number, such as the config.yaml has that a training leaves "
            "(engine.complete_config fills it in)"
        )


def check_evaluation(cfg: CfgNode) -> None:
    """Refuse ways to evaluate that there are not here; found only after training otherwise.

    Raises:
        ValueError: names the key that stands against it.
    """
    uses_hotcoco(cfg.TEST.COCO_API)
    if cfg.TEST.AUG.ENABLED:
        check_tta_config(cfg)
    if not cfg.TEST.DOUBLE_HEAD_MODES:
        return
    name, architecture = cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.META_ARCHITECTURE
    if architecture != "GeneralizedRCNN":
        raise ValueError(
            f"TEST.DOUBLE_HEAD_MODES is True and MODEL.META_ARCHITECTURE is '{architecture}'; "
            "allowed: 'GeneralizedRCNN', or TEST.DOUBLE_HEAD_MODES False"
        )
    if not hasattr(ROI_HEADS_REGISTRY.get(name), "scoring_modes"):
        raise ValueError(
            f"TEST.DOUBLE_HEAD_MODES is True and MODEL.ROI_HEADS.NAME is '{name}', which can be "
            f"scored in one way alone; allowed: {heads_with_modes()}, or TEST.DOUBLE_HEAD_MODES "
            "False"
        )


def heads_with_modes() -> str:
    """The values of MODEL.ROI_HEADS.NAME whose models can be scored in several ways, quoted."""
    names = [name for name, heads in ROI_HEADS_REGISTRY if hasattr(heads, "scoring_modes")]
    return ", ".join(map(repr, names))


def check_tta_config(cfg: CfgNode) -> None:
    """Refuse test-time augmentation of what detectron2 cannot augment.

    Raises:
        ValueError: names the key that stands against it.
    """
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            raise ValueError(
                f"TEST.AUG.ENABLED is True and MODEL.{key} is True: detectron2 has no test-time "
                "augmentation for that; set TEST.AUG.ENABLED False"
            )


def check_proposals(cfg: CfgNode, splits: Sequence[str]) -> None:
    """Refuse precomputed proposals without both keys or without a file for every data set.

    Args:
        cfg: a config.
        splits: "TRAIN", "TEST" or both.

    Raises:
        ValueError, FileNotFoundError: names the key or the file.
    """
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


def check_batch(cfg: CfgNode) -> None:
    """Refuse a batch without images, and references that lr and schedule cannot follow.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    solver = cfg.SOLVER
    reference, batch = solver.REFERENCE_IMS_PER_BATCH, solver.IMS_PER_BATCH
    if reference < 0:
        raise ValueError(
            f"SOLVER.REFERENCE_IMS_PER_BATCH is {reference}; allowed: 0 (off) or a batch size"
        )
    if batch < 1:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {batch}; allowed: 1 or more images")
    if reference and solver.REFERENCE_WORLD_SIZE:
        raise ValueError(
            f"SOLVER.REFERENCE_IMS_PER_BATCH is {reference} and SOLVER.REFERENCE_WORLD_SIZE is "
            f"{solver.REFERENCE_WORLD_SIZE}: both scale the learning rate; set one of them to 0"
        )


def falls_back_to_cpu(device: str) -> bool:
    """Whether :func:`fall_back_to_cpu` changes this value of MODEL.DEVICE."""
    return bool(re.fullmatch(r"cuda(:\d+)?", device)) and not torch.cuda.is_available()


def fall_back_to_cpu(cfg: CfgNode) -> None:
    """Where `cfg` asks for CUDA and there is none, set MODEL.DEVICE to the CPU and say so."""
    if falls_back_to_cpu(cfg.MODEL.DEVICE):
        logger.warning(
            "MODEL.DEVICE is '%s', but CUDA is not available: using the CPU.", cfg.MODEL.DEVICE
        )
        cfg.MODEL.DEVICE = "cpu"
