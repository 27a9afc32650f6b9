"""Boxes of COCO files that are not [x, y, width, height] in pixels: recognised, and converted.

COCO's format knows no other boxes. What some scripts write into it looks the same, trains without
a word and ends at AP 0. A single box proves nothing; those of a whole file do.
"""

from collections.abc import Sequence
from typing import Any

from doublehead_d2.data import kinds
from doublehead_d2.data.entries import BOXES
from doublehead_d2.data.findings import FaultError, are_coordinates

Record = dict[str, Any]

MANY = 0.05  # of the boxes
SLACK = 1.0  # pixels by which rounding lets a box leave its image
NORMALISED_SLACK = 0.01  # likewise, of the image
LARGEST_NORMALISED = 1.0 + NORMALISED_SLACK


def to_pixels_xywh(where: str, data: Record, boxes: str) -> list[str]:
    """Bring the boxes of a file into COCO's form, in place.

    Args:
        where: how messages begin.
        data: of the file, the sizes of its images filled in.
        boxes: what the entry says of them; "": they are looked at.

    Returns:
        what was done.

    Raises:
        ValueError: nothing is said, and they look like something else than COCO's.
    """
    sized = _sized(data)
    if not boxes:
        if found := describe_boxes([(x["bbox"], *size) for x, size in sized]):
            kind = kinds.NORMALISED if "from 0 to 1" in found else kinds.XYXY
            raise FaultError(kind, f"{where}: {found}; allowed: {_lines(found)}")
        return []
    if boxes == "xywh":
        return []
    for annotation, (width, height) in sized:
        a, b, c, d = annotation["bbox"]
        if boxes.startswith("xyxy"):
            c, d = c - a, d - b
        if boxes.endswith("normalised"):
            a, b, c, d = a * width, b * height, c * width, d * height
        annotation["bbox"] = [a, b, c, d]
        if boxes.endswith("normalised") and isinstance(annotation.get("segmentation"), list):
            annotation["segmentation"] = [
                _scaled(polygon, width, height) for polygon in annotation["segmentation"]
            ]
    return [f"its boxes are read as {boxes}, as its entry says"]


def describe_boxes(boxes: Sequence[tuple[Sequence[float], float, float]]) -> str:
    """What all boxes of a file together look like, if it is not XYWH in pixels; else nothing.

    Args:
        boxes: four numbers each, and width and height of the image.
    """
    if not boxes:
        return ""
    total = len(boxes)
    normalised = all(
        max(map(abs, box)) <= LARGEST_NORMALISED and min(width, height) > 2
        for box, width, height in boxes
    )
    unit = [(1.0, 1.0)] * total if normalised else [(w, h) for _, w, h in boxes]
    slack = NORMALISED_SLACK if normalised else SLACK
    leave_as_xywh, leave_as_xyxy = 0, 0
    for ((a, b, c, d), _, _), (width, height) in zip(boxes, unit, strict=True):
        leave_as_xywh += a + c > width + slack or b + d > height + slack
        leave_as_xyxy += c <= a or d <= b or c > width + slack or d > height + slack
    xyxy = not leave_as_xyxy and leave_as_xywh >= max(1, MANY * total)
    counts = (
        f"as [x, y, width, height] {leave_as_xywh:,} of {total:,} boxes leave their image, as "
        f"[x0, y0, x1, y1] {'none is' if not leave_as_xyxy else f'{leave_as_xyxy:,} are'} inverted "
        "or outside"
    )
    if normalised:
        kind = "XYXY" if xyxy else "XYWH" if leave_as_xyxy else "XYWH or XYXY"
        return f"its boxes look like {kind} from 0 to 1: all numbers are, and {counts}"
    return f"its boxes look like XYXY: {counts}" if xyxy else ""


def _sized(data: Record) -> list[tuple[Record, tuple[float, float]]]:
    """Annotations with a box of four numbers, and the size of their image."""
    images = data.get("images")
    sizes: dict[Any, tuple[Any, Any]] = {}
    for image in images if isinstance(images, list) else ():
        if isinstance(image, dict) and isinstance(image.get("id"), (int, float, str)):
            width, height = image.get("width"), image.get("height")
            if are_coordinates((width, height)):
                sizes[image["id"]] = (width, height)
    annotations = data.get("annotations")
    found = []
    for annotation in annotations if isinstance(annotations, list) else ():
        if not isinstance(annotation, dict):
            continue
        box, image_id = annotation.get("bbox"), annotation.get("image_id")
        if not isinstance(image_id, (int, float, str)) or image_id not in sizes:
            continue
        if isinstance(box, list) and len(box) == 4 and are_coordinates(box):
            found.append((annotation, sizes[image_id]))
    return found


def _scaled(polygon: Any, width: float, height: float) -> Any:
    """A polygon in pixels, if it is from 0 to 1 as well."""
    if not isinstance(polygon, list) or not are_coordinates(polygon):
        return polygon
    if max(map(abs, polygon), default=0) > LARGEST_NORMALISED:
        return polygon
    return [value * (height if i % 2 else width) for i, value in enumerate(polygon)]


def _lines(found: str) -> str:
    """The line of an entry that accepts the boxes, and the one that says they are COCO's."""
    if "from 0 to 1" in found:
        likely = [x for x in BOXES if x.endswith("normalised")]
        kind = found.split(" look like ")[1].split(" from")[0].split(" or ")
        likely = [x for x in likely if x.split("_")[0].upper() in kind]
    else:
        likely = ["xyxy"]
    lines = " or ".join(f"`boxes: {x}`" for x in likely)
    return (
        f"the line {lines} in its entry of DATASETS.REGISTER, or `boxes: xywh` if they are "
        "COCO's after all"
    )
