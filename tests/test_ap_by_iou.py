"""AP at each IoU against derivations by hand and COCO's own summary."""

import json
import math
from pathlib import Path

import pytest

from doublehead_d2.analysis.ap_by_iou import ap_by_iou

IOUS = [f"AP{iou}" for iou in range(50, 100, 5)]


def write(folder: Path, boxes: list, detections: list) -> tuple[Path, Path]:
    """Files of one image: its objects of class 1, XYWH, and what was detected, with scores."""
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for i, b in enumerate(boxes, start=1)
        ],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in detections
    ]
    paths = folder / "truth.json", folder / "found.json"
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_by_hand(tmp_path: Path) -> None:
    # The box of 10 x 10 is found with 10 x 7.2, IoU 0.72; the one of 20 x 20 exactly, second best.
    boxes = [[0, 0, 10, 10], [50, 50, 20, 20]]
    detections = [([0, 0, 10, 7.2], 0.9), ([50, 50, 20, 20], 0.8)]
    aps = ap_by_iou(*write(tmp_path, boxes, detections))
    assert list(aps) == IOUS
    assert [aps[f"AP{iou}"] for iou in (50, 55, 60, 65, 70)] == pytest.approx([100.0] * 5)
    # Above it the first is wrong: precision 1/2 at the 51 recalls 0, 0.01, ..., 0.5 of 101
    assert [aps[f"AP{iou}"] for iou in (75, 80, 85, 90, 95)] == pytest.approx([50 * 51 / 101] * 5)


def test_nothing_detected_and_no_objects(tmp_path: Path) -> None:
    assert ap_by_iou(*write(tmp_path, [[0, 0, 10, 10]], [])) == dict.fromkeys(IOUS, 0.0)
    aps = ap_by_iou(*write(tmp_path, [], [([0, 0, 10, 10], 0.9)]))
    assert all(math.isnan(value) for value in aps.values())
