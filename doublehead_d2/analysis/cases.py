"""Objects that one head misses or detects twice and the other does not.

Shape legend: R proposals of one image; K foreground classes. Boxes are XYXY in pixels of the
original image. Scores are probabilities.

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Appendix A.3 with Figures A.4 and A.5;
issue 22.
"""

from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from doublehead_d2.analysis.matching import (
    NONE,
    Detections,
    Limits,
    Matches,
    Objects,
    missed,
    twice,
)

# Why an object is missed: the head's box lies on it, but with a score below the threshold; its box
# and its score are good, but NMS or the matching gave the place to another detection; no box of the
# object's class overlaps it enough.
LOW_SCORE, SUPPRESSED, NO_BOX = "low score", "suppressed", "no box"
MISSED_BECAUSE = (LOW_SCORE, SUPPRESSED, NO_BOX)
# Why the other head has no duplicate: its box from the same proposal overlaps its detection of the
# object, so that NMS removes it (the paper's reason); its score is below the threshold; both;
# neither; or nobody can say, since the heads have proposals of their own.
LOW_AND_SUPPRESSED, OTHERWISE = "low score and suppressed", "otherwise"
NOT_SHARED = "proposals not shared"
ONCE_BECAUSE = (SUPPRESSED, LOW_SCORE, LOW_AND_SUPPRESSED, OTHERWISE, NOT_SHARED)


class Said(NamedTuple):
    """All that one head says about an image."""

    detections: Detections
    proposals: Tensor  # R x 4
    boxes: Tensor  # R x K x 4, or R x 1 x 4 where they are the same for all classes
    scores: Tensor  # R x K


class Judged(NamedTuple):
    """What one head says, and which of its detections find which objects."""

    said: Said
    matches: Matches


class Answer(NamedTuple):
    """One box that a head gives for an object."""

    box: list[float]
    score: float  # for the object's class
    iou: float  # with the object
    proposal: list[float]  # that it comes from


class Missed(NamedTuple):
    """An object that one head misses and another finds (Figure A.4)."""

    object: int
    missing: Answer | None  # see :func:`best_answer`
    finding: Answer  # the detection
    reason: str  # of MISSED_BECAUSE

    @property
    def rank(self) -> float:
        """By how much the scores of the two heads differ; without proposals a score is 0."""
        return self.finding.score - (self.missing.score if self.missing else 0.0)


class Repeated(NamedTuple):
    """An object that one head detects twice and another once (Figure A.5)."""

    object: int
    first: Answer  # the detection of the former that finds it
    second: Answer  # the best of its others on the object
    overlap: float  # IoU of the two
    only: Answer  # the detection of the other head
    same: Answer | None  # what the other head makes of the proposal of `second`, if it is shared
    same_overlap: float | None  # IoU of `same` and `only`
    reason: str  # of ONCE_BECAUSE

    @property
    def rank(self) -> float:
        """By how much the other head's box lies better on the object than the duplicate.

        The box is that of the same proposal or, where proposals are not shared, the detection.
        """
        return (self.same or self.only).iou - self.second.iou


def best_answer(said: Said, objects: Objects, index: int, iou: float) -> Answer | None:
    """What a head says of an object before its threshold and NMS.

    Args:
        said: by the head.
        objects: of the image.
        index: of the object.
        iou: from which a box lies on the object.

    Returns:
        of the boxes of the object's class with that IoU or more the one of the highest score; if
        there is none, the one with the highest IoU; None without proposals.
    """
    if not len(said.proposals):
        return None
    class_id = int(objects.classes[index])
    ious = _iou(_boxes_of(said, class_id), objects.boxes[index])
    scores = said.scores[:, class_id]
    on_it = ious >= iou
    row = scores.masked_fill(~on_it, NONE).argmax() if on_it.any() else ious.argmax()
    return _answer(said, objects, index, int(row))


def find_missed(objects: Objects, misser: Judged, finder: Judged, limits: Limits) -> list[Missed]:
    """The objects that one head misses and another finds.

    Args:
        objects: of an image.
        misser, finder: the two heads.
        limits: those that their detections were matched with.
    """
    found = []
    at = missed(objects, misser.matches) & (finder.matches.finders != NONE)
    for index in at.nonzero().flatten().tolist():
        missing = best_answer(misser.said, objects, index, limits.iou)
        reason = NO_BOX
        if missing is not None and missing.iou >= limits.iou:
            reason = LOW_SCORE if missing.score < limits.score else SUPPRESSED
        row = int(finder.matches.finders[index])
        found.append(Missed(index, missing, detection(objects, finder, index, row), reason))
    return found


def find_repeated(
    objects: Objects, repeater: Judged, other: Judged, limits: Limits, *, shared: bool
) -> list[Repeated]:
    """The objects that one head detects twice or more often and another once.

    Args:
        objects: of an image.
        repeater, other: the two heads.
        limits: those that their detections were matched with.
        shared: whether the heads were asked about the same proposals, as those of one model are.
    """
    found = []
    once = (other.matches.finders != NONE) & ~twice(objects, other.matches)
    for index in (twice(objects, repeater.matches) & once).nonzero().flatten().tolist():
        row = repeat_of(repeater, index)
        first = detection(objects, repeater, index, int(repeater.matches.finders[index]))
        second = detection(objects, repeater, index, row)
        only = detection(objects, other, index, int(other.matches.finders[index]))
        same, same_overlap, reason = None, None, NOT_SHARED
        if shared:
            proposal = int(repeater.matches.detections.proposals[row])
            same = _answer(other.said, objects, index, proposal)
            same_overlap = _iou_of(same.box, only.box)
            reason = _why_once(same.score < limits.score, same_overlap > limits.nms)
        overlap = _iou_of(first.box, second.box)
        found.append(Repeated(index, first, second, overlap, only, same, same_overlap, reason))
    return found


def detection(objects: Objects, head: Judged, index: int, row: int) -> Answer:
    """The shown detection `row` as an answer about the object `index`."""
    shown = head.matches.detections
    box = shown.boxes[row]
    return Answer(
        box.tolist(),
        float(shown.scores[row]),
        float(_iou(box[None], objects.boxes[index])),
        head.said.proposals[shown.proposals[row]].tolist(),
    )


def repeat_of(head: Judged, index: int) -> int:
    """The best of the shown detections that detect an object, which has one, once more."""
    return int((head.matches.repeats == index).nonzero()[0])  # they are sorted


def _answer(said: Said, objects: Objects, index: int, row: int) -> Answer:
    """What a head makes of a proposal, for the class of an object."""
    class_id = int(objects.classes[index])
    box = _boxes_of(said, class_id)[row]
    return Answer(
        box.tolist(),
        float(said.scores[row, class_id]),
        float(_iou(box[None], objects.boxes[index])),
        said.proposals[row].tolist(),
    )


def _why_once(is_low: bool, is_suppressed: bool) -> str:
    """Of ONCE_BECAUSE, where proposals are shared."""
    if is_low:
        return LOW_AND_SUPPRESSED if is_suppressed else LOW_SCORE
    return SUPPRESSED if is_suppressed else OTHERWISE


def _boxes_of(said: Said, class_id: int) -> Tensor:
    """R x 4 of a class."""
    return said.boxes[:, 0 if said.boxes.shape[1] == 1 else class_id]


def _iou(boxes: Tensor, box: Tensor) -> Tensor:
    """IoUs of n boxes with one, n."""
    return pairwise_iou(Boxes(boxes), Boxes(box[None])).squeeze(1)


def _iou_of(first: list[float], second: list[float]) -> float:
    return float(_iou(torch.tensor([first]), torch.tensor(second)))
