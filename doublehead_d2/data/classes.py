"""Class names: as many as the model has, and in one order wherever they are compared by index."""

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog


class Named(NamedTuple):
    """Class names by index, and whose they are."""

    owner: str
    names: list[str]


def class_names(datasets: Sequence[str], num_classes: int) -> list[str]:
    """Class names of the training data, which must be as many as the model has classes.

    Args:
        datasets: as `cfg.DATASETS.TRAIN`.
        num_classes: as `cfg.MODEL.ROI_HEADS.NUM_CLASSES`.

    Raises:
        ValueError: there is no data set, or one has another number of classes.
    """
    check_not_empty(datasets)
    for name in datasets:
        if not MetadataCatalog.get(name).get("thing_classes"):
            # Data sets registered from a COCO file learn their names when they are loaded.
            DatasetCatalog.get(name)
        check_number(name, list(MetadataCatalog.get(name).get("thing_classes", [])), num_classes)
    return list(MetadataCatalog.get(datasets[0]).get("thing_classes", []))


def check_not_empty(datasets: Sequence[str]) -> None:
    """Refuse a training without a data set.

    Raises:
        ValueError: names the key.
    """
    if not datasets:
        raise ValueError("DATASETS.TRAIN is empty; give at least one data set to train on")


def check_number(dataset: str, names: Sequence[str], num_classes: int) -> None:
    """Refuse another number of classes than the model's; no names are not known ones.

    A model with 0 classes takes as many as there are.

    Raises:
        ValueError: names the key, the data set and its classes.
    """
    if names and num_classes and len(names) != num_classes:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but data set '{dataset}' has "
            f"{len(names)} classes: {', '.join(names)}; allowed: MODEL.ROI_HEADS.NUM_CLASSES "
            f"{len(names)}, or 0, which takes as many as the data has"
        )


def compare_classes(ours: Named, theirs: Named) -> str:
    """Refuse classes whose order differs: detections are compared by index.

    Returns:
        a note where the same places have other names, and the classes may be the same
        nevertheless ("tv" and "tvmonitor"); empty where the names are the same.

    Raises:
        ValueError: gives both lists.
    """
    if ours.names == theirs.names:
        return ""
    lists = f"{ours.owner} has the classes {ours.names}, {theirs.owner} has {theirs.names}"
    if len(ours.names) != len(theirs.names):
        raise ValueError(
            f"{lists}; allowed: the same classes in the same order{_way_out(ours, theirs)}"
        )
    pairs = [(a, b) for a, b in zip(ours.names, theirs.names, strict=True) if a != b]
    if any(a in theirs.names or b in ours.names for a, b in pairs):
        raise ValueError(
            f"{lists}: the order differs, and classes are compared by their place in it; allowed: "
            f"the same order (COCO files are ordered by category id){_way_out(ours, theirs)}"
        )
    return f"{lists}; those at the same place are taken as the same."


def _way_out(ours: Named, theirs: Named) -> str:
    """The line of an entry of DATASETS.REGISTER that gives both the same classes."""
    union = list(dict.fromkeys([*theirs.names, *ours.names]))
    whose = "the entry" if union == theirs.names else "both entries"
    return f". In DATASETS.REGISTER the line `classes: [{', '.join(union)}]` in {whose} does it"
