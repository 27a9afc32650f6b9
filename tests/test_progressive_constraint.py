"""The progressive constraint by hand."""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from builders import random_boxes
from doublehead_d2.modeling.progressive_constraint import (
    cls_constraint,
    loc_constraint,
    matched_iou,
    progressive_hinge,
    progressive_mean,
)

K = 2  # classes; label 2 is background


def logits(*probabilities: float, label: int) -> Tensor:
    """Rows whose label has these probabilities; the other classes share the rest."""
    p = torch.tensor(probabilities)[:, None]
    rows = ((1 - p) / K).expand(-1, K + 1).clone()
    rows[:, label] = p[:, 0]
    return rows.log()


@pytest.mark.parametrize(
    ("siblings", "ours", "missing"), [(0.6, 0.7, 0.2), (0.9, 0.95, 0.05), (0.2, 0.6, 0.0)]
)
def test_hinge_by_hand(siblings: float, ours: float, missing: float) -> None:
    """Margin 0.3: 0.9 - 0.7; at most 1 is asked, 1 - 0.95; 0.5 is exceeded."""
    hinge = progressive_hinge(torch.tensor(ours), torch.tensor(siblings), 0.3)
    torch.testing.assert_close(hinge, torch.tensor(missing))


def test_hinge_teaches_the_disentangled_head_alone() -> None:
    ours = torch.tensor([0.3, 0.9], requires_grad=True)
    siblings = torch.tensor([0.5, 0.2], requires_grad=True)
    progressive_hinge(ours, siblings, 0.2).sum().backward()
    assert ours.grad.tolist() == [-1.0, 0.0]
    assert siblings.grad is None


def test_mean_counts_a_zero_for_an_image_without_any() -> None:
    values = torch.tensor([1.0, 2.0, 5.0], requires_grad=True)
    used = [torch.tensor([True, True]), torch.tensor([False]), torch.tensor([], dtype=torch.bool)]
    mean = progressive_mean(values, used)  # (1 + 2 + 0 + 0) / 4
    assert mean.item() == 0.75
    mean.backward()
    assert values.grad.tolist() == [0.25, 0.25, 0.0]


@pytest.mark.parametrize("count", [0, 3])
def test_mean_of_nothing_has_a_gradient(count: int) -> None:
    # What is not used may be anything.
    values = torch.full((count,), float("nan"), requires_grad=True)
    mean = progressive_mean(values, [torch.zeros(count, dtype=torch.bool)])
    assert mean.item() == 0
    mean.backward()
    assert values.grad.tolist() == [0.0] * count


def test_classification_counts_background_of_images_with_foreground() -> None:
    """Two images: labels 0 and background, and background alone.

    The first misses 0.6 + 0.2 - 0.7 = 0.1 and 0.9 + 0.1 (capped) - 0.8 = 0.2; of the second a zero
    is counted, whatever its probabilities: (0.1 + 0.2 + 0) / 3.
    """
    scores = torch.cat([logits(0.7, label=0), logits(0.8, label=2), logits(0.1, label=2)])
    siblings = torch.cat([logits(0.6, label=0), logits(0.9, label=2), logits(0.9, label=2)])
    labels = [torch.tensor([0, 2]), torch.tensor([2])]
    loss = cls_constraint(scores, siblings, labels, 0.2)
    torch.testing.assert_close(loss, torch.tensor(0.1))


def test_localisation_is_of_foreground_alone() -> None:
    """Boxes 10 x 10 against the object (0, 0, 10, 10), moved to the right by 5, 2 and 0.

    IoUs 50/150 = 1/3, 80/120 = 2/3 and 1. Foreground are the first and the third RoI: siblings at
    2/3 and 1 with margin 0.2 ask for 13/15 and 1, which misses 13/15 - 1/3 = 8/15 and 0.
    """
    moved = torch.tensor([5.0, 2.0, 0.0])
    zeros, ten = torch.zeros(3), torch.full((3,), 10.0)
    boxes = torch.stack([moved, zeros, moved + 10, ten], dim=1).requires_grad_()
    sibling_boxes = torch.tensor([[2.0, 0, 12, 10], [5, 0, 15, 10], [0, 0, 10, 10]])
    objects = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    loss = loc_constraint(
        boxes, sibling_boxes, objects, [torch.tensor([True, False, True])], margin=0.2
    )
    torch.testing.assert_close(loss, torch.tensor(8 / 15 / 2))
    loss.backward()
    assert boxes.grad[0].any() and not boxes.grad[1].any()


def test_iou_is_detectron2s() -> None:
    boxes, others = random_boxes(50), random_boxes(50, seed=1)
    expected = matched_pairwise_iou(boxes, others)
    assert expected.gt(0).any() and expected.eq(0).any()
    torch.testing.assert_close(matched_iou(boxes.tensor, others.tensor), expected)


def test_iou_of_boxes_without_area_and_of_tiny_ones() -> None:
    point = torch.tensor([[1.0, 1, 1, 1]])
    assert matched_iou(point, point).item() == 0
    tiny = Boxes(torch.tensor([[0.0, 0, 0.5, 0.5]])).tensor
    assert matched_iou(tiny, tiny).item() == 1
    assert matched_iou(tiny, tiny, least_union=1.0).item() == 0.25
