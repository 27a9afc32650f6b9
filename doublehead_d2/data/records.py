"""Data sets from a function of the user's own, in detectron2's format."""

from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from doublehead_d2.data import kinds
from doublehead_d2.data.census import judge_box
from doublehead_d2.data.findings import (
    COORDINATES,
    Contents,
    Findings,
    ImageFile,
    Use,
    are_coordinates,
    kind_of_box,
)
from doublehead_d2.data.kinds import Kind

Record = dict[str, Any]


def inspect_records(name: str, use: Use, findings: Findings) -> Contents:
    """Look at what the function gives. What it leaves out may be meant for a mapper of its own.

    Args:
        name: of the data set.
        use: what is done with it.
        findings: what is found is added to them.

    Raises:
        ValueError: the function fails, or names the first faults: the record, its value and what
            is allowed.
    """
    try:
        records = DatasetCatalog.get(name)
    except Exception as error:
        problem = f"it cannot be loaded: {type(error).__name__}: {error}"
        findings.add(kinds.BROKEN_FILE, problem)
        raise ValueError(f"{findings.where}: {problem}") from error
    contents = Contents(list(MetadataCatalog.get(name).get("thing_classes", [])), objects=None)
    if not isinstance(records, list):  # detectron2 also takes data sets of torch
        return contents
    if not records:
        findings.add(kinds.NOT_THE_LAYOUT, "it is empty; allowed: one image or more")
    for record in records:
        count = 0
        for annotation in record.get("annotations", ()):
            if fault := _fault(annotation, len(contents.classes)):
                findings.add(fault[0], f"an object of {_name(record)} has {fault[1]}")
            else:
                _judge(annotation, record, contents, findings)
            count += not annotation.get("iscrowd", 0)
        if "annotations" in record:
            contents.objects = (contents.objects or 0) + count
        size = record.get("width"), record.get("height")
        if findings.reports and None not in size:
            contents.census.count_image(_key(record), _name(record), *size)
        if "file_name" in record and (count or use.evaluation or not use.skips_empty):
            contents.images.append(ImageFile(record["file_name"], *size))
    findings.refuse()
    return contents


def _fault(annotation: Record, num_classes: int) -> tuple[Kind, str] | None:
    box, class_id = annotation.get("bbox"), annotation.get("category_id")
    if box is not None and not are_coordinates(box):
        return kind_of_box(box), f"bbox {box!r:.100}; allowed: {COORDINATES}"
    if num_classes and isinstance(class_id, (int, np.integer)) and not 0 <= class_id < num_classes:
        allowed = f"0 to {num_classes - 1}, as 'thing_classes' say"
        return kinds.UNKNOWN_CATEGORY, f"category_id {class_id}; allowed: {allowed}"
    return None


def _judge(annotation: Record, record: Record, contents: Contents, findings: Findings) -> None:
    """Judge and count an object, if it is one of detectron2's standard form."""
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    width, height = record.get("width"), record.get("height")
    if box is None or len(box) != 4 or mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return
    if width is None or height is None:
        return
    if not isinstance(annotation.get("category_id"), (int, np.integer)):
        return
    box = BoxMode.convert([float(x) for x in box], BoxMode(mode), BoxMode.XYXY_ABS)
    is_crowd = bool(annotation.get("iscrowd", 0))
    found = [] if is_crowd else [judge_box(box, width, height)]
    if findings.reports:
        index = int(annotation["category_id"])
        found.append(contents.census.count(_key(record), index, box, is_crowd=is_crowd))
    for kind in filter(None, found):
        findings.add(kind, f"an object of {_name(record)}")


def _key(record: Record) -> Any:
    return record.get("image_id", record.get("file_name"))


def _name(record: Record) -> str:
    return (
        f"'{record['file_name']}'" if "file_name" in record else f"image {record.get('image_id')}"
    )
