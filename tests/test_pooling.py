"""RoIAlign in parallel is detectron2's, bitwise."""

import subprocess
import sys
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
def started(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Filled with the threads that are started; torch has three, worth it from 12 RoIs on."""
    threads: list[threading.Thread] = []

    class Thread(threading.Thread):
        def start(self) -> None:
            threads.append(self)
            super().start()

    monkeypatch.setattr(pooling, "Thread", Thread)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(pooling, "WORTH", 12 * 6 * 7 * 5)
    return threads


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("count", [0, 1, 11, 12, 13, 100])
def test_pools_the_same(mode: Callable, count: int, started: list) -> None:
    features = torch.randn(2, 6, 16, 24, requires_grad=True)
    with mode():
        pooled = ParallelROIAlign(*SETTINGS)(features, rois(count))
        assert len(started) == (0 if count < 12 else 2)
        expected = ROIAlign(*SETTINGS)(features, rois(count))
    assert pooled.shape == (count, 6, 7, 5) and not pooled.requires_grad
    assert torch.equal(pooled, expected)
    assert not any(thread.is_alive() for thread in started)


@torch.no_grad()
def test_all_threads_pool_at_a_time(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, calls = ROIAlign.forward, []
    together = threading.Barrier(3, timeout=60)

    def forward(self: ROIAlign, features: Tensor, part: Tensor) -> Tensor:
        if threading.get_ident() not in [thread for thread, _ in calls]:
            together.wait()
        calls.append((threading.get_ident(), len(part)))
        return stock(self, features, part)

    monkeypatch.setattr(ROIAlign, "forward", forward)
    ParallelROIAlign(*SETTINGS)(torch.randn(2, 6, 16, 24), rois(100))
    assert len({thread for thread, _ in calls}) == 3
    # At least four parts for each of three threads: of 100 // 12 RoIs
    assert sorted(count for _, count in calls) == [4] + [8] * 12
    calls.clear()
    monkeypatch.setattr(pooling, "_PART", 2 * 6 * 7 * 5)
    together.reset()
    ParallelROIAlign(*SETTINGS)(torch.randn(2, 6, 16, 24), rois(100))
    assert [count for _, count in calls] == [2] * 50


@torch.no_grad()
def test_pools_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thread:
        def __init__(self, **kwargs: object) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pooling, "Thread", Thread)
    monkeypatch.setattr(pooling, "WORTH", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    features = torch.randn(2, 6, 16, 24)
    pooled = ParallelROIAlign(*SETTINGS)(features, rois(50))
    assert torch.equal(pooled, ROIAlign(*SETTINGS)(features, rois(50)))


@pytest.mark.slow
def test_pools_after_the_main_thread_has_ended() -> None:
    """Where Python refuses pools of threads, and since 3.12 threads."""
    program = """
import threading, time, torch
from doublehead_d2.modeling.pooling import ParallelROIAlign

def work():
    main.join()
    time.sleep(0.5)
    with torch.no_grad():
        ParallelROIAlign((7, 7), 1.0, 0, True)(torch.ones(1, 256, 8, 8), torch.zeros(100, 5))
    print("pooled")

torch.set_num_threads(2)
main = threading.main_thread()
threading.Thread(target=work).start()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "pooled\n", result.stderr


@torch.no_grad()
def test_channels_last_maps_are_made_contiguous_once(
    started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(2, 6, 16, 24).to(memory_format=torch.channels_last)
    expected = ROIAlign(*SETTINGS)(features, rois(50))
    stock, seen = ROIAlign.forward, []

    def forward(self: ROIAlign, features: Tensor, part: Tensor) -> Tensor:
        seen.append(features)
        return stock(self, features, part)

    monkeypatch.setattr(ROIAlign, "forward", forward)
    assert torch.equal(ParallelROIAlign(*SETTINGS)(features, rois(50)), expected)
    assert len(seen) > 3 and seen[0].is_contiguous() and all(x is seen[0] for x in seen)


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
    started: list, monkeypatch: pytest.MonkeyPatch
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
    assert not started


@torch.no_grad()
def test_other_devices_stay_in_one_thread(started: list) -> None:
    features, boxes = torch.empty(2, 6, 16, 24, device="meta"), rois(50).to("meta")
    assert ParallelROIAlign(*SETTINGS)(features, boxes).shape == (50, 6, 7, 5)
    assert not started


def test_parallel_can_be_switched_off(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    align = ParallelROIAlign(*SETTINGS)
    align.parallel = False
    with torch.no_grad():
        align(torch.randn(2, 6, 16, 24), rois(50))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        ParallelROIAlign(*SETTINGS)(torch.randn(2, 6, 16, 24), rois(50))
    assert not started


def test_errors_reach_the_caller(started: list) -> None:
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
