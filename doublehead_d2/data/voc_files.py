"""Annotations in Pascal VOC's layout: all that detectron2's loader or evaluator stumbles over."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from doublehead_d2.data.findings import (
    COORDINATES,
    Contents,
    Faults,
    ImageFile,
    Use,
    are_coordinates,
)

CORNERS = ("xmin", "ymin", "xmax", "ymax")
YEARS = (2007, 2012)  # that detectron2's evaluator knows
# The average precision of a class that is not in the data
UNSEEN = {2007: "0", 2012: "0, or nan once it is detected"}


def inspect_voc_files(where: str, metadata: Metadata, use: Use) -> Contents:
    """Look at the list of images and at the annotation of each.

    Args:
        where: how messages begin.
        metadata: of a data set that `register_pascal_voc` has registered.
        use: what is done with it.

    Raises:
        ValueError: names the first faults: the file, its value and what is allowed.
    """
    faults = Faults(where)
    is_scored = use.evaluation == "pascal_voc"
    if is_scored and metadata.year not in YEARS:
        allowed = " and ".join(map(str, YEARS))
        faults.add(f"it is registered with the year {metadata.year}; allowed: {allowed}")
    contents = Contents(list(metadata.thing_classes))
    seen: set[str] = set()
    for image_id in _image_ids(metadata, is_scored, faults):
        path = os.path.join(metadata.dirname, "Annotations", f"{image_id}.xml")
        try:
            with PathManager.open(path) as f:
                root = ET.parse(f).getroot()
            width, height = (int(_text(root, f"size/{side}")) for side in ("width", "height"))
            objects = [_read(x, contents.classes, is_scored) for x in root.findall("object")]
        except OSError as error:
            faults.add(f"'{path}': {error.strerror}")
            continue
        except (ET.ParseError, ValueError) as error:  # of the encoding, too
            faults.add(f"'{path}': {error}")
            continue
        seen.update(name for name, is_difficult in objects if not is_difficult)
        # The metric leaves out what is difficult; without it, no object is told to be.
        counted = sum(not is_difficult for _, is_difficult in objects)
        contents.objects = (contents.objects or 0) + counted
        if objects or use.evaluation or not use.skips_empty:
            image = os.path.join(metadata.dirname, "JPEGImages", f"{image_id}.jpg")
            contents.images.append(ImageFile(image, width, height))
    faults.refuse()
    if is_scored and seen and (unseen := [x for x in contents.classes if x not in seen]):
        contents.notes.append(
            f"it has no object of {unseen}: VOC's metric gives each of them AP "
            f"{UNSEEN[metadata.year]}, and that goes into the mean"
        )
    return contents


def _image_ids(metadata: Metadata, is_scored: bool, faults: Faults) -> list[str]:
    """The images of the list, read as strictly as detectron2 does."""
    path = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
    with PathManager.open(path) as f:
        lines = f.read().splitlines()
    # The loader skips empty lines; the evaluator looks for a file without a name.
    if is_scored and (empty := [i for i, line in enumerate(lines, 1) if not line.strip()]):
        faults.add(f"'{path}': line {empty[0]} is empty; allowed: an image in each line")
    ids = [line.strip() for line in lines if line.strip()]
    if len(ids) == 1:
        faults.add(f"'{path}' has one line; allowed: two or more, since detectron2 reads no less")
    for line in ids:
        if len(line.split()) > 1:
            faults.add(f"'{path}' has the line {line!r}; allowed: the name of an image alone")
    faults.refuse()
    return ids


def _read(element: ET.Element, classes: Sequence[str], is_scored: bool) -> tuple[str, bool]:
    """An object's class, and whether it is marked as difficult.

    Raises:
        ValueError: says what is wrong with it.
    """
    name = _text(element, "name")
    if name not in classes:
        raise ValueError(f"an object is of class {name!r}; allowed: {list(classes)}")
    texts = [_text(element, f"bndbox/{corner}") for corner in CORNERS]
    kind = int if is_scored else float  # the evaluator takes no fractions
    try:
        box = [kind(text) for text in texts]
    except ValueError:
        allowed = f"whole {COORDINATES.removeprefix('finite ')}" if is_scored else COORDINATES
        raise ValueError(f"an object has the box {texts}; allowed: {allowed}") from None
    if not are_coordinates(box):
        raise ValueError(f"an object has the box {texts}; allowed: {COORDINATES}")
    if not is_scored:
        return name, False
    _text(element, "pose")
    for flag in ("truncated", "difficult"):
        if (text := _text(element, flag)).strip() not in ("0", "1"):
            raise ValueError(f"an object has <{flag}> {text!r}; allowed: 0 and 1")
    return name, _text(element, "difficult").strip() == "1"


def _text(element: ET.Element, path: str) -> str:
    found = element.find(path)
    if found is None:
        what = "an object" if element.tag == "object" else "it"
        raise ValueError(f"{what} has no <{path.replace('/', '><')}>, which detectron2 needs")
    return found.text or ""
