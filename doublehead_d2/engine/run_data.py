"""The data sets of a run: what is in them, and the order of their classes."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from doublehead_d2.checkpoint.whole import has_checkpoint
from doublehead_d2.data.classes import Named, check_number, compare_classes
from doublehead_d2.data.contents import inspect_dataset
from doublehead_d2.data.findings import Contents, Use
from doublehead_d2.engine.weights_classes import class_names_in, note_kept_predictors
from doublehead_d2.evaluation.build import check_evaluator

logger = logging.getLogger(__name__)


def check_data(cfg: CfgNode, *, eval_only: bool, resume: bool) -> list[str]:
    """Look at all data sets of a run once.

    Args:
        cfg: a config whose data sets are there.
        eval_only: only DATASETS.TEST are used.
        resume: the run goes on from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        what is legitimate and yet worth a word, a line each.

    Raises:
        ValueError: names the data set, the record, its value and what is allowed.
    """
    train = [] if eval_only else list(cfg.DATASETS.TRAIN)
    test = list(cfg.DATASETS.TEST)
    for name in test:
        check_evaluator(name)
    contents = {
        name: inspect_dataset(name, use_of(cfg, name, name in train, name in test))
        for name in dict.fromkeys(train + test)
    }
    notes = [note for found in contents.values() for note in found.notes]
    notes += compare_data(cfg, contents, eval_only=eval_only, resume=resume)
    for name, found in contents.items():
        # As detectron2 does on loading: now who asks need not load them.
        if found.classes and not MetadataCatalog.get(name).get("thing_classes"):
            MetadataCatalog.get(name).thing_classes = found.classes
    return notes


def compare_data(
    cfg: CfgNode, contents: dict[str, Contents], *, eval_only: bool, resume: bool = False
) -> list[str]:
    """Compare the data sets of a run with one another and with the model.

    Args:
        cfg: a config.
        contents: what is in its data sets, by name.
        eval_only, resume: as :func:`check_data`.

    Returns:
        what is legitimate and yet worth a word, a line each.

    Raises:
        ValueError: there is nothing to train on, or classes differ; gives both sides.
    """
    train = [] if eval_only else list(cfg.DATASETS.TRAIN)
    notes = []
    if train:
        notes += _check_objects(cfg, [contents[name] for name in train])
    notes += _check_classes(cfg, contents, train, _carried(cfg, eval_only, resume))
    if train and not cfg.MODEL.NEW_PREDICTORS and not _resumes(cfg, resume):
        names = Named(f"DATASETS.TRAIN '{train[0]}'", contents[train[0]].classes)
        notes += note_kept_predictors(cfg.MODEL.WEIGHTS, names)
    return notes


def use_of(cfg: CfgNode, name: str, training: bool, evaluation: bool) -> Use:
    """What a run with a config does with a data set.

    Args:
        cfg: the config.
        name: of the data set.
        training: it is trained on.
        evaluation: it is evaluated on.
    """
    return Use(
        training=training,
        evaluation=str(MetadataCatalog.get(name).get("evaluator_type")) if evaluation else "",
        mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else "",
        keypoints=cfg.MODEL.KEYPOINT_ON,
        skips_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )


def _check_objects(cfg: CfgNode, contents: list[Contents]) -> list[str]:
    """Something to train on; one data set of several may be of images without objects."""
    if any(found.objects != 0 for found in contents):
        return []
    problem = f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no object (crowds do not count)"
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        raise ValueError(
            f"{problem}, and DATALOADER.FILTER_EMPTY_ANNOTATIONS True leaves no image to train on; "
            "allowed: one object or more"
        )
    return [f"{problem}: the model learns to detect nothing."]


def _check_classes(
    cfg: CfgNode, contents: dict[str, Contents], train: list[str], carried: list[Named]
) -> list[str]:
    """Compare the classes of all data sets with the model's, by index."""
    notes: list[str] = []
    reference = list(carried)
    for name, found in contents.items():
        if name in train or cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
            check_number(name, found.classes, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        if not found.classes:
            continue
        named = Named(f"DATASETS.{'TRAIN' if name in train else 'TEST'} '{name}'", found.classes)
        differences = [note for other in reference if (note := compare_classes(named, other))]
        if differences and name in train and name != train[0]:
            # detectron2 mixes no data sets of other names, and would not say which they are.
            raise ValueError(
                f"{differences[-1]} Allowed in DATASETS.TRAIN: the same names"
                f"{_renaming(found.classes, reference[-1].names)}."
            )
        notes += differences
        if name in train and len(reference) == len(carried):
            reference.append(named)
    return notes


def _renaming(theirs: list[str], ours: list[str]) -> str:
    """The line of an entry that gives a data set the names of another."""
    pairs = ", ".join(f"{a}: {b}" for a, b in zip(theirs, ours, strict=True) if a != b)
    return f", as the line `rename: {{{pairs}}}` in its entry of DATASETS.REGISTER gives them"


def infer_num_classes(cfg: CfgNode, *, eval_only: bool) -> None:
    """Set MODEL.ROI_HEADS.NUM_CLASSES to the number of classes that there are, and say whose it is.

    Args:
        cfg: a config whose data sets :func:`check_data` has seen; for a training its
            DATASETS.CLASS_NAMES are those of its data.
        eval_only: it is for an evaluation, of weights that may say their classes, or else have
            those of DATASETS.TEST.

    Raises:
        ValueError: no data set and no config beside the weights names its classes.
    """
    if eval_only:
        known = _carried(cfg, eval_only, resume=False)
        for name in cfg.DATASETS.TEST:
            classes = list(MetadataCatalog.get(name).get("thing_classes", []))
            known.append(Named(f"DATASETS.TEST '{name}'", classes))
    else:
        known = [Named("DATASETS.TRAIN", list(cfg.DATASETS.CLASS_NAMES))]
    known = [named for named in known if named.names]
    if not known:
        raise ValueError(
            "MODEL.ROI_HEADS.NUM_CLASSES is 0, as many as the data has, and the data names no "
            "classes; allowed: their number"
        )
    owner, names = known[0]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
    logger.info(
        "MODEL.ROI_HEADS.NUM_CLASSES 0 is %d, the number of classes of %s: %s",
        len(names),
        owner,
        ", ".join(names),
    )


def _carried(cfg: CfgNode, eval_only: bool, resume: bool) -> list[Named]:
    """The classes that the weights were trained for, as far as they say it.

    A training from weights learns its classes anew, unless it goes on with what it had begun.
    """
    output, weights = cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS
    found = []
    if eval_only and cfg.DATASETS.CLASS_NAMES:
        found.append(Named("DATASETS.CLASS_NAMES", list(cfg.DATASETS.CLASS_NAMES)))
    if _resumes(cfg, resume):
        folder = output
    elif eval_only and os.path.isfile(weights):
        folder = os.path.dirname(weights)
    else:
        return found
    path = os.path.join(folder, "config.yaml")
    names = class_names_in(path)
    if names and names not in [named.names for named in found]:
        found.append(Named(f"the model's own config ('{path}')", names))
    return found


def _resumes(cfg: CfgNode, resume: bool) -> bool:
    return resume and has_checkpoint(cfg.OUTPUT_DIR)
