"""Changed copies of small data sets, and what the check before a run says of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.engine import check_run

CLASSES = ["circle", "rectangle", "triangle"]
Data = dict[str, Any]
Edit = Callable[[Data], object]


class Place:
    """Makes and registers changed copies of the small data."""

    def __init__(self, small: Path, folder: Path) -> None:
        self.small, self.folder = small, folder
        self.count = 0

    def coco(self, split: str, edit: Edit | None = None, images: Path | None = None) -> str:
        """The name of a data set in COCO's format whose content `edit` has changed."""
        data = json.loads((self.small / f"coco/annotations/instances_{split}.json").read_text())
        if edit:
            edit(data)
        return self.coco_text(split, json.dumps(data), images)

    def coco_text(self, split: str, text: str, images: Path | None = None) -> str:
        self.count += 1
        name = f"test_{split}_{self.count}"
        path = self.folder / f"{name}.json"
        path.write_text(text)
        register_coco_instances(name, {}, str(path), str(images or self.images(split)))
        return name

    def images(self, split: str) -> Path:
        return self.small / "coco" / split

    def changed_images(self, edit: Callable[[Path], object]) -> Path:
        """A copy of the training images, the first of which `edit` has changed."""
        folder = self.folder / "images"
        shutil.copytree(self.images("train"), folder)
        edit(folder / "train_000001.jpg")
        return folder

    def voc(
        self,
        edit: Callable[[Path], object] = lambda folder: None,
        classes: list[str] = CLASSES,
        year: int = 2007,
    ) -> tuple[str, str]:
        """Names of a training and a test set in VOC's layout, whose folder `edit` has changed."""
        self.count += 1
        folder = self.folder / f"voc_{self.count}"
        shutil.copytree(self.small / "voc", folder)
        edit(folder)
        names = []
        for split in ("trainval", "test"):
            names.append(f"test_voc_{self.count}_{split}")
            register_pascal_voc(names[-1], str(folder), split, year, classes)
            MetadataCatalog.get(names[-1]).evaluator_type = "pascal_voc"
        return names[0], names[1]


def cfg_for(place: Place, train: Any, test: Any, *opts: object) -> CfgNode:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.DATASETS.TRAIN = (train,) if isinstance(train, str) else tuple(train)
    cfg.DATASETS.TEST = (test,) if isinstance(test, str) else tuple(test)
    cfg.OUTPUT_DIR = str(place.folder / "output")
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(opts))
    return cfg


def notes_of(place: Place, train: Any, test: Any, *opts: object, **more: bool) -> str:
    return "\n".join(check_run(cfg_for(place, train, test, *opts), **more))


def refusal(place: Place, train: Any, test: Any, *opts: object, **more: bool) -> str:
    with pytest.raises(ValueError) as error:
        check_run(cfg_for(place, train, test, *opts), **more)
    return str(error.value)


def set_in(key: str, field: str, value: object, index: int = 0) -> Edit:
    return lambda data: data[key][index].update({field: value})


def without(key: str, field: str, index: int = 0) -> Edit:
    return lambda data: data[key][index].pop(field)


def replace(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))
