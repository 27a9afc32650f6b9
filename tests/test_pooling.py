"""RoIAlign in parallel is detectron2's, bitwise."""

import threading
from collections.abc import Callable

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor

from builders import random_boxes, small_heads
from doublehead_d2.modeling import pooling
from doublehead_d2.modeling.pooling import ParallelROIAlign, pool_in_parallel

SETTINGS = ((7, 5), 0.25, 0, True)


def rois(count: int) -> Tensor:
    """Of two images."""
    boxes = random_boxes(count).tensor
    return torch.cat([torch.arange(count)[:, None] % 2, boxes], dim=1)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Filled with the threads that RoIs are pooled in; of torch's three, if 12 RoIs or more."""
    used: set[int] = set()
    stock = ROIAlign.forward

    def forward(self: ROIAlign, *args: Tensor) -> Tensor:
        used.add(threading.get_ident())
        return stock(self, *args)

    monkeypatch.setattr(ROIAlign, "forward", forward)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(pooling, "WORTH", 12 * 6 * 7 * 5)
    return used


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("count", [0, 1, 11, 12, 13, 100])
def test_pools_the_same(mode: Callable, count: int, threads: set[int]) -> None:
    features = torch.randn(2, 6, 16, 24, requires_grad=True)
    with mode():
        pooled = ParallelROIAlign(*SETTINGS)(features, rois(count))
        assert (threads == {threading.get_ident()}) == (count < 12)
        expected = ROIAlign(*SETTINGS)(features, rois(count))
    assert pooled.shape == (count, 6, 7, 5) and not pooled.requires_grad
    assert torch.equal(pooled, expected)


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a ramp, the mean of bilinear samples is the value at a bin's centre."""
    monkeypatch.setattr(pooling, "WORTH", 1)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32).contiguous()
    boxes = torch.tensor([[0.0, 4.0, 8.0, 12.0, 16.0]]).repeat(50, 1)
    with torch.no_grad():
        pooled = ParallelROIAlign((2, 2), 1.0, 0, True)(ramp, boxes)
    # Bins of 4 pixels about x = 6 and 10; pixel centres lie half a pixel further
    assert torch.equal(pooled, torch.tensor([[5.5, 9.5], [5.5, 9.5]]).expand(50, 1, 2, 2))


def test_gradients_traces_and_graphs_stay_in_one_thread(
    threads: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(2, 6, 16, 24, requires_grad=True)
    align, boxes = ParallelROIAlign(*SETTINGS), rois(50)
    align(features, boxes).sum().backward()
    assert features.grad is not None
    with torch.no_grad():
        traced = torch.jit.trace(align, (features, boxes), check_trace=False)
        assert traced(features, rois(30)).shape == (30, 6, 7, 5)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        align(features, boxes)
    assert threads == {threading.get_ident()}


def test_parallel_can_be_switched_off(threads: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    align = ParallelROIAlign(*SETTINGS)
    align.parallel = False
    with torch.no_grad():
        align(torch.randn(2, 6, 16, 24), rois(50))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        ParallelROIAlign(*SETTINGS)(torch.randn(2, 6, 16, 24), rois(50))
    assert threads == {threading.get_ident()}


def test_errors_reach_the_caller(threads: set[int]) -> None:
    with torch.no_grad(), pytest.raises(AssertionError):
        ParallelROIAlign(*SETTINGS)(torch.randn(2, 6, 16, 24), torch.zeros(50, 4))


def test_only_roi_align_is_replaced() -> None:
    pooler = ROIPooler(7, (0.25, 0.125), 2, "ROIAlign")
    pool_in_parallel(pooler)
    assert [type(align) for align in pooler.level_poolers] == [ParallelROIAlign] * 2
    found = [(x.output_size, x.spatial_scale, x.sampling_ratio, x.aligned)
             for x in pooler.level_poolers]  # fmt: skip
    assert found == [((7, 7), 0.25, 2, False), ((7, 7), 0.125, 2, False)]
    pooler = ROIPooler(7, (0.25,), 0, "ROIPool")
    before = type(pooler.level_poolers[0])
    pool_in_parallel(pooler)
    assert type(pooler.level_poolers[0]) is before


def test_the_heads_pool_in_parallel() -> None:
    heads = small_heads("MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True)
    for pooler in (heads.box_pooler, heads.mask_pooler, heads.keypoint_pooler):
        assert {type(align) for align in pooler.level_poolers} == {ParallelROIAlign}
