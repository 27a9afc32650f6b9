"""Annotation files in COCO's format: all that detectron2 or pycocotools would stumble over."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from doublehead_d2.data import kinds
from doublehead_d2.data.coco_annotations import CocoAnnotations, lacks, name_of
from doublehead_d2.data.coco_gaps import describe_gaps
from doublehead_d2.data.findings import (
    Contents,
    FaultError,
    Findings,
    ImageFile,
    Use,
    are_coordinates,
)

Record = dict[str, Any]


def inspect_coco_file(metadata: Metadata, use: Use, findings: Findings) -> Contents:
    """Look at all that a COCO file says, in one pass.

    Args:
        metadata: of a data set that `register_coco_instances` has registered.
        use: what is done with it.
        findings: what is found is added to them.

    Raises:
        ValueError: names the first faults: the record, its value and what is allowed.
    """
    return inspect_coco(read_annotation_file(metadata.json_file), metadata, use, findings)


def inspect_coco(data: Record, metadata: Metadata, use: Use, findings: Findings) -> Contents:
    """As :func:`inspect_coco_file`, of what a file holds."""
    _check_lists(data, use, findings)
    findings.stop()
    classes = _classes(data["categories"], findings)
    images, unknown = _images(data["images"], findings)
    findings.refuse()  # annotations are looked up in both
    _check_registered(metadata, classes, findings)

    contents = Contents(list(classes.values()), objects=None)
    if findings.reports:
        for key, image in images.items():
            contents.census.count_image(key, image["file_name"], image["width"], image["height"])
    found = CocoAnnotations(images, classes, use, findings, contents.census)
    if "annotations" in data:
        # As detectron2: files of this name are known to repeat ids.
        may_repeat_ids = "minival" in str(metadata.json_file)
        found.check(data["annotations"], may_repeat_ids=may_repeat_ids, unknown=unknown)
        contents.objects = found.objects
        findings.refuse()
        # A report goes on where they are at fault.
        sound = [x for x in data["annotations"] if isinstance(x, dict) and "id" in x]
        if use.evaluation and (gaps := describe_gaps(sound)):
            findings.add(kinds.GAPS, gaps)
    else:
        findings.add(kinds.NOT_ANNOTATED, f"'{metadata.json_file}'")
    findings.refuse()
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
        FaultError: it is no JSON, or another thing than an object.
    """
    with PathManager.open(path, "r") as f, _no_garbage_collection():
        try:
            data = json.load(f)
        except (ValueError, RecursionError) as error:  # of the encoding, too
            raise FaultError(
                kinds.BROKEN_FILE, f"'{path}' is truncated or no JSON: {error}"
            ) from None
    if not isinstance(data, dict):
        raise FaultError(
            kinds.NOT_THE_LAYOUT,
            f"'{path}' holds a {type(data).__name__}; allowed: an object with 'images', "
            "'annotations' and 'categories', as in COCO",
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


def _check_lists(data: Record, use: Use, findings: Findings) -> None:
    needed = ["images", "categories"]
    if use.training or "annotations" in data:  # the files of COCO's test server have none
        needed.append("annotations")
    for key in needed:
        if not isinstance(data.get(key), list):
            found = f"is a {type(data[key]).__name__}" if key in data else "is missing"
            findings.add(kinds.NOT_THE_LAYOUT, f"'{key}' {found}; allowed: a list, as in COCO")
        elif not data[key] and key != "annotations":
            findings.add(kinds.NOT_THE_LAYOUT, f"'{key}' is empty; allowed: one or more")


def _classes(categories: list[Record], findings: Findings) -> dict[Any, str]:
    """Names by id, in the order of the ids, in which detectron2 numbers them."""
    classes: dict[Any, str] = {}
    for index, category in enumerate(categories):
        if problem := lacks(category, ("id", "name")):
            findings.add(kinds.BROKEN_RECORD, f"entry {index} of 'categories' {problem}")
            if not lacks(category, ("id",)):  # its objects are not at fault, too
                classes.setdefault(category["id"], f"entry {index}")
        elif category["id"] in classes:
            names = f"{classes[category['id']]!r} and {category['name']!r}"
            findings.add(
                kinds.REPEATED_CATEGORY,
                f"category id {category['id']!r} stands for {names}; allowed: one class",
            )
        else:
            classes[category["id"]] = category["name"]
    _check_sortable("categories", classes, findings)
    findings.refuse()
    # Words after numbers, which is a fault above
    return dict(sorted(classes.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _images(records: list[Record], findings: Findings) -> tuple[dict[Any, Record], set[Any]]:
    """Images by id, and the ids of those that are at fault."""
    images: dict[Any, Record] = {}
    unknown = set()
    for index, image in enumerate(records):
        name = name_of(image, index, "images")
        if problem := lacks(image, ("id", "file_name", "height", "width")):
            findings.add(kinds.BROKEN_RECORD, f"{name} {problem}")
            key = image.get("id") if isinstance(image, dict) else None
            unknown.add(key if isinstance(key, (int, float, str)) else None)
            continue
        size = [image["width"], image["height"]]
        if not are_coordinates(size) or min(size) <= 0:
            findings.add(
                kinds.NO_IMAGE_SIZE,
                f"{name} is {size[0]!r} x {size[1]!r} pixels; allowed: numbers above 0",
            )
            unknown.add(image["id"])
            continue
        before = images.setdefault(image["id"], image)
        if before["file_name"] != image["file_name"]:
            findings.add(
                kinds.REPEATED_IMAGE_ID,
                f"image id {image['id']!r} stands for '{before['file_name']}' and "
                f"'{image['file_name']}'; allowed: one image",
            )
        elif before is not image:
            findings.add(kinds.REPEATED_IMAGE_RECORD, name)
    _check_sortable("images", images, findings)
    return images, unknown


def _check_sortable(key: str, by_id: Mapping[Any, Any], findings: Findings) -> None:
    if len({isinstance(x, str) for x in by_id}) > 1:
        findings.add(
            kinds.BROKEN_RECORD, f"ids of '{key}' are numbers and words; allowed: one kind"
        )


def _check_registered(metadata: Metadata, classes: Mapping[Any, str], findings: Findings) -> None:
    """detectron2 stops at metadata that change, and says neither what nor why."""
    names = list(classes.values())
    registered = list(metadata.get("thing_classes", names))
    if registered != names:
        findings.add(
            kinds.OTHER_CLASSES,
            f"its classes, in the order of their ids, are {names}, and it is registered with "
            f"{registered}; allowed: the same names in the same order (a config registers its "
            "DATASETS.CLASS_NAMES, too)",
        )
    numbers = {key: i for i, key in enumerate(classes)}
    ids = metadata.get("thing_dataset_id_to_contiguous_id", numbers)
    if ids != numbers:
        findings.add(
            kinds.OTHER_CLASSES,
            f"the ids of its categories are {list(numbers)}, and it is registered with the ids "
            f"{list(ids)}; allowed: the same",
        )
