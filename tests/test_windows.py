"""The sliding windows: how many, where, their IoUs; bins and subsets of them."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou

from doublehead_d2.analysis import windows
from doublehead_d2.analysis.windows import (
    BINS,
    WINDOWS,
    iou_bins,
    stratified_subset,
    windows_around,
)

FAR = (20_000, 20_000)  # an image whose edges no window reaches
BOX = torch.tensor([4000.0, 5000.0, 4300.0, 5100.0])


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_as_many_in_each_bin() -> None:
    found = windows_around(BOX, FAR)
    assert found.boxes.shape == (WINDOWS, 4) == (14_401, 4) and found.boxes.dtype == torch.float32
    counts = torch.bincount(iou_bins(found.ious), minlength=BINS)
    assert counts.tolist() == [720] * 19 + [721]  # 4 IoUs x 5 sizes x 3 ratios x 12 directions
    assert len(found.boxes.unique(dim=0)) == WINDOWS


@pytest.mark.parametrize("side", [8.0, 30.0, 700.0])
def test_ious_are_those_of_the_rule(side: float) -> None:
    start = 14 * side  # windows are up to 13 times as wide, and reach as far
    box = torch.tensor([start, start, start + side, start + side / 2])
    found = windows_around(box, FAR)
    expected = (torch.arange(80) * 2 + 1).repeat_interleave(180) / 160
    torch.testing.assert_close(found.ious[1:], expected, rtol=0, atol=1e-3 if side < 30 else 2e-4)
    assert torch.equal(iou_bins(found.ious[1:]), iou_bins(expected))
    # by hand and in float64, without a +1
    boxes, own = found.boxes.double(), box.double()
    shared = (torch.minimum(boxes[:, 2:], own[2:]) - torch.maximum(boxes[:, :2], own[:2])).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + side * side / 2 - shared
    torch.testing.assert_close(found.ious.double(), shared / union, rtol=0, atol=1e-5)


@pytest.mark.parametrize("box", [[0.3, 0.7, 11.1, 17.9], [100.1, 3.3, 1000.7, 600.9]])
def test_the_object_itself_comes_first(box: list[float]) -> None:
    found = windows_around(torch.tensor(box), (800, 1333))
    assert torch.equal(found.boxes[0], torch.tensor(box)) and found.ious[0] == 1.0


def test_windows_by_hand() -> None:
    found = windows_around(BOX, FAR)
    own = torch.tensor([300.0, 100.0])
    boxes = found.boxes[1:].view(80, 5, 3, 12, 4)
    sizes = boxes[..., 2:] - boxes[..., :2]
    areas, ratios = sizes.prod(dim=-1) / own.prod(), sizes[..., 0] / sizes[..., 1] / 3
    # q of index 40 is 81/160
    q = 81 / 160
    expected = torch.tensor([q ** (2 / 3), q ** (1 / 3), 1.0, q ** (-1 / 3), q ** (-2 / 3)])
    torch.testing.assert_close(
        areas[40], expected[:, None, None].expand(5, 3, 12), rtol=1e-3, atol=0
    )
    expected = torch.tensor([q ** (-1 / 3), 1.0, q ** (1 / 3)])
    torch.testing.assert_close(ratios[40], expected[:, None].expand(5, 3, 12), rtol=1e-3, atol=0)
    # Of the object's own size and ratio, to the right by a share d of its width:
    # (1 - d) / (1 + d) = q, d = (1 - q) / (1 + q). Direction 0 is right, 3 down, 6 left.
    d = (1 - q) / (1 + q)
    for direction, shift in ((0, (300 * d, 0)), (3, (0, 100 * d)), (6, (-300 * d, 0))):
        expected = BOX + torch.tensor([*shift, *shift])
        torch.testing.assert_close(boxes[40, 2, 1, direction], expected, rtol=0, atol=2e-3)


def test_every_window_slides() -> None:
    # In its place it covers more than q: there is a way left, whatever the size and ratio.
    found = windows_around(BOX, FAR).boxes[1:]
    centers = (found[:, :2] + found[:, 2:]) / 2 - (BOX[:2] + BOX[2:]) / 2
    directions = (centers / torch.tensor([300.0, 100.0])).norm(dim=1)
    assert directions.min() > 1e-3


def test_windows_are_clipped_to_the_image() -> None:
    height, width = 50, 200
    box = torch.tensor([0.0, 10.0, 100.0, 50.0])
    found = windows_around(box, (height, width))
    assert 1000 < len(found.boxes) < WINDOWS
    assert found.boxes[:, :2].min() >= 0
    assert found.boxes[:, 2].max() <= width and found.boxes[:, 3].max() <= height
    assert Boxes(found.boxes).nonempty().all()
    assert len(found.boxes.unique(dim=0)) == len(found.boxes)
    expected = pairwise_iou(Boxes(found.boxes), Boxes(box[None]))[:, 0]
    assert torch.equal(found.ious, expected)  # after clipping
    # in the same order as those that are not clipped
    free = windows_around(box + 5000, FAR).boxes - 5000
    clipped = Boxes(free.clone())
    clipped.clip((height, width))
    distances = (found.boxes[:200, None] - clipped.tensor[None]).abs().amax(dim=2)
    first = (distances < 0.01).double().argmax(dim=1)
    assert (first.diff() > 0).all()


def test_an_object_that_fills_the_image() -> None:
    found = windows_around(torch.tensor([0.0, 0.0, 40.0, 30.0]), (30, 40))
    assert (found.ious == 1).sum() == 1  # what covers it all is clipped to it
    assert len(found.boxes) > 5000


def test_boxes_outside_are_refused() -> None:
    for box in ([0.0, 0.0, 41.0, 30.0], [5.0, 5.0, 5.0, 9.0], [-1.0, 0.0, 3.0, 3.0]):
        with pytest.raises(AssertionError, match=r"in an image of 30 x 40 \(height x width\)"):
            windows_around(torch.tensor(box), (30, 40))


def test_bins_of_ious() -> None:
    ious = torch.tensor([0.0, 0.0499, 0.05, 0.1, 0.15, 0.35, 0.55, 0.7, 0.9499, 0.95, 1.0])
    assert iou_bins(ious).tolist() == [0, 0, 1, 2, 3, 7, 11, 14, 18, 19, 19]
    assert iou_bins(ious.double()).tolist()[3:4] == [2]


def test_subsets_are_equal_in_every_bin() -> None:
    ious = windows_around(BOX, FAR).ious
    chosen = stratified_subset(ious, 1000, generator())
    assert torch.bincount(iou_bins(ious[chosen]), minlength=BINS).tolist() == [50] * 20
    assert (chosen.diff() > 0).all()
    # 3 more than 50 each: to the highest IoUs
    chosen = stratified_subset(ious, 1003, generator())
    assert torch.bincount(iou_bins(ious[chosen])).tolist() == [50] * 17 + [51] * 3


def test_what_a_bin_lacks_the_others_give() -> None:
    # 3 in bin 0, 10 in bin 10, 20 in bin 19: of 16 3, 6 and 7; of 30 3, 10 and 17
    ious = torch.tensor([0.01] * 3 + [0.51] * 10 + [0.99] * 20)
    for count, expected in ((16, [3, 6, 7]), (30, [3, 10, 17]), (2, [0, 1, 1]), (0, [0, 0, 0])):
        chosen = stratified_subset(ious, count, generator())
        counts = torch.bincount(iou_bins(ious[chosen]), minlength=BINS)
        assert counts[[0, 10, 19]].tolist() == expected
    assert stratified_subset(ious, 33, generator()).tolist() == list(range(33))
    assert stratified_subset(ious, 99, generator()).tolist() == list(range(33))


def test_subsets_follow_from_the_generator_alone() -> None:
    ious = windows_around(BOX, FAR).ious
    one, again = (stratified_subset(ious, 500, generator(3)) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, stratified_subset(ious, 500, generator(4)))


def test_every_window_of_a_bin_has_the_same_chance() -> None:
    ious = torch.tensor([0.01] * 4 + [0.99] * 4)
    drawn = torch.cat([stratified_subset(ious, 4, generator(seed)) for seed in range(2000)])
    # 1000 expected of each; the standard deviation is sqrt(2000 / 4) = 22
    counts = torch.bincount(drawn, minlength=8)
    assert (counts - 1000).abs().max() < 100


def test_centred_windows_cover_more_than_their_iou() -> None:
    # what the rule relies on, for every size and ratio
    for j in range(windows.IOUS):
        q = (j + 0.5) / windows.IOUS
        for size in windows.SIZES:
            for ratio in windows.RATIOS:
                w, h = q ** ((size + ratio) / 2), q ** ((size - ratio) / 2)
                shared = min(1, w) * min(1, h)
                assert shared / (1 + w * h - shared) > q
    assert math.isclose(windows.SIZES[0], -windows.SIZES[-1])
