"""Pairs of score and IoU by hand; correlations and their intervals against explicit resamples."""

import math
from dataclasses import astuple

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from doublehead_d2.analysis import correlation
from doublehead_d2.analysis.correlation import (
    NONE,
    Correlation,
    Pairs,
    add_pairs,
    correlate,
    detection_pairs,
    proposal_pairs,
    window_pairs,
)
from doublehead_d2.analysis.difficulty import GROUPS, UNKNOWN
from doublehead_d2.analysis.streaming import Comoments

# Two objects, of 10 x 10 and 20 x 10 pixels, of classes 2 and 0
OBJECTS = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 40.0, 10.0]]))
CLASSES = torch.tensor([2, 0])


def test_proposals_of_the_rpn_by_hand() -> None:
    boxes = [
        [0.0, 0.0, 10.0, 5.0],  # half of the first: 0.5
        [5.0, 0.0, 30.0, 10.0],  # 50 / 300 of the first, 100 / 350 of the second
        [50.0, 50.0, 60.0, 60.0],  # none
        [20.0, 0.0, 40.0, 10.0],  # the second itself
        [10.0, 0.0, 20.0, 10.0],  # touches both
    ]
    scores = torch.arange(20.0).view(5, 4) / 20
    found = proposal_pairs(scores, Boxes(torch.tensor(boxes)), OBJECTS, CLASSES)
    torch.testing.assert_close(found.ious, torch.tensor([0.5, 100 / 350, 1.0]))
    torch.testing.assert_close(found.scores, torch.tensor([2 / 20, 4 / 20, 12 / 20]))
    assert found.objects.tolist() == [0, 1, 1] and found.classes.tolist() == [2, 0, 0]


def test_detections_by_hand() -> None:
    boxes = [
        [0.0, 0.0, 10.0, 5.0],  # of class 2, the first object's
        [0.0, 0.0, 10.0, 10.0],  # of class 0, far from the object of class 0
        [5.0, 0.0, 30.0, 10.0],  # of class 2: it counts that it overlaps the other one more
        [0.0, 0.0, 10.0, 10.0],  # of class 1, of which there is no object
    ]
    detections = Instances(
        (64, 64),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
        pred_classes=torch.tensor([2, 0, 2, 1]),
    )
    found = detection_pairs(detections, OBJECTS, CLASSES)
    torch.testing.assert_close(found.scores, detections.scores)
    torch.testing.assert_close(found.ious, torch.tensor([0.5, 0.0, 50 / 300, 0.0]))
    assert found.objects.tolist() == [0, NONE, 0, NONE]
    assert found.classes.tolist() == [2, 0, 2, 1]


def test_images_without_objects_or_detections() -> None:
    nothing, no_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
    found = proposal_pairs(torch.rand(2, 4), OBJECTS, nothing, no_classes)
    assert len(found.scores) == len(found.objects) == 0
    assert len(proposal_pairs(torch.rand(0, 4), nothing, OBJECTS, CLASSES).scores) == 0
    detections = Instances((64, 64), pred_boxes=OBJECTS, scores=torch.rand(2), pred_classes=CLASSES)
    found = detection_pairs(detections, nothing, no_classes)
    assert found.ious.tolist() == [0, 0] and found.objects.tolist() == [NONE, NONE]
    assert len(detection_pairs(detections[:0], OBJECTS, CLASSES).scores) == 0


def test_windows() -> None:
    found = window_pairs(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4]), 1, 5)
    assert found.objects.tolist() == [1, 1] and found.classes.tolist() == [5, 5]


def test_groups_of_pairs() -> None:
    pairs = Pairs(
        scores=torch.tensor([0.1, 0.2, 0.3, 0.4]),
        ious=torch.tensor([0.5, 0.6, 0.7, 0.0]),
        objects=torch.tensor([0, 1, 1, NONE]),
        classes=torch.tensor([2, 0, 0, 1]),
    )
    comoments = Comoments(len(GROUPS))
    # a large and a small object; class 0 hard, 1 easy, 2 in no third
    add_pairs(comoments, pairs, torch.tensor([2, 0]), torch.tensor([2, 0, UNKNOWN]))
    counts = dict(zip(GROUPS, comoments.count.tolist(), strict=True))
    assert counts == {
        "all": 4,
        "small": 2,
        "medium": 0,
        "large": 1,
        "easy": 1,
        "medium difficulty": 0,
        "hard": 2,
    }
    means = comoments.means_from(torch.zeros(2))[GROUPS.index("small")]
    torch.testing.assert_close(means, torch.tensor([0.25, 0.65], dtype=torch.float64))


def random_images(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scores, IoUs and groups of images, some of which have nothing of a group."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(count):
        size = int(torch.randint(12, (1,), generator=generator))
        x = torch.rand(size, generator=generator, dtype=torch.float64)
        y = 0.3 * x + torch.rand(size + 1, generator=generator, dtype=torch.float64)[1:]
        y = y + torch.rand(1, generator=generator, dtype=torch.float64)  # of this image
        images.append((x, y, torch.randint(3, (size,), generator=generator)))
    return images


def counted(images: list) -> list[Comoments]:
    found = []
    for image in images:
        found.append(Comoments(3))
        found[-1].add(*image)
    return found


def corrcoef(images: list, group: int) -> Tensor:
    x, y, groups = (torch.cat(v) for v in zip(*images, strict=True))
    return torch.corrcoef(torch.stack([x, y])[:, groups == group])[0, 1]


def test_correlations_of_all_images() -> None:
    images = random_images(20)
    for group, found in enumerate(correlate(counted(images), resamples=5)):
        assert found.pearson == pytest.approx(corrcoef(images, group).item(), abs=1e-12)
        assert found.count == sum(int((g == group).sum()) for _, _, g in images)
        assert found.images == sum(bool((g == group).any()) for _, _, g in images)


def test_intervals_are_those_of_merged_images() -> None:
    images = random_images(15)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(15, (200, 15), generator=generator)
    expected = torch.stack(
        [torch.stack([corrcoef([images[i] for i in row], g) for g in range(3)]) for row in drawn]
    )
    ends = expected.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    found = correlate(counted(images), resamples=200, confidence=0.9, seed=3)
    for group in range(3):
        assert found[group].low == pytest.approx(ends[0, group].item(), abs=1e-9)
        assert found[group].high == pytest.approx(ends[1, group].item(), abs=1e-9)
        assert found[group].low < found[group].pearson < found[group].high


def test_far_from_zero_nothing_is_lost() -> None:
    near = random_images(10)
    # in steps of 2^-20, which an offset of 1e6 leaves as they are
    near = [((x * 2**20).round() / 2**20, (y * 2**20).round() / 2**20, g) for x, y, g in near]
    far = [(x + 1e6, y - 1e6, g) for x, y, g in near]
    for one, other in zip(correlate(counted(near)), correlate(counted(far)), strict=True):
        assert astuple(one) == pytest.approx(astuple(other), abs=1e-9)


def test_draws_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    images = counted(random_images(9))
    whole = correlate(images, resamples=50)
    assert correlate(images, resamples=50, seed=1) != whole
    monkeypatch.setattr(correlation, "DRAWN_AT_ONCE", 9 * 7)  # 7 resamples
    for found, expected in zip(correlate(images, resamples=50), whole, strict=True):
        assert astuple(found) == pytest.approx(astuple(expected), abs=1e-12)


def test_the_interval_of_independent_pairs() -> None:
    # One pair an image, normal: Fisher's interval is tanh(artanh r ± 1.96 / sqrt(I - 3)).
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 400, generator=generator, dtype=torch.float64)
    images = []
    for pair in zip(x.split(1), (0.75 * x + noise).split(1), strict=True):
        images.append(Comoments(1))
        images[-1].add(*pair, torch.zeros(1, dtype=torch.int64))
    (found,) = correlate(images, resamples=2000)
    z, half = math.atanh(found.pearson), 1.96 / math.sqrt(397)
    assert found.low == pytest.approx(math.tanh(z - half), abs=0.015)
    assert found.high == pytest.approx(math.tanh(z + half), abs=0.015)


def test_what_has_no_correlation_or_no_interval() -> None:
    images = [Comoments(5) for _ in range(3)]
    # group 0: two pairs of one image; 1: x is the same; 2: one pair; 3: constant in each image
    x = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.5])
    y = torch.tensor([0.1, 0.4, 0.1, 0.2, 0.5])
    images[0].add(x, y, torch.tensor([0, 0, 1, 1, 2]))
    for image, value in zip(images, (0.1, 0.7, 0.3), strict=True):
        image.add(torch.full((3,), value), torch.full((3,), value), torch.full((3,), 3))
    found = correlate(images)
    assert found[0] == Correlation(pytest.approx(1), None, None, 2, 1)
    assert found[1] == Correlation(None, None, None, 2, 1)
    assert found[2] == Correlation(None, None, None, 1, 1)
    # a resample of one image alone has none; all others have 1
    assert found[3] == Correlation(*[pytest.approx(1)] * 3, 9, 3)
    assert found[4] == Correlation(None, None, None, 0, 0)


def test_rounding_is_no_correlation() -> None:
    # Values are the same in each image: a resample of one image alone has no correlation, but what
    # rounding leaves of its sums would have any. All others have 1.
    images = []
    for value, size in ((0.37, 7), (0.7, 3)):
        images.append(Comoments(1))
        x = torch.full((size,), value, dtype=torch.float64)
        images[-1].add(x, 2 * x + 0.1, torch.zeros(size, dtype=torch.int64))
    (found,) = correlate(images)
    assert found == Correlation(*[pytest.approx(1)] * 3, 10, 2)


def test_equal_images_have_no_spread() -> None:
    for found in correlate(counted(random_images(1, seed=2) * 5)):
        assert found.low == pytest.approx(found.pearson) == pytest.approx(found.high)


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match="allowed: 1 or more resamples, a confidence between"):
        correlate([Comoments(1)], **options)
