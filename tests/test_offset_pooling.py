"""Pooling at offsets: hand-derived numbers, literal loops, torchvision's RoIAlign, gradients."""

import math

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor
from torchvision.ops import roi_align

from builders import random_boxes, random_features
from doublehead_d2.benchmark.timing import _recording_peak
from doublehead_d2.modeling import pooling
from doublehead_d2.modeling.pooling import (
    Mmdet1ROIAlign,
    offset_roi_align,
    pool_as_mmdet1,
    pool_at_offsets,
)

SCALE = 1 / 8
STRIDE = 8
# (image, XYXY): inside, beyond the corner, smaller than a cell, at halves of pixels, beside the map
ROIS = torch.tensor(
    [
        [0, 10.2, 12.7, 61.3, 50.9],
        [1, -21.0, -9.0, 40.0, 30.0],
        [0, 30.1, 20.2, 31.4, 21.0],
        [1, 12.5, 20.5, 47.5, 33.5],
        [0, 70.0, 55.0, 140.0, 120.0],
        [1, 300.0, 300.0, 320.0, 330.0],
    ],
    dtype=torch.float64,
)


def features(channels: int = 3, height: int = 9, width: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=generator)


def offsets(count: int = len(ROIS), size: tuple[int, int] = (7, 7)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 2, *size, dtype=torch.float64, generator=generator)


def pool(maps: Tensor, rois: Tensor, shifts: Tensor, *, samples: int = 4, legacy: bool = False):
    return offset_roi_align(
        maps, rois, shifts, spatial_scale=SCALE, samples=samples, offset_scale=0.1, legacy=legacy
    )


def literal(maps: Tensor, rois: Tensor, shifts: Tensor, samples: int, legacy: bool) -> Tensor:
    """The rule, one sample after the other."""
    _, channels, height, width = maps.shape
    bins_h, bins_w = shifts.shape[2:]
    out = maps.new_zeros(len(rois), channels, bins_h, bins_w)

    def c_round(x: float) -> float:
        return math.copysign(math.floor(abs(x) + 0.5), x)

    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        if legacy:
            x1, y1 = c_round(x1), c_round(y1)
            x2, y2 = c_round(x2 - 1) + 1, c_round(y2 - 1) + 1
        w, h = (x2 - x1) / STRIDE, (y2 - y1) / STRIDE
        if legacy:
            w, h = max(w, 0.1), max(h, 0.1)
        margin, first = (0.5, 0.0) if legacy else (1.0, 0.5)
        for ph in range(bins_h):
            for pw in range(bins_w):
                dx, dy = shifts[r, :, ph, pw].tolist()
                total, kept = maps.new_zeros(channels), 0
                for i in range(samples):
                    for j in range(samples):
                        u = x1 / STRIDE - 0.5 + (pw + (j + first) / samples) * w / bins_w
                        v = y1 / STRIDE - 0.5 + (ph + (i + first) / samples) * h / bins_h
                        u, v = u + 0.1 * dx * w, v + 0.1 * dy * h
                        if not -margin <= u <= width - 1 + margin:
                            continue
                        if not -margin <= v <= height - 1 + margin:
                            continue
                        kept += 1
                        u, v = min(max(u, 0), width - 1), min(max(v, 0), height - 1)
                        left, top = math.floor(u), math.floor(v)
                        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
                        a, b = u - left, v - top
                        m = maps[int(image)]
                        total = total + (1 - b) * ((1 - a) * m[:, top, left] + a * m[:, top, right])
                        total = total + b * ((1 - a) * m[:, bottom, left] + a * m[:, bottom, right])
                out[r, :, ph, pw] = total / (max(kept, 1) if legacy else samples**2)
    return out


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("samples", "size"), [(4, (7, 7)), (2, (3, 5))])
def test_is_the_rule_literally(legacy: bool, samples: int, size: tuple[int, int]) -> None:
    shifts = offsets(size=size) * 2
    expected = literal(features(), ROIS, shifts, samples, legacy)
    pooled = pool(features(), ROIS, shifts, samples=samples, legacy=legacy)
    torch.testing.assert_close(pooled, expected, atol=1e-12, rtol=0)
    assert expected[:5].abs().amax(dim=(1, 2, 3)).gt(0).all() and not expected[5].any()


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_without_offsets_is_roi_align_v2(samples: int) -> None:
    expected = roi_align(features(), ROIS, (7, 7), SCALE, samples, aligned=True)
    pooled = pool(features(), ROIS, torch.zeros_like(offsets()), samples=samples)
    torch.testing.assert_close(pooled, expected, atol=1e-12, rtol=0)


def test_each_bin_is_a_roi_of_its_own() -> None:
    shifts = offsets()
    x1, y1, x2, y2 = (ROIS[:, i, None, None] for i in range(1, 5))
    bins = torch.arange(7, dtype=torch.float64)
    left = x1 + (x2 - x1) * (bins / 7 + 0.1 * shifts[:, 0])
    top = y1 + (y2 - y1) * (bins[:, None] / 7 + 0.1 * shifts[:, 1])
    image = ROIS[:, 0, None, None].expand_as(left)
    rois = torch.stack([image, left, top, left + (x2 - x1) / 7, top + (y2 - y1) / 7], dim=-1)
    expected = roi_align(features(), rois.reshape(-1, 5), 1, SCALE, 4, aligned=True)
    expected = expected.view(len(ROIS), 7, 7, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(pool(features(), ROIS, shifts), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("legacy", "middle"), [(False, 1 / 2), (True, 3 / 8)])
def test_ramp(legacy: bool, middle: float) -> None:
    """On F[v, u] = u the mean of a bin is where its samples are on average.

    RoI (16, 24, 72, 66) at stride 8: X1 = 16 / 8 - 0.5 = 1.5, W = 56 / 8 = 7, so a bin is one cell
    wide: X1 + pw + 1/2 (samples in the middle of quarters), or + 3/8 (at 0, 1/4, 2/4, 3/4), and an
    offset of -0.5 moves it by 0.1 * -0.5 * 7 = -0.35.
    """
    maps = torch.arange(11.0, dtype=torch.float64).expand(1, 1, 9, 11)
    roi = torch.tensor([[0, 16.0, 24.0, 72.0, 66.0]], dtype=torch.float64)
    shifts = torch.zeros(1, 2, 7, 7, dtype=torch.float64)
    shifts[0, 0, :, 3] = -0.5
    shifts.requires_grad_()
    pooled = pool(maps, roi, shifts, legacy=legacy)
    expected = 1.5 + torch.arange(7, dtype=torch.float64) + middle
    expected[3] -= 0.35
    torch.testing.assert_close(pooled[0, 0], expected.expand(7, 7))
    # A step to the right of one cell changes the mean by one: 0.1 * W = 0.7 an offset of 1.
    pooled.sum().backward()
    torch.testing.assert_close(shifts.grad[0, 0], torch.full((7, 7), 0.7, dtype=torch.float64))
    assert not shifts.grad[0, 1].any()


def test_legacy_rounds_halves_away_from_zero() -> None:
    """The RoI (12.5, 0.5, 26.5, 20.5) is (13, 1, 27, 21): torch.round would make 12 of 12.5."""
    maps = torch.arange(11.0, dtype=torch.float64).expand(1, 1, 9, 11)
    roi = torch.tensor([[0, 12.5, 0.5, 26.5, 20.5]], dtype=torch.float64)
    pooled = pool(maps, roi, torch.zeros(1, 2, 7, 7, dtype=torch.float64), legacy=True)
    # X1 = 13 / 8 - 0.5 = 1.125; W = 14 / 8, a bin 0.25; 3/8 of it 0.09375
    expected = 1.125 + 0.25 * torch.arange(7, dtype=torch.float64) + 0.09375
    torch.testing.assert_close(pooled[0, 0, 3], expected)
    values = torch.tensor([-2.5, -0.5, -0.4, 0.0, 0.5, 1.5, 2.4999])
    assert pooling._round(values).tolist() == [-3, -1, 0, 0, 1, 2, 2]


@pytest.mark.parametrize("legacy", [False, True])
def test_gradients(legacy: bool) -> None:
    maps, shifts = features(channels=2), offsets(size=(2, 3))
    inputs = (maps.requires_grad_(), shifts.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda f, o: pool(f, ROIS, o, samples=2, legacy=legacy), inputs, atol=1e-6
    )


@pytest.mark.parametrize("grad", [False, True])
def test_no_rois(grad: bool) -> None:
    maps, shifts = features().requires_grad_(), offsets(0).requires_grad_()
    with torch.set_grad_enabled(grad):
        pooled = pool(maps, ROIS[:0], shifts)
    assert pooled.shape == (0, 3, 7, 7)
    if grad:
        pooled.sum().backward()
        assert not maps.grad.any() and shifts.grad.shape == (0, 2, 7, 7)


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_cells_named_once_are_those_named_twice(legacy: bool, samples: int) -> None:
    """In inference on a CPU cells are merged where that is less; of large bins they are not."""
    maps = features(height=60, width=80)
    large = ROIS[:1] * torch.tensor([1.0, 1, 1, 9, 9])  # bins of 9 cells
    for rois in (ROIS, large):
        shifts = offsets(len(rois))
        merged = pool(maps, rois, shifts, samples=samples, legacy=legacy)
        with torch.enable_grad():
            expected = pool(maps, rois, shifts, samples=samples, legacy=legacy)
        torch.testing.assert_close(merged, expected)


@torch.no_grad()
def test_merged_cells_are_fewer() -> None:
    arguments = (torch.tensor([2.25]), torch.tensor([7.0]), torch.zeros(1, 1, 7), 20, 4, False)
    twice, _ = pooling._taps(*arguments, merged=False)
    once, weights = pooling._taps(*arguments, merged=True)
    # The first bin is a cell wide, from 2.25: its samples lie at 2.375, 2.625, 2.875 and 3.125.
    assert twice[0, 0, 0].tolist() == [2, 3, 2, 3, 2, 3, 3, 4]
    assert once[0, 0, 0].tolist() == [2, 3, 4]
    # cell 2: 0.625 + 0.375 + 0.125; cell 3: 0.375 + 0.625 + 0.875 + 0.875; cell 4: 0.125; of 4
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([1.125, 2.75, 0.125]) / 4)


@torch.no_grad()
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pool(features(), ROIS, offsets())
    monkeypatch.setattr(pooling, "_CHUNK", 2 * 49 * 64)  # two RoIs
    assert torch.equal(pool(features(), ROIS, offsets()), whole)


@pytest.mark.parametrize("count, grad", [(1000, False), (512, True)])
def test_memory_is_bounded(count: int, grad: bool) -> None:
    """128 MiB above the inputs for 256 channels, output included (issue 16)."""
    maps = torch.randn(1, 256, 100, 144, requires_grad=grad)
    rois = torch.cat([torch.zeros(count, 1), random_boxes(count).tensor * 10], dim=1)
    shifts = torch.randn(count, 2, 7, 7, requires_grad=grad)
    out_grad = torch.randn(count, 256, 7, 7)
    with torch.set_grad_enabled(grad), _recording_peak(torch.device("cpu")) as peak:
        pooled = pool(maps, rois, shifts)
        if grad:
            pooled.backward(out_grad)
    assert pooled.nbytes < peak[0] <= 128 * 2**20


def pooler(kind: str = "ROIAlignV2", sampling_ratio: int = 4) -> ROIPooler:
    return ROIPooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32), sampling_ratio, kind)


@torch.no_grad()
@pytest.mark.parametrize("levels", [4, 1])
def test_pools_from_the_level_of_the_box(levels: int) -> None:
    maps = list(random_features(2).values())[:levels]
    boxes = [random_boxes(9), random_boxes(4, seed=1)]
    boxes[0].tensor[:3] *= 12  # boxes of several levels
    single = ROIPooler(7, (1 / 4,), 4, "ROIAlignV2")
    stock = pooler() if levels == 4 else single
    zeros = torch.zeros(13, 2, 7, 7)
    pooled = pool_at_offsets(stock, maps, boxes, zeros, samples=4, offset_scale=0.1)
    torch.testing.assert_close(pooled, stock(maps, boxes), atol=1e-5, rtol=1e-5)


def test_offsets_in_half_precision_pool_in_float32() -> None:
    maps, boxes = list(random_features(1).values()), [random_boxes(5)]
    shifts = torch.randn(5, 2, 7, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool_at_offsets(pooler(), maps, boxes, shifts, samples=4, offset_scale=0.1)
    assert pooled.dtype == torch.float32
    expected = pool_at_offsets(pooler(), maps, boxes, shifts.float(), samples=4, offset_scale=0.1)
    assert torch.equal(pooled, expected)


def test_mmdet1_roi_align_has_no_least_size() -> None:
    """On F[v, u] = u, a RoI of 0.28 cells from u = 2.5 has its first bin in the middle of 0.04."""
    maps = torch.arange(11.0).expand(1, 1, 9, 11)
    roi = torch.tensor([[0, 20.0, 16.0, 22.24, 40.0]])
    align = Mmdet1ROIAlign((7, 7), SCALE, 2, aligned=True)
    expected = 2.5 + 0.04 * (torch.arange(7) + 0.5)
    torch.testing.assert_close(align(maps, roi)[0, 0, 3], expected)
    stock = ROIAlign((7, 7), SCALE, 2, aligned=False)
    assert (stock(maps, roi)[0, 0, 3] - expected).abs().max() > 0.3
    # Larger RoIs are detectron2's.
    roi = torch.tensor([[0, 20.0, 16.0, 62.0, 40.0]])
    torch.testing.assert_close(align(maps, roi), stock(maps, roi))


def test_a_pooler_as_mmdet1() -> None:
    changed = pooler("ROIAlign", 2)
    pool_as_mmdet1(changed)
    assert [type(x) for x in changed.level_poolers] == [Mmdet1ROIAlign] * 4
    assert [x.spatial_scale for x in changed.level_poolers] == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert {(x.output_size, x.sampling_ratio) for x in changed.level_poolers} == {((7, 7), 2)}
