"""People's own data sets in detectron2's catalogs: DATASETS.REGISTER, and --dataset NAME=TEXT.

They are then as detectron2's own: DATASETS.TRAIN and TEST name them, they concatenate, and their
metadata say how they are evaluated.
"""

from collections.abc import Iterable, MutableMapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from doublehead_d2.data.entries import TEXTS, Entry, as_value, locate, read_entry
from doublehead_d2.data.layouts.coco import CocoDataset
from doublehead_d2.data.layouts.dataset import OwnDataset
from doublehead_d2.data.layouts.voc import VocDataset
from doublehead_d2.data.layouts.yolo import YoloDataset

TYPES: dict[str, type[OwnDataset]] = {"coco": CocoDataset, "voc": VocDataset, "yolo": YoloDataset}
HELP = f"a data set of your own, NAME=TEXT, the text one of {', '.join(TEXTS.values())}; repeatable"


def parse_dataset(text: str) -> tuple[str, Any]:
    """Name and entry of a data set that a command line gives as NAME=TEXT.

    Raises:
        ValueError: it is no such pair, or the text is no entry.
    """
    name, equals, entry = text.partition("=")
    if not (name and equals and entry):
        raise ValueError(
            f"--dataset is {text!r}; allowed: NAME=TEXT, TEXT {', '.join(TEXTS.values())}"
        )
    read_entry(name, entry)
    return name, entry


def register_datasets(register: MutableMapping[str, Any], base_dir: str) -> None:
    """Register the data sets of a config, so that other parts find them by name.

    Nothing is read, and nothing has to be there yet: a model of data that this machine does not
    have can still be used. `check_datasets` and `inspect_dataset` look at what a run needs.

    Args:
        register: as `cfg.DATASETS.REGISTER`; its paths are made absolute in place.
        base_dir: the folder that relative paths start from; $DETECTRON2_DATASETS is the second.

    Raises:
        ValueError: an entry that cannot be read, or a name that stands for another data set.
    """
    for name, value in list(register.items()):
        entry, looked_at = locate(read_entry(name, value), base_dir)
        _register(str(name), entry, looked_at)
        absolute: Any = as_value(entry)
        if absolute != value:
            register[name] = CfgNode(absolute) if isinstance(absolute, dict) else absolute


def add_datasets(register: MutableMapping[str, Any], texts: Iterable[str]) -> None:
    """Add the data sets of a command line, whose paths start from the working directory.

    Args:
        register: as `cfg.DATASETS.REGISTER`, changed in place.
        texts: NAME=TEXT each.

    Raises:
        ValueError: as :func:`parse_dataset` and :func:`register_datasets`.
    """
    for text in texts:
        name, entry = parse_dataset(text)
        one: dict[str, Any] = {name: entry}
        register_datasets(one, ".")
        register[name] = one[name]


def own_dataset(name: str) -> OwnDataset | None:
    """What is registered under a name, if it is a data set of DATASETS.REGISTER."""
    if name not in DatasetCatalog:
        return None
    known = DatasetCatalog[name]  # get() would load it
    return known if isinstance(known, OwnDataset) else None


def _register(name: str, entry: Entry, looked_at: dict[str, list[str]]) -> None:
    if name in DatasetCatalog:
        known = own_dataset(name)
        if known is None:
            raise ValueError(
                f"DATASETS.REGISTER.{name}: a data set of this name is built in, or registered in "
                "Python; allowed: another name"
            )
        if known.entry == entry:
            return
        if known.is_there():
            raise ValueError(
                f"DATASETS.REGISTER.{name} is {as_value(entry)!r}, and the name stands for "
                f"{as_value(known.entry)!r} already; allowed: the same entry, or another name"
            )
        DatasetCatalog.remove(name)  # its files have been found elsewhere
        MetadataCatalog.remove(name)
    dataset = TYPES[entry.layout](name, entry, looked_at)
    DatasetCatalog.register(name, dataset)
    MetadataCatalog.get(name).set(evaluator_type=entry.evaluator_type, **dataset.metadata())
