"""Images and their labelled objects, as layouts of a file an image give them.

Boxes are XYXY in pixels, from 0 on at the left and upper edge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.structures import BoxMode

from doublehead_d2.data import kinds
from doublehead_d2.data.census import judge_box
from doublehead_d2.data.findings import Contents, Findings, ImageFile, Use

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
    images: Sequence[LabelledImage], names: Sequence[str], use: Use, findings: Findings
) -> Contents:
    """What is in a data set, and what of it a run cannot use.

    Args:
        images: of the data set.
        names: its classes.
        use: what the run does with it.
        findings: what is found is added to them.
    """
    contents = Contents(list(names))
    # VOC's metric leaves out what is difficult.
    skips_difficult = use.evaluation == "pascal_voc"
    for image in images:
        objects = image.objects
        for labelled in objects:
            if use.mask_format and not labelled.polygons:
                findings.add(
                    kinds.BAD_MASK,
                    f"an object of '{image.path}' has no outline, which MODEL.MASK_ON True needs",
                )
            _judge(labelled, image, contents, findings)
        if findings.reports:
            contents.census.count_image(image.path, image.path, image.width, image.height)
        counted = sum(not (x.is_difficult and skips_difficult) for x in objects)
        contents.objects = (contents.objects or 0) + counted
        if objects or use.evaluation or not use.skips_empty:
            contents.images.append(ImageFile(image.path, image.width, image.height))
    if use.keypoints:
        findings.add(kinds.BAD_KEYPOINTS, "it has no keypoints, which MODEL.KEYPOINT_ON True needs")
    return contents


def _judge(
    labelled: LabelledObject, image: LabelledImage, contents: Contents, findings: Findings
) -> None:
    found = [judge_box(labelled.box, image.width, image.height)]
    if findings.reports and labelled.name in contents.classes:
        index = contents.classes.index(labelled.name)
        found.append(contents.census.count(image.path, index, labelled.box))
    for kind in filter(None, found):
        findings.add(kind, f"an object of '{image.path}'")
