"""COCO's JSON, also as labelling tools and people's own scripts write it.

What differs from COCO's form is brought into it before detectron2 reads the file, and said.
"""

import json
import os
import tempfile
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from doublehead_d2.data import kinds
from doublehead_d2.data.coco_file import inspect_coco, read_annotation_file
from doublehead_d2.data.findings import Contents, Findings, Use
from doublehead_d2.data.layouts.coco_boxes import to_pixels_xywh
from doublehead_d2.data.layouts.coco_images import complete_images
from doublehead_d2.data.layouts.dataset import OwnDataset

Record = dict[str, Any]


class CocoDataset(OwnDataset):
    """A data set in COCO's format."""

    _stamp: tuple[int, int] | None = None  # of the file when it was seen to be in COCO's form

    def __call__(self) -> list[Record]:
        """As `load_coco_json`, which reads the file itself where it is in COCO's form.

        Raises:
            ValueError: the file is no JSON, or boxes or classes are not what the entry says.
        """
        entry = self.entry
        if self._stamp and self._stamp == _stamp(entry.annotations):
            return load_coco_json(entry.annotations, entry.image_folder, self.name)
        data, changes = self._read()
        if not changes:
            return load_coco_json(entry.annotations, entry.image_folder, self.name)
        with tempfile.TemporaryDirectory(prefix="coco_") as folder:
            path = os.path.join(folder, "annotations.json")
            with open(path, "w") as f:
                json.dump(data, f)
            return load_coco_json(path, entry.image_folder, self.name)

    def is_in_form(self) -> bool:
        """Whether COCO's metric can take the file as it stands."""
        return self._stamp == _stamp(self.entry.annotations) or not self._read()[1]

    def inspect(self, use: Use, findings: Findings) -> Contents:
        """As `inspect_coco_file`, and what was brought into COCO's form.

        Raises:
            ValueError: names the first faults.
        """
        data, notes = self._read()
        for note in notes:
            findings.add(kinds.CONVERTED, note)
        return inspect_coco(data, MetadataCatalog.get(self.name), use, findings)

    def metadata(self) -> dict[str, Any]:
        """As `register_coco_instances` sets it."""
        found: dict[str, Any] = {
            "json_file": self.entry.annotations,
            "image_root": self.entry.image_folder,
        }
        return found | ({"thing_classes": list(self.entry.classes)} if self.entry.classes else {})

    def required(self) -> list[tuple[str, bool]]:
        """The annotation file and the folder of images."""
        return [(self.entry.annotations, False), (self.entry.image_folder, True)]

    def _read(self) -> tuple[Record, list[str]]:
        """The content in COCO's form, and what had to be done to that end.

        Malformed records stay as they are: who looks at them says what is wrong.
        """
        stamp = _stamp(self.entry.annotations)
        data = read_annotation_file(self.entry.annotations)
        images = _records(data, "images")
        notes = complete_images(images, self.entry.image_folder)
        notes += _number_annotations(_records(data, "annotations"))
        notes += to_pixels_xywh(self.where, data, self.entry.boxes)
        notes += self._state_classes(data)
        self._stamp = None if notes else stamp
        return data, notes

    def _state_classes(self, data: Record) -> list[str]:
        """Give the categories the names and the order of the entry."""
        if not (self.entry.classes or self.entry.rename):
            return []
        categories = _records(data, "categories")
        if len(categories) != len(data.get("categories") or ()) or not all(
            _hashable(x.get("id")) and "name" in x for x in categories
        ):
            return []
        categories.sort(key=lambda x: (isinstance(x["id"], str), x["id"]))
        names, numbers = self.number_classes([str(x["name"]) for x in categories])
        by_id = {x["id"]: numbers[str(x["name"])] + 1 for x in categories}
        for annotation in _records(data, "annotations"):
            if _hashable(category := annotation.get("category_id")) and category in by_id:
                annotation["category_id"] = by_id[category]
            else:  # an id that the new ones could be taken for
                annotation["category_id"] = f"{category!r:.60}"
        data["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        return [f"its classes are {names}, as its entry says"]


def _stamp(path: str) -> tuple[int, int]:
    """What changes with a file: when it was written, and its size."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


def _records(data: Record, key: str) -> list[Record]:
    """The records of a list that are records at all."""
    records = data.get(key)
    return [x for x in records if isinstance(x, dict)] if isinstance(records, list) else []


def _hashable(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def _number_annotations(annotations: list[Record]) -> list[str]:
    """Number annotations without ids; detectron2 and COCO's metric look them up by it."""
    missing = sum("id" not in x for x in annotations)
    if not missing:
        return []
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return [f"{missing:,} of {len(annotations):,} annotations have no 'id': all are numbered"]
