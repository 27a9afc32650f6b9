"""Images and their labelled objects, as layouts of a file an image give them.

Boxes are XYXY in pixels, from 0 on at the left and upper edge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.structures import BoxMode

from doublehead_d2.data.findings import Contents, Faults, ImageFile, Use

Record = dict[str, Any]


@dataclass
class LabelledObject:
    """An object; its class is named as in the data."""

    name: str
    box: list[float]
    polygons: list[list[float]] = field(default_factory=list)  # x, y, x, y ...
    is_difficult: bool = False


@dataclass
class LabelledImage:
    """An image as the annotations, or its header, describe it."""

    image_id: str | int
    path: str
    width: int
    height: int
    objects: list[LabelledObject]


def as_records(images: Sequence[LabelledImage], numbers: Mapping[str, int]) -> list[Record]:
    """detectron2's records.

    Args:
        images: of a data set.
        numbers: the index of a class by the data's name of it.
    """
    return [
        {
            "file_name": image.path,
            "image_id": image.image_id,
            "height": image.height,
            "width": image.width,
            "annotations": [_annotation(x, numbers) for x in image.objects],
        }
        for image in images
    ]


def _annotation(labelled: LabelledObject, numbers: Mapping[str, int]) -> Record:
    annotation: Record = {
        "category_id": numbers[labelled.name],
        "bbox": list(labelled.box),
        "bbox_mode": BoxMode.XYXY_ABS,
    }
    if labelled.polygons:
        annotation["segmentation"] = [list(x) for x in labelled.polygons]
    return annotation


def describe(
    images: Sequence[LabelledImage], names: Sequence[str], use: Use, faults: Faults
) -> Contents:
    """What is in a data set, and what of it a run cannot use.

    Args:
        images: of the data set.
        names: its classes.
        use: what the run does with it.
        faults: where what is wrong is added.
    """
    contents = Contents(list(names))
    flat = []
    # VOC's metric leaves out what is difficult.
    skips_difficult = use.evaluation == "pascal_voc"
    for image in images:
        objects = image.objects
        for labelled in objects:
            if use.mask_format and not labelled.polygons:
                faults.add(
                    f"an object of '{image.path}' has no outline, which MODEL.MASK_ON True needs"
                )
            if not _has_area(labelled.box, image):
                flat.append(image.path)
        counted = sum(not (x.is_difficult and skips_difficult) for x in objects)
        contents.objects = (contents.objects or 0) + counted
        if objects or use.evaluation or not use.skips_empty:
            contents.images.append(ImageFile(image.path, image.width, image.height))
    if use.keypoints:
        faults.add("it has no keypoints, which MODEL.KEYPOINT_ON True needs")
    if flat:
        contents.notes.append(
            "objects without area in their image, which training leaves out and the evaluation "
            f"counts as missed: {len(flat):,}, the first is in '{flat[0]}'"
        )
    return contents


def _has_area(box: Sequence[float], image: LabelledImage) -> bool:
    x0, y0, x1, y1 = box
    return min(x1, image.width) > max(x0, 0) and min(y1, image.height) > max(y0, 0)
