"""Annotation files in COCO's format: all that detectron2 or pycocotools would stumble over."""

import contextlib
import gc
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from doublehead_d2.data.coco_gaps import describe_gaps
from doublehead_d2.data.findings import (
    COORDINATES,
    Contents,
    Faults,
    ImageFile,
    Use,
    are_coordinates,
)

Record = dict[str, Any]


def inspect_coco_file(where: str, metadata: Metadata, use: Use) -> Contents:
    """Look at all that a COCO file says, in one pass.

    Args:
        where: how messages begin.
        metadata: of a data set that `register_coco_instances` has registered.
        use: what is done with it.

    Raises:
        ValueError: names the first faults: the record, its value and what is allowed.
    """
    return inspect_coco(where, read_annotation_file(metadata.json_file), metadata, use)


def inspect_coco(where: str, data: Record, metadata: Metadata, use: Use) -> Contents:
    """As :func:`inspect_coco_file`, of what a file holds."""
    faults = Faults(where)
    _check_lists(data, use, faults)
    faults.refuse()
    classes = _classes(data["categories"], faults)
    images = _images(data["images"], faults)
    faults.refuse()  # annotations are looked up in both
    _check_registered(metadata, classes, faults)

    contents = Contents(list(classes.values()), objects=None)
    found = _Annotations(images, classes, use, faults)
    if "annotations" in data:
        # As detectron2: files of this name are known to repeat ids.
        found.check(data["annotations"], may_repeat_ids="minival" in str(metadata.json_file))
        contents.objects = found.objects
        contents.notes += found.notes()
        faults.refuse()
        if use.evaluation and (gaps := describe_gaps(data["annotations"])):
            contents.notes.append(gaps)
    else:
        contents.notes.append("it has no 'annotations': detections are written, and not scored")
    faults.refuse()
    reads_all = use.evaluation or not use.skips_empty
    contents.images = [
        ImageFile(
            os.path.join(metadata.image_root, image["file_name"]), image["width"], image["height"]
        )
        for key, image in images.items()
        if reads_all or key in found.with_objects
    ]
    return contents


def read_annotation_file(path: str) -> Record:
    """What a JSON file holds.

    Raises:
        ValueError: it is no JSON, or another thing than an object.
    """
    with PathManager.open(path, "r") as f, _no_garbage_collection():
        try:
            data = json.load(f)
        except (ValueError, RecursionError) as error:  # of the encoding, too
            raise ValueError(f"'{path}' is truncated or no JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(
            f"'{path}' holds a {type(data).__name__}; allowed: an object with 'images', "
            "'annotations' and 'categories', as in COCO"
        )
    return data


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The collector looks at millions of new objects again and again, a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_lists(data: Record, use: Use, faults: Faults) -> None:
    needed = ["images", "categories"]
    if use.training or "annotations" in data:  # the files of COCO's test server have none
        needed.append("annotations")
    for key in needed:
        if not isinstance(data.get(key), list):
            found = f"is a {type(data[key]).__name__}" if key in data else "is missing"
            faults.add(f"'{key}' {found}; allowed: a list, as in COCO")
        elif not data[key] and key != "annotations":
            faults.add(f"'{key}' is empty; allowed: one or more")


def _classes(categories: list[Record], faults: Faults) -> dict[Any, str]:
    """Names by id, in the order of the ids, in which detectron2 numbers them."""
    classes: dict[Any, str] = {}
    for index, category in enumerate(categories):
        if lacks := _lacks(category, ("id", "name")):
            faults.add(f"entry {index} of 'categories' {lacks}")
        elif category["id"] in classes:
            names = f"{classes[category['id']]!r} and {category['name']!r}"
            faults.add(f"category id {category['id']!r} stands for {names}; allowed: one class")
        else:
            classes[category["id"]] = category["name"]
    _check_sortable("categories", classes, faults)
    faults.refuse()
    return dict(sorted(classes.items(), key=lambda item: item[0]))


def _images(records: list[Record], faults: Faults) -> dict[Any, Record]:
    """Images by id."""
    images: dict[Any, Record] = {}
    for index, image in enumerate(records):
        if lacks := _lacks(image, ("id", "file_name", "height", "width")):
            faults.add(f"{_name(image, index, 'images')} {lacks}")
            continue
        size = [image["width"], image["height"]]
        if not are_coordinates(size) or min(size) <= 0:
            faults.add(
                f"{_name(image, index, 'images')} is {size[0]!r} x {size[1]!r} pixels; allowed: "
                "numbers above 0"
            )
        before = images.setdefault(image["id"], image)
        if before["file_name"] != image["file_name"]:
            faults.add(
                f"image id {image['id']!r} stands for '{before['file_name']}' and "
                f"'{image['file_name']}'; allowed: one image"
            )
    _check_sortable("images", images, faults)
    return images


def _check_sortable(key: str, by_id: Mapping[Any, Any], faults: Faults) -> None:
    if len({isinstance(x, str) for x in by_id}) > 1:
        faults.add(f"ids of '{key}' are numbers and words; allowed: one kind")


def _check_registered(metadata: Metadata, classes: Mapping[Any, str], faults: Faults) -> None:
    """detectron2 stops at metadata that change, and says neither what nor why."""
    names = list(classes.values())
    registered = list(metadata.get("thing_classes", names))
    if registered != names:
        faults.add(
            f"its classes, in the order of their ids, are {names}, and it is registered with "
            f"{registered}; allowed: the same names in the same order (a config registers its "
            "DATASETS.CLASS_NAMES, too)"
        )
    numbers = {key: i for i, key in enumerate(classes)}
    ids = metadata.get("thing_dataset_id_to_contiguous_id", numbers)
    if ids != numbers:
        faults.add(
            f"the ids of its categories are {list(numbers)}, and it is registered with the ids "
            f"{list(ids)}; allowed: the same"
        )


def _lacks(record: Any, keys: tuple[str, ...]) -> str:
    """What a record has not: a part of a sentence, empty if it has all."""
    if not isinstance(record, dict):
        return f"is {record!r:.60}; allowed: an object with {', '.join(map(repr, keys))}"
    missing = [repr(key) for key in keys if key not in record]
    if missing:
        return f"has no {', '.join(missing)}, which detectron2 needs"
    for key in ("id", "image_id", "category_id"):
        if key in keys and not isinstance(record[key], (int, float, str)):
            return f"has {key!r} {record[key]!r:.60}; allowed: a number or a word"
    if "file_name" in keys and not isinstance(record["file_name"], str):
        return f"has 'file_name' {record['file_name']!r:.60}; allowed: a path"
    return ""


def _name(record: Any, index: int, key: str) -> str:
    """A record as messages name it."""
    if not isinstance(record, dict) or "id" not in record:
        return f"entry {index} of '{key}'"
    more = f" ('{record['file_name']}')" if "file_name" in record else ""
    return f"{key.removesuffix('s')} {record['id']!r}{more}"


def _has_area(box: Sequence[float], image: Record) -> bool:
    """Whether a box, XYWH, covers some of its image."""
    x, y, width, height = box
    inside = (
        min(x + width, image["width"]) - max(x, 0),
        min(y + height, image["height"]) - max(y, 0),
    )
    return min(inside) > 0


class _Annotations:
    """The pass over the annotations."""

    def __init__(
        self, images: Mapping[Any, Record], classes: Mapping[Any, str], use: Use, faults: Faults
    ) -> None:
        self._images = images
        self._classes = classes
        self._use = use
        self._faults = faults
        self._strays: list[str] = []
        self._without_area: list[str] = []
        self.objects = 0
        self.with_objects: set[Any] = set()  # ids of images

    def check(self, annotations: list[Record], may_repeat_ids: bool) -> None:
        """Collect faults, count objects that are no crowd, and note whose they are."""
        ids = set()
        for index, annotation in enumerate(annotations):
            fault = _lacks(annotation, ("id", "image_id", "category_id", "bbox"))
            if not fault and annotation["image_id"] not in self._images:
                self._strays.append(_name(annotation, index, "annotations"))
                continue
            fault = fault or self._fault(annotation)
            if not fault and annotation["id"] in ids and not may_repeat_ids:
                fault = "is not the first of that id; allowed: ids that differ"
            if fault:
                image = annotation.get("image_id") if isinstance(annotation, dict) else None
                of = f" of image {image!r}" if image is not None else ""
                self._faults.add(f"{_name(annotation, index, 'annotations')}{of} {fault}")
                continue
            ids.add(annotation["id"])
            if not annotation.get("iscrowd", 0):
                if not _has_area(annotation["bbox"], self._images[annotation["image_id"]]):
                    self._without_area.append(_name(annotation, index, "annotations"))
                self.objects += 1
                self.with_objects.add(annotation["image_id"])

    def notes(self) -> list[str]:
        """What is legitimate, and yet worth a word."""
        kinds = {
            "that belong to no image of the file and are left out": self._strays,
            "without area in their image, which training leaves out and the evaluation counts as "
            "missed": self._without_area,
        }
        return [
            f"annotations {what}: {len(found):,}, the first is {found[0]}"
            for what, found in kinds.items()
            if found
        ]

    def _fault(self, annotation: Record) -> str:
        if annotation["category_id"] not in self._classes:
            known = ", ".join(map(repr, list(self._classes)[:20]))
            return f"has category_id {annotation['category_id']!r}; allowed: the ids {known}"
        if annotation.get("ignore", 0) != 0:
            return f"has 'ignore' {annotation['ignore']!r}; allowed: 0 (detectron2 takes no other)"
        if annotation.get("iscrowd", 0) not in (0, 1):
            return f"has 'iscrowd' {annotation['iscrowd']!r}; allowed: 0 and 1"
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not are_coordinates(box):
            return f"has bbox {box!r:.100}; allowed: [x, y, width, height], {COORDINATES}"
        area = annotation.get("area", 0)
        if self._use.evaluation and not (isinstance(area, (int, float)) and math.isfinite(area)):
            return f"has area {area!r:.60}; allowed: a finite number"
        return self._mask_fault(annotation) or self._keypoint_fault(annotation)

    def _mask_fault(self, annotation: Record) -> str:
        mask, mask_format = annotation.get("segmentation"), self._use.mask_format
        is_crowd = bool(annotation.get("iscrowd", 0))  # training leaves them out
        if not mask:
            needed = mask_format and (self._use.evaluation or not is_crowd)
            return "has no 'segmentation', which MODEL.MASK_ON True needs" if needed else ""
        if isinstance(mask, dict):
            if not {"counts", "size"} <= mask.keys():
                return "has a 'segmentation' without 'counts' and 'size', which an RLE needs"
            if mask_format == "polygon" and self._use.training and not is_crowd:
                return (
                    "has an RLE as 'segmentation' and INPUT.MASK_FORMAT is 'polygon'; "
                    "allowed: polygons, or INPUT.MASK_FORMAT 'bitmask'"
                )
            image = self._images[annotation["image_id"]]
            size = [image["height"], image["width"]]
            if mask_format and list(mask["size"]) != size:
                return f"has an RLE of (height, width) {mask['size']}; its image has {size}"
            return ""
        if not isinstance(mask, list) or not all(isinstance(x, list) for x in mask):
            return f"has 'segmentation' {mask!r:.60}; allowed: a list of polygons, or an RLE"
        if mask_format and not all(map(are_coordinates, mask)):
            return f"has a polygon with other values than {COORDINATES}"
        return ""

    def _keypoint_fault(self, annotation: Record) -> str:
        if not self._use.keypoints or (annotation.get("iscrowd", 0) and not self._use.evaluation):
            return ""
        points = annotation.get("keypoints")
        if not (points and isinstance(points, list) and are_coordinates(points)) or (
            len(points) % 3
        ):
            return f"has keypoints {points!r:.60}; allowed: x, y, visibility of each, {COORDINATES}"
        return ""
