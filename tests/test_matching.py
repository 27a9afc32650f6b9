"""Which detections find which objects: by hand, and as pycocotools matches."""

import contextlib
import io

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from builders import random_boxes
from doublehead_d2.analysis.matching import (
    LIMITS,
    NONE,
    Detections,
    Limits,
    Matches,
    Objects,
    match,
    missed,
    twice,
)

SQUARE = [0.0, 0.0, 10.0, 10.0]


def objects(*boxes: list, classes: list | None = None, ignored: tuple = ()) -> Objects:
    """Of class 0, unless `classes` are given; those of the places in `ignored` are."""
    marks = torch.zeros(len(boxes), dtype=torch.bool)
    marks[list(ignored)] = True
    classes = [0] * len(boxes) if classes is None else classes
    return Objects(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(classes, dtype=torch.int64), marks
    )


def detections(*found: tuple) -> Detections:
    """Each a box, a score and, if it is not 0, a class; proposals are counted from 0."""
    return Detections(
        torch.tensor([x[0] for x in found]).reshape(-1, 4),
        torch.tensor([float(x[1]) for x in found]),
        torch.tensor([x[2] if len(x) > 2 else 0 for x in found], dtype=torch.int64),
        torch.arange(len(found)),
    )


def matched(there: Objects, *found: tuple, limits: Limits = LIMITS) -> Matches:
    return match(there, detections(*found), limits)


def test_found_again_missed_and_left_out() -> None:
    found = matched(
        objects(SQUARE, [50.0, 50.0, 60.0, 60.0]),
        ([0.0, 0.0, 10.0, 6.0], 0.8),  # IoU 0.6: found already
        ([0.0, 0.0, 10.0, 8.0], 0.9),  # IoU 0.8
        ([0.0, 0.0, 10.0, 10.0], 0.49),  # not shown
        (SQUARE, 0.7, 1),  # of another class
        ([30.0, 30.0, 40.0, 40.0], 0.6),  # on background
    )
    assert found.detections.proposals.tolist() == [1, 0, 3, 4]  # by falling score
    assert found.finders.tolist() == [0, NONE]
    assert found.repeats.tolist() == [NONE, 0, NONE, NONE]
    there = objects(SQUARE, [50.0, 50.0, 60.0, 60.0])
    assert missed(there, found).tolist() == [False, True]
    assert twice(there, found).tolist() == [True, False]


def test_each_takes_the_best_that_is_free() -> None:
    # The first has IoUs of 0.9 and 80/90; the second 1 and 0.8, but the former is taken.
    there = objects(SQUARE, [0.0, 0.0, 10.0, 8.0])
    first, second = ([0.0, 0.0, 10.0, 9.0], 0.9), (SQUARE, 0.8)
    assert matched(there, first, second).finders.tolist() == [0, 1]
    # The other way round the best comes first, and 80/90 is left.
    first, second = (first[0], 0.7), second
    assert matched(there, first, second).finders.tolist() == [0, 1]
    assert matched(there, first, second).repeats.tolist() == [NONE, NONE]


def test_limits_belong_to_what_is_found() -> None:
    half, quarter = [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 2.5]
    assert matched(objects(SQUARE), (half, 0.5)).finders.tolist() == [0]
    assert matched(objects(SQUARE), ([0.0, 0.0, 10.0, 4.9], 0.5)).finders.tolist() == [NONE]
    limits = Limits(low_iou=0.25)
    assert matched(objects(SQUARE), (SQUARE, 1), (quarter, 0.5), limits=limits).repeats[1] == 0
    less = [0.0, 0.0, 10.0, 2.4]
    assert matched(objects(SQUARE), (SQUARE, 1), (less, 0.5), limits=limits).repeats[1] == NONE


def test_a_duplicate_is_of_the_nearest_object_and_only_if_that_is_found() -> None:
    there = objects(SQUARE, [0.0, 6.0, 10.0, 16.0])
    # IoU 3/11 with the first object, which is found, and 4/10 with the second, which is not.
    again = [0.0, 7.0, 10.0, 11.0]
    found = matched(there, (SQUARE, 0.9), (again, 0.8))
    assert found.finders.tolist() == [0, NONE] and found.repeats.tolist() == [NONE, NONE]
    found = matched(there, (SQUARE, 0.9), (there.boxes[1].tolist(), 0.8), (again, 0.7))
    assert found.repeats.tolist() == [NONE, NONE, 1]


def test_what_is_ignored_is_not_missed_and_takes_what_lies_in_it() -> None:
    there = objects(SQUARE, [0.0, 5.0, 100.0, 100.0], ignored=(1,))
    half = [0.0, 1.0, 10.0, 9.0]  # 40 of 80 pixels lie in the crowd
    found = matched(there, (SQUARE, 0.9), (half, 0.8), ([0.0, 1.0, 10.0, 8.0], 0.7))
    assert found.finders.tolist() == [0, NONE] and missed(there, found).tolist() == [False, False]
    assert found.repeats.tolist() == [NONE, NONE, 0]  # of the last 30 of 70
    # Nor does one find it, and a crowd of another class takes nothing.
    assert matched(there, (there.boxes[1].tolist(), 0.9)).finders.tolist() == [NONE, NONE]
    there = objects(SQUARE, [0.0, 5.0, 100.0, 100.0], classes=[0, 1], ignored=(1,))
    assert matched(there, (SQUARE, 0.9), (half, 0.8)).repeats.tolist() == [NONE, 0]


def test_nothing_there_and_nothing_found() -> None:
    found = matched(objects(), (SQUARE, 0.9))
    assert found.finders.shape == (0,) and found.repeats.tolist() == [NONE]
    found = matched(objects(SQUARE))
    assert found.finders.tolist() == [NONE] and found.repeats.shape == (0,)
    assert twice(objects(SQUARE), found).tolist() == [False]


@pytest.mark.parametrize("seed", range(4))
def test_objects_are_found_as_pycocotools_finds_them(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(24, seed=seed).tensor
    there = Objects(boxes, torch.randint(2, (24,), generator=generator), torch.arange(24) % 8 == 0)
    moved = boxes.repeat(4, 1) + 4 * torch.rand(96, 4, generator=generator) - 2
    found = Detections(
        torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 1)], dim=1),
        0.5 + torch.rand(96, generator=generator) / 2,
        torch.randint(2, (96,), generator=generator),
        torch.arange(96),
    )
    ours = match(there, found, LIMITS)
    finders = ours.detections.proposals[ours.finders].where(ours.finders != NONE, NONE)
    assert finders.tolist() == coco_finders(there, found)
    assert (ours.finders != NONE).sum() > 10


def coco_finders(there: Objects, found: Detections) -> list:
    """By pycocotools, ids counted from 1."""

    def xywh(box: torch.Tensor) -> list:
        x0, y0, x1, y1 = box.double().tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    truth, evaluated = COCO(), [NONE] * len(there.classes)
    truth.dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": int(c) + 1, "bbox": xywh(b), "area": 1.0}
            | {"iscrowd": int(ignored)}
            for i, (b, c, ignored) in enumerate(zip(*there, strict=True), 1)
        ],
    }
    results = [
        {"image_id": 1, "category_id": int(c) + 1, "bbox": xywh(b), "score": float(s)}
        for b, s, c, _ in zip(*found, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.iouThrs = [0.5]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    for entry in filter(None, evaluation.evalImgs):
        pairs = zip(entry["gtIds"], entry["gtMatches"][0], entry["gtIgnore"], strict=True)
        for object_id, detection_id, ignored in pairs:
            if detection_id and not ignored:
                evaluated[object_id - 1] = int(detection_id) - 1
    return evaluated


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(score=1.5), "score is 1.5; allowed: 0 to 1"),
        (Limits(nms=float("nan")), "nms is nan; allowed: 0 to 1"),
        (Limits(low_iou=0.0), "low_iou is 0; allowed: above 0 and at most iou, 0.5"),
        (Limits(low_iou=0.6), "low_iou is 0.6; allowed: above 0 and at most iou, 0.5"),
    ],
)
def test_limits_that_are_not_allowed(limits: Limits, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        limits.check()
    assert LIMITS.check() == Limits(0.5, 0.5, 0.1, 0.5)
