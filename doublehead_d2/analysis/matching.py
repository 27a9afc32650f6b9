"""Which detections find which objects, which they detect once more, and which are left out.

Shape legend: M objects and D detections of one image. Boxes are XYXY in pixels of the original
image. Scores are probabilities.

Source: COCO's matching, https://github.com/cocodataset/cocoapi; issue 22.
"""

from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

from doublehead_d2.config.shared import check_between

NONE = -1  # where there is no object or no detection


class Limits(NamedTuple):
    """What counts as shown, found and detected twice; all from 0 to 1."""

    score: float = 0.5  # the lowest that is shown
    iou: float = 0.5  # from which a detection finds an object
    low_iou: float = 0.1  # from which another detection lies on the object and not on background
    nms: float = 0.5  # above which NMS removes the lower of two scores

    def check(self) -> "Limits":
        """The same.

        Raises:
            ValueError: names the limit that is not between 0 and 1, or a `low_iou` that is 0 or
                above `iou`.
        """
        for name, value in self._asdict().items():
            check_between(name, value, 0, 1)
        if not 0 < self.low_iou <= self.iou:
            raise ValueError(
                f"low_iou is {self.low_iou:g}; allowed: above 0 and at most iou, {self.iou:g}"
            )
        return self


LIMITS = Limits()  # the usual ones


class Objects(NamedTuple):
    """What there is to find in an image."""

    boxes: Tensor  # M x 4
    classes: Tensor  # M
    # M, bool: crowds and what the data set says to ignore. They are not missed and not found, and a
    # detection of their class of whose area `Limits.iou` or more lies in one is left out.
    ignored: Tensor


class Detections(NamedTuple):
    """What one head detects in an image after NMS; a score may be below `Limits.score`."""

    boxes: Tensor  # D x 4
    scores: Tensor  # D
    classes: Tensor  # D
    proposals: Tensor  # D, the row of `Said.proposals` that each comes from


class Matches(NamedTuple):
    """Which of the shown detections find which objects."""

    detections: Detections  # shown ones, the best first
    finders: Tensor  # M, the detection that finds each object
    repeats: Tensor  # D, the object that each detects once more


def match(objects: Objects, detections: Detections, limits: Limits) -> Matches:
    """Match detections to objects of their class, by falling score, as COCO's metric does.

    Each takes, of the objects that are still free, the one with the highest IoU, `limits.iou` or
    more. One that finds none is a duplicate if the object of its class with the highest IoU,
    `limits.low_iou` or more, is found by another.

    Args:
        objects: of an image.
        detections: of one head, in any order.
        limits: detections below `limits.score` are left out.
    """
    order = detections.scores.argsort(descending=True, stable=True)
    order = order[detections.scores[order] >= limits.score]
    shown = Detections(*(x[order] for x in detections))
    ious = _overlaps(shown, objects)
    in_ignored = _lie_in_ignored(shown, objects, limits)
    finders = torch.full_like(objects.classes, NONE)
    finds = torch.zeros_like(in_ignored)
    for row, overlaps in enumerate(ious):
        free = overlaps.masked_fill(finders != NONE, NONE)
        if len(free) and free.max() >= limits.iou:
            finders[free.argmax()] = row
            finds[row] = True
    repeats = torch.full_like(shown.classes, NONE)
    if ious.numel():
        best, nearest = ious.max(dim=1)
        again = ~finds & ~in_ignored & (best >= limits.low_iou) & (finders[nearest] != NONE)
        repeats[again] = nearest[again]
    return Matches(shown, finders, repeats)


def missed(objects: Objects, matches: Matches) -> Tensor:
    """M, bool: the objects that are not found, without those that are ignored."""
    return (matches.finders == NONE) & ~objects.ignored


def twice(objects: Objects, matches: Matches) -> Tensor:
    """M, bool: the objects that are found and detected once more."""
    again = torch.zeros_like(objects.ignored)
    again[matches.repeats[matches.repeats != NONE]] = True
    return again


def _overlaps(detections: Detections, objects: Objects) -> Tensor:
    """D x M IoUs; NONE for another class and for what is ignored."""
    ious = pairwise_iou(Boxes(detections.boxes), Boxes(objects.boxes))
    other = detections.classes[:, None] != objects.classes
    return ious.masked_fill(other | objects.ignored, NONE)


def _lie_in_ignored(detections: Detections, objects: Objects, limits: Limits) -> Tensor:
    """D, bool; as for COCO's crowds, the part of a detection that lies in one counts."""
    parts = pairwise_ioa(Boxes(objects.boxes), Boxes(detections.boxes)).t()  # D x M
    same = detections.classes[:, None] == objects.classes
    return ((parts >= limits.iou) & same & objects.ignored).any(dim=1)
