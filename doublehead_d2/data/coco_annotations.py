"""Annotations of COCO files: all that detectron2 or pycocotools would stumble over."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from doublehead_d2.data import kinds
from doublehead_d2.data.census import Census, judge_box
from doublehead_d2.data.findings import (
    COORDINATES,
    Findings,
    Use,
    are_coordinates,
    kind_of_box,
)
from doublehead_d2.data.kinds import Kind

Record = dict[str, Any]
Fault = tuple[Kind, str]  # and the rest of the sentence that the record begins


class CocoAnnotations:
    """The pass over the annotations."""

    def __init__(
        self,
        images: Mapping[Any, Record],
        classes: Mapping[Any, str],
        use: Use,
        findings: Findings,
        census: Census,
    ) -> None:
        """
        Args:
            images: by id.
            classes: names by id, in detectron2's order.
            use: what is done with the data set.
            findings: what is found is added to them.
            census: objects are counted there if `findings` are for a report.
        """
        self._images = images
        self._classes = classes
        self._use = use
        self._findings = findings
        self._census = census
        self._indices = {key: index for index, key in enumerate(classes)}
        self.objects = 0
        self.with_objects: set[Any] = set()  # ids of images

    def check(
        self, annotations: list[Record], *, may_repeat_ids: bool, unknown: Collection[Any] = ()
    ) -> None:
        """Collect faults, count objects that are no crowd, and note whose they are.

        Args:
            annotations: all of the file.
            may_repeat_ids: ids need not differ.
            unknown: ids of images that are at fault, whose annotations nobody can judge.
        """
        ids = set()
        for index, annotation in enumerate(annotations):
            problem = lacks(annotation, ("id", "image_id", "category_id", "bbox"))
            fault = (kinds.BROKEN_RECORD, problem) if problem else None
            if not fault and annotation["image_id"] in unknown:
                continue
            if not fault and annotation["image_id"] not in self._images:
                self._findings.add(kinds.ORPHAN, name_of(annotation, index, "annotations"))
                continue
            fault = fault or self._fault(annotation)
            if not fault and annotation["id"] in ids and not may_repeat_ids:
                fault = (kinds.REPEATED_ID, "is not the first of that id; allowed: ids that differ")
            if fault:
                kind, what = fault
                image = annotation.get("image_id") if isinstance(annotation, dict) else None
                of = f" of image {image!r}" if image is not None else ""
                self._findings.add(kind, f"{name_of(annotation, index, 'annotations')}{of} {what}")
                continue
            ids.add(annotation["id"])
            self._take(annotation, index)

    def _take(self, annotation: Record, index: int) -> None:
        """Judge the box, and count the object."""
        is_crowd = bool(annotation.get("iscrowd", 0))
        key = annotation["image_id"]
        x, y, width, height = annotation["bbox"]
        box, image = (x, y, x + width, y + height), self._images[key]
        found = []
        if not is_crowd:  # crowds are not trained on
            self.objects += 1
            self.with_objects.add(key)
            found.append(judge_box(box, image["width"], image["height"]))
        if self._findings.reports:
            class_index = self._indices[annotation["category_id"]]
            found.append(self._census.count(key, class_index, box, is_crowd=is_crowd))
        for kind in filter(None, found):
            name = name_of(annotation, index, "annotations")
            self._findings.add(kind, f"{name} of image {key!r}, {annotation['bbox']}")

    def _fault(self, annotation: Record) -> Fault | None:
        if annotation["category_id"] not in self._classes:
            known = ", ".join(map(repr, list(self._classes)[:20]))
            number = annotation["category_id"]
            return kinds.UNKNOWN_CATEGORY, f"has category_id {number!r}; allowed: the ids {known}"
        box = annotation["bbox"]
        problem = ""
        if annotation.get("ignore", 0) != 0:
            problem = (
                f"has 'ignore' {annotation['ignore']!r}; allowed: 0 (detectron2 takes no other)"
            )
        elif annotation.get("iscrowd", 0) not in (0, 1):
            problem = f"has 'iscrowd' {annotation['iscrowd']!r}; allowed: 0 and 1"
        elif not isinstance(box, list) or len(box) != 4 or not are_coordinates(box):
            allowed = f"[x, y, width, height], {COORDINATES}"
            return kind_of_box(box), f"has bbox {box!r:.100}; allowed: {allowed}"
        else:
            area = annotation.get("area", 0)
            is_number = isinstance(area, (int, float)) and math.isfinite(area)
            if self._use.evaluation and not is_number:
                problem = f"has area {area!r:.60}; allowed: a finite number"
        if problem:
            return kinds.BROKEN_RECORD, problem
        if problem := self._mask_fault(annotation):
            return kinds.BAD_MASK, problem
        problem = self._keypoint_fault(annotation)
        return (kinds.BAD_KEYPOINTS, problem) if problem else None

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


def lacks(record: Any, keys: tuple[str, ...]) -> str:
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


def name_of(record: Any, index: int, key: str) -> str:
    """A record as messages name it."""
    if not isinstance(record, dict) or "id" not in record:
        return f"entry {index} of '{key}'"
    more = f" ('{record['file_name']}')" if "file_name" in record else ""
    return f"{key.removesuffix('s')} {record['id']!r}{more}"
