"""Objects that one head misses or detects twice: scores, reasons and ranks by hand."""

import pytest
import torch

from doublehead_d2.analysis.cases import (
    LOW_AND_SUPPRESSED,
    LOW_SCORE,
    NO_BOX,
    NOT_SHARED,
    OTHERWISE,
    SUPPRESSED,
    Judged,
    Said,
    best_answer,
    find_missed,
    find_repeated,
)
from doublehead_d2.analysis.matching import Detections, Limits, Objects, match

SQUARE = [0.0, 0.0, 10.0, 10.0]
ONE = Objects(torch.tensor([SQUARE]), torch.tensor([0]), torch.tensor([False]))


def height(iou: float) -> list:
    """A box of that IoU with the square."""
    return [0.0, 0.0, 10.0, 10 * iou]


def judged(boxes: list, scores: list, kept: list, there: Objects = ONE) -> Judged:
    """A head that makes of proposal i the box i, for one class, and keeps some."""
    said = Said(
        Detections(
            torch.tensor([boxes[i] for i in kept]).reshape(-1, 4),
            torch.tensor([scores[i] for i in kept]),
            torch.zeros(len(kept), dtype=torch.int64),
            torch.tensor(kept, dtype=torch.int64),
        ),
        torch.tensor([[i, i, i + 5.0, i + 5.0] for i in range(len(boxes))]).reshape(-1, 4),
        torch.tensor(boxes).reshape(-1, 1, 4),
        torch.tensor(scores).reshape(-1, 1),
    )
    return Judged(said, match(there, said.detections, Limits()))


def test_the_best_answer_lies_on_the_object_and_has_the_highest_score() -> None:
    boxes = [height(0.9), height(0.5), height(0.4), height(0.6)]
    found = best_answer(judged(boxes, [0.2, 0.3, 0.8, 0.1], []).said, ONE, 0, 0.5)
    assert found is not None and found.box == height(0.5)
    assert found.score == pytest.approx(0.3) and found.iou == 0.5
    assert found.proposal == [1.0, 1.0, 6.0, 6.0]
    # If none lies on it: the nearest, whatever the scores.
    found = best_answer(judged(boxes[2:0:-1], [0.8, 0.3], []).said, ONE, 0, 0.55)
    assert found is not None and (found.iou, found.score) == (0.5, pytest.approx(0.3))
    assert best_answer(judged([], [], []).said, ONE, 0, 0.5) is None


def test_the_best_answer_is_of_the_object_s_class() -> None:
    there = ONE._replace(classes=torch.tensor([1]))
    said = judged([SQUARE] * 2, [0.0] * 2, []).said._replace(
        boxes=torch.tensor(
            [[height(0.7), height(0.8), height(0.9)], [height(0.6), height(0.4), height(0.9)]]
        ),
        scores=torch.tensor([[0.1, 0.2, 0.3], [0.8, 0.1, 0.0]]),
    )
    found = best_answer(said, there, 0, 0.5)
    assert found is not None and (found.iou, found.score) == pytest.approx((0.8, 0.2))
    shared = said._replace(boxes=said.boxes[:, 2:])  # the same for all classes
    found = best_answer(shared, there, 0, 0.5)
    assert found is not None and (found.iou, found.score) == pytest.approx((0.9, 0.2))


@pytest.mark.parametrize(
    ("boxes", "scores", "reason", "rank"),
    [
        ([height(0.9), height(0.6)], [0.1, 0.4], LOW_SCORE, 0.5),
        ([height(0.4)], [0.7], NO_BOX, 0.2),
        ([height(0.8)], [0.75], SUPPRESSED, 0.15),  # not among the detections
        ([], [], NO_BOX, 0.9),
    ],
)
def test_missed_for_a_reason(boxes: list, scores: list, reason: str, rank: float) -> None:
    misser, finder = judged(boxes, scores, []), judged([SQUARE, height(0.7)], [0.95, 0.9], [1])
    (case,) = find_missed(ONE, misser, finder, Limits())
    assert case.object == 0 and case.reason == reason
    assert case.rank == pytest.approx(rank)  # 0.9 less the best answer's score
    assert (case.finding.score, case.finding.iou) == pytest.approx((0.9, 0.7))
    assert case.finding.proposal == [1.0, 1.0, 6.0, 6.0]
    assert (case.missing is None) == (not boxes)
    assert find_missed(ONE, finder, misser, Limits()) == []
    assert find_missed(ONE, misser, misser, Limits()) == []
    assert find_missed(ONE, finder, finder, Limits()) == []


def test_ignored_objects_are_not_missed() -> None:
    there = ONE._replace(ignored=torch.tensor([True]))
    heads = judged([SQUARE], [0.1], [], there), judged([SQUARE], [0.9], [0], there)
    assert find_missed(there, *heads, Limits()) == []


@pytest.mark.parametrize(
    ("same", "score", "reason"),
    [
        # The other head detects the object by the upper 0.8 of it: IoUs of 0.75 and 0.5.
        (height(0.6), 0.5, SUPPRESSED),
        (height(0.6), 0.49, LOW_AND_SUPPRESSED),
        (height(0.4), 0.49, LOW_SCORE),
        (height(0.4), 0.5, OTHERWISE),  # NMS takes what is above its threshold
    ],
)
def test_detected_twice_by_one(same: list, score: float, reason: str) -> None:
    boxes = [height(0.9), [0.0, 5.5, 10.0, 10.0], [0.0, 6.0, 10.0, 10.0]]
    repeater = judged(boxes, [0.9, 0.6, 0.7], [0, 1, 2])
    other = judged([height(0.8), SQUARE, same], [0.8, 0.1, score], [0])
    (case,) = find_repeated(ONE, repeater, other, Limits(), shared=True)
    assert case.object == 0 and case.reason == reason
    assert case.first.iou == pytest.approx(0.9) and case.first.score == pytest.approx(0.9)
    # The best of the two others by score: from 6 to 10; with the first, from 0 to 9, 3 of 10 rows.
    assert case.second.iou == pytest.approx(0.4) and case.second.score == pytest.approx(0.7)
    assert case.second.proposal == [2.0, 2.0, 7.0, 7.0] and case.overlap == pytest.approx(0.3)
    assert case.only.iou == pytest.approx(0.8)
    assert case.same is not None and case.same.box == same
    assert case.same.score == pytest.approx(score)
    assert case.same.proposal == case.second.proposal
    assert case.same_overlap == pytest.approx(case.same.iou / 0.8)
    assert case.rank == pytest.approx(case.same.iou - 0.4, abs=1e-6)


def test_without_shared_proposals_the_detections_are_compared() -> None:
    repeater = judged([SQUARE, height(0.3)], [0.9, 0.8], [0, 1])
    other = judged([height(0.8)], [0.8], [0])
    (case,) = find_repeated(ONE, repeater, other, Limits(), shared=False)
    assert (case.same, case.same_overlap, case.reason) == (None, None, NOT_SHARED)
    assert case.rank == pytest.approx(0.8 - 0.3)


def test_the_other_head_must_detect_it_once() -> None:
    repeater = judged([SQUARE, height(0.3)], [0.9, 0.8], [0, 1])
    for other in (judged([SQUARE] * 2, [0.9, 0.1], []), repeater):
        assert find_repeated(ONE, repeater, other, Limits(), shared=True) == []
