"""What exports leave out of COCO annotations and COCO's metric cannot do without."""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pycocotools.mask as mask_util
from pycocotools.coco import COCO

Record = dict[str, Any]


def describe_gaps(annotations: Sequence[Record]) -> str:
    """What :func:`fill_gaps` would fill in, as a sentence; empty if nothing."""
    gaps = Counter(gap for annotation in annotations for gap in _gaps(annotation))
    filled = {
        "iscrowd": "'iscrowd' is missing in {:,} and taken as 0",
        "area": "'area' is missing in {:,} and taken from mask or box",
        "num_keypoints": "'num_keypoints' is missing in {:,} and counted",
        "id": "'id' is 0 or no number in {:,}, which COCO's metric cannot take: all are numbered",
    }
    parts = [words.format(gaps[key]) for key, words in filled.items() if gaps[key]]
    if not parts:
        return ""
    return f"for the evaluation, of {len(annotations):,} annotations: {'; '.join(parts)}"


def fill_gaps(coco: COCO) -> str:
    """Complete the annotations of an evaluator in place.

    Returns:
        what was filled in, as :func:`describe_gaps`.
    """
    coco.dataset.setdefault("info", {})  # pycocotools 2.0.10 cannot load detections without
    annotations = coco.dataset.get("annotations", [])
    described = describe_gaps(annotations)
    if not described:
        return ""
    renumber = False
    for annotation in annotations:
        gaps = _gaps(annotation)
        if "iscrowd" in gaps:
            annotation["iscrowd"] = 0
        if "area" in gaps and annotation["image_id"] in coco.imgs:
            annotation["area"] = _area(annotation, coco.imgs[annotation["image_id"]])
        if "num_keypoints" in gaps:
            annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
        renumber = renumber or "id" in gaps
    if renumber:
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    return described


def _gaps(annotation: Record) -> list[str]:
    gaps = [key for key in ("iscrowd", "area") if key not in annotation]
    if "keypoints" in annotation and "num_keypoints" not in annotation:
        gaps.append("num_keypoints")
    # pycocotools notes by which object a detection was matched, and 0 for none.
    if not isinstance(annotation["id"], (int, float)) or annotation["id"] == 0:
        gaps.append("id")
    return gaps


def _area(annotation: Record, image: Record) -> float:
    """Pixels of the mask, or of the box where there is none."""
    mask, size = annotation.get("segmentation"), (image["height"], image["width"])
    if isinstance(mask, list):
        mask = [polygon for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]
        mask = mask_util.merge(mask_util.frPyObjects(mask, *size)) if mask else None
    elif mask and isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, *mask["size"])
    if mask:
        return float(mask_util.area(mask))
    _, _, width, height = annotation["bbox"]
    return float(width * height)
