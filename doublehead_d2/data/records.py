"""Data sets from a function of the user's own, in detectron2's format."""

from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from doublehead_d2.data.findings import (
    COORDINATES,
    Contents,
    Faults,
    ImageFile,
    Use,
    are_coordinates,
)

Record = dict[str, Any]


def inspect_records(where: str, name: str, use: Use) -> Contents:
    """Look at what the function gives. What it leaves out may be meant for a mapper of its own.

    Args:
        where: how messages begin.
        name: of the data set.
        use: what is done with it.

    Raises:
        ValueError: the function fails, or names the first faults: the record, its value and what
            is allowed.
    """
    try:
        records = DatasetCatalog.get(name)
    except Exception as error:
        raise ValueError(
            f"{where}: it cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    contents = Contents(list(MetadataCatalog.get(name).get("thing_classes", [])), objects=None)
    if not isinstance(records, list):  # detectron2 also takes data sets of torch
        return contents
    faults = Faults(where)
    if not records:
        faults.add("it is empty; allowed: one image or more")
    for record in records:
        count = 0
        for annotation in record.get("annotations", ()):
            if fault := _fault(annotation, len(contents.classes)):
                faults.add(f"an object of {_name(record)} has {fault}")
            count += not annotation.get("iscrowd", 0)
        if "annotations" in record:
            contents.objects = (contents.objects or 0) + count
        if "file_name" in record and (count or use.evaluation or not use.skips_empty):
            size = record.get("width"), record.get("height")
            contents.images.append(ImageFile(record["file_name"], *size))
    faults.refuse()
    return contents


def _fault(annotation: Record, num_classes: int) -> str:
    box, class_id = annotation.get("bbox"), annotation.get("category_id")
    if box is not None and not are_coordinates(box):
        return f"bbox {box!r:.100}; allowed: {COORDINATES}"
    if num_classes and isinstance(class_id, (int, np.integer)) and not 0 <= class_id < num_classes:
        return f"category_id {class_id}; allowed: 0 to {num_classes - 1}, as 'thing_classes' say"
    return ""


def _name(record: Record) -> str:
    return (
        f"'{record['file_name']}'" if "file_name" in record else f"image {record.get('image_id')}"
    )
