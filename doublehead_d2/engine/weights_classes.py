"""The classes that MODEL.WEIGHTS were trained for, and what becomes of their predictors."""

import os
from typing import Any

import yaml
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from doublehead_d2.checkpoint.published import PUBLISHED
from doublehead_d2.checkpoint.sources.source import COCO_CLASSES, PREFIX
from doublehead_d2.data.classes import Named

# A data set with the classes of each folder of detectron2's zoo
ZOO = {
    "COCO-Detection": "coco_2017_val",
    "COCO-InstanceSegmentation": "coco_2017_val",
    "COCO-Keypoints": "keypoints_coco_2017_val",
    "PascalVOC-Detection": "voc_2007_test",
}
ZOO_PREFIXES = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")


def classes_of_weights(weights: str) -> list[str]:
    """Class names by index of what MODEL.WEIGHTS names, as far as it is known; else empty.

    A training of this package has left them in the config.yaml beside its weights; of published
    weights the name says it.
    """
    if os.path.isfile(weights):
        return class_names_in(os.path.join(os.path.dirname(weights), "config.yaml"))
    dataset = None
    published = PUBLISHED.get(weights.removeprefix(PREFIX)) if weights.startswith(PREFIX) else None
    if published and published.num_classes == COCO_CLASSES:  # a backbone has others
        dataset = "coco_2017_val"
    for prefix in ZOO_PREFIXES:
        if weights.startswith(prefix):
            dataset = ZOO.get(weights.removeprefix(prefix).split("/")[0])
    return list(MetadataCatalog.get(dataset).get("thing_classes", [])) if dataset else []


def class_names_in(path: str) -> list[str]:
    """DATASETS.CLASS_NAMES of a config that training left; none where it says none."""
    if not PathManager.isfile(path):
        return []
    with PathManager.open(path, "r") as f:
        try:
            config: Any = yaml.safe_load(f)
            names = list(config["DATASETS"]["CLASS_NAMES"])
        except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):  # another's
            return []
    return names if all(isinstance(name, str) for name in names) else []


def note_kept_predictors(weights: str, ours: Named) -> list[str]:
    """Say that a training starts from the predictors of other classes, if it does.

    Of another number of classes nothing is kept, and the checkpointer says so.
    """
    theirs = classes_of_weights(weights)
    if len(theirs) != len(ours.names):
        return []
    pairs = [f"{old} -> {new}" for old, new in zip(theirs, ours.names, strict=True) if old != new]
    if not pairs:
        return []
    shown = ", ".join(pairs[:5]) + (", ..." if len(pairs) > 5 else "")
    return [
        f"MODEL.WEIGHTS '{weights}' has as many classes as {ours.owner}, {len(pairs)} of "
        f"{len(theirs)} under other names ({shown}). Each class starts from the predictor of the "
        "one in its place; to start class scores, and boxes and masks by class, anew: "
        "MODEL.NEW_PREDICTORS True."
    ]
