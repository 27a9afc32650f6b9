"""Annotations in Pascal VOC's layout: all that detectron2's loader or evaluator stumbles over."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from doublehead_d2.data import kinds
from doublehead_d2.data.census import Census, judge_box
from doublehead_d2.data.findings import (
    COORDINATES,
    Contents,
    FaultError,
    Findings,
    ImageFile,
    Use,
    are_coordinates,
    kind_of_box,
)

CORNERS = ("xmin", "ymin", "xmax", "ymax")
YEARS = (2007, 2012)  # that detectron2's evaluator knows
# The average precision of a class that is not in the data
UNSEEN = {2007: "0", 2012: "0, or nan once it is detected"}


class VocObject(NamedTuple):
    """An object of an annotation file."""

    name: str  # of its class
    is_difficult: bool  # marked so, where the metric looks at it
    box: list[float]  # XYXY, absolute, as detectron2 reads it


def inspect_voc_files(metadata: Metadata, use: Use, findings: Findings) -> Contents:
    """Look at the list of images and at the annotation of each.

    Args:
        metadata: of a data set that `register_pascal_voc` has registered.
        use: what is done with it.
        findings: what is found is added to them.

    Raises:
        ValueError: names the first faults: the file, its value and what is allowed.
    """
    is_scored = use.evaluation == "pascal_voc"
    if is_scored and metadata.year not in YEARS:
        allowed = " and ".join(map(str, YEARS))
        findings.add(
            kinds.NOT_THE_LAYOUT,
            f"it is registered with the year {metadata.year}; allowed: {allowed}",
        )
    contents = Contents(list(metadata.thing_classes))
    seen: set[str] = set()
    for image_id in _image_ids(metadata, is_scored, findings):
        path = os.path.join(metadata.dirname, "Annotations", f"{image_id}.xml")
        try:
            (width, height), objects = _read_file(path, contents.classes, is_scored)
        except FaultError as error:
            findings.add(error.kind, f"'{path}': {error}")
            continue
        seen.update(x.name for x in objects if not x.is_difficult)
        # The metric leaves out what is difficult; without it, no object is told to be.
        counted = sum(not x.is_difficult for x in objects)
        contents.objects = (contents.objects or 0) + counted
        for x in objects:
            if kind := judge_box(x.box, width, height):
                findings.add(kind, f"'{path}'")
        if findings.reports:
            contents.census.count_image(path, image_id, width, height)
            _count(objects, path, contents.classes, contents.census, findings)
        if objects or use.evaluation or not use.skips_empty:
            image = os.path.join(metadata.dirname, "JPEGImages", f"{image_id}.jpg")
            contents.images.append(ImageFile(image, width, height))
    findings.refuse()
    if is_scored and seen and (unseen := [x for x in contents.classes if x not in seen]):
        findings.add(
            kinds.CLASS_NOT_SCORED,
            f"it has no object of {unseen}: VOC's metric gives each of them AP "
            f"{UNSEEN[metadata.year]}, and that goes into the mean",
        )
    return contents


def _count(
    objects: Sequence[VocObject],
    path: str,
    classes: Sequence[str],
    census: Census,
    findings: Findings,
) -> None:
    for x in objects:
        class_index = classes.index(x.name)
        if kind := census.count(path, class_index, x.box):
            findings.add(kind, f"'{path}'")


def _image_ids(metadata: Metadata, is_scored: bool, findings: Findings) -> list[str]:
    """The images of the list, read as strictly as detectron2 does."""
    path = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
    with PathManager.open(path) as f:
        lines = f.read().splitlines()
    problems = []
    # The loader skips empty lines; the evaluator looks for a file without a name.
    if is_scored and (empty := [i for i, line in enumerate(lines, 1) if not line.strip()]):
        problems.append(f"line {empty[0]} is empty; allowed: an image in each line")
    ids = [line.strip() for line in lines if line.strip()]
    if len(ids) == 1:
        problems.append("has one line; allowed: two or more, since detectron2 reads no less")
    for line in ids:
        if len(line.split()) > 1:
            problems.append(f"has the line {line!r}; allowed: the name of an image alone")
    for problem in problems:
        colon = ":" if problem.startswith("line") else ""
        findings.add(kinds.NOT_THE_LAYOUT, f"'{path}'{colon} {problem}")
    findings.refuse()
    return [line for line in ids if len(line.split()) == 1]


def _read_file(
    path: str, classes: Sequence[str], is_scored: bool
) -> tuple[tuple[int, int], list[VocObject]]:
    """Width and height of an image, and its objects.

    Raises:
        FaultError: says what is wrong with the file.
    """
    try:
        with PathManager.open(path) as f:
            root = ET.parse(f).getroot()
    except OSError as error:
        raise FaultError(kinds.BROKEN_FILE, str(error.strerror)) from None
    except (ET.ParseError, ValueError) as error:  # of the encoding, too
        raise FaultError(kinds.BROKEN_FILE, str(error)) from None
    sides = [_text(root, f"size/{side}") for side in ("width", "height")]
    try:
        width, height = map(int, sides)
    except ValueError as error:
        raise FaultError(kinds.NO_IMAGE_SIZE, str(error)) from None
    return (width, height), [_read(x, classes, is_scored) for x in root.findall("object")]


def _read(element: ET.Element, classes: Sequence[str], is_scored: bool) -> VocObject:
    """An object.

    Raises:
        FaultError: says what is wrong with it.
    """
    name = _text(element, "name")
    if name not in classes:
        raise FaultError(
            kinds.UNKNOWN_CATEGORY, f"an object is of class {name!r}; allowed: {list(classes)}"
        )
    texts = [_text(element, f"bndbox/{corner}") for corner in CORNERS]
    kind = int if is_scored else float  # the evaluator takes no fractions
    try:
        box = [kind(text) for text in texts]
    except ValueError:
        allowed = f"whole {COORDINATES.removeprefix('finite ')}" if is_scored else COORDINATES
        raise FaultError(
            kinds.NO_BOX, f"an object has the box {texts}; allowed: {allowed}"
        ) from None
    if not are_coordinates(box):
        raise FaultError(kind_of_box(box), f"an object has the box {texts}; allowed: {COORDINATES}")
    # Pixels are counted from 1, and both borders belong to the box.
    box = [box[0] - 1, box[1] - 1, box[2], box[3]]
    if not is_scored:
        return VocObject(name, False, box)
    _text(element, "pose")
    for flag in ("truncated", "difficult"):
        if (text := _text(element, flag)).strip() not in ("0", "1"):
            raise FaultError(
                kinds.BROKEN_RECORD, f"an object has <{flag}> {text!r}; allowed: 0 and 1"
            )
    return VocObject(name, _text(element, "difficult").strip() == "1", box)


def _text(element: ET.Element, path: str) -> str:
    found = element.find(path)
    if found is None:
        what = "an object" if element.tag == "object" else "it"
        missing = f"<{path.replace('/', '><')}>"
        raise FaultError(kinds.BROKEN_RECORD, f"{what} has no {missing}, which detectron2 needs")
    return found.text or ""
