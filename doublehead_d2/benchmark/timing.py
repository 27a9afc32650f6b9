"""Seconds, memory and operations of detectors side by side, in one process."""

import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.events import EventStorage
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


def time_inference(
    models: Mapping[str, GeneralizedRCNN],
    batches: Sequence[list[dict]],
    *,
    repetitions: int,
    warmup: int = 1,
    precision: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """Median seconds of a forward pass of each model, all of them in turn.

    Args:
        models: prepared, in evaluation mode, on one device.
        batches: inputs, a batch a round, again from the first after the last.
        repetitions: timed rounds.
        warmup: rounds before.
        precision: that autocast computes in; float32 is no autocast.

    Returns:
        by model: "seconds" (median), "spread" (of the middle half of the rounds), "images_per_s",
        and for the first batch, counted in runs of their own: "gmacs" (multiply-adds of
        convolutions, fully connected layers and matrix products, in 10^9), "peak_mib" (the model
        and the most memory that its tensors took at a time) and, where the RoI heads count them,
        the RoIs that each box head was shown, e.g. "reg_head_rois".
    """

    def forward(name: str, inputs: list[dict]) -> None:
        with torch.no_grad():
            models[name].inference(inputs)

    return _time(models, forward, batches, repetitions, warmup, precision)


def time_training(
    models: Mapping[str, GeneralizedRCNN],
    batches: Sequence[list[dict]],
    *,
    repetitions: int,
    warmup: int = 1,
    precision: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """Median seconds of a forward and a backward pass; as :func:`time_inference`."""

    def step(name: str, inputs: list[dict]) -> None:
        model = models[name].train()
        with EventStorage():
            losses = sum(model(inputs).values())
        with torch.autocast(model.device.type, enabled=False):
            losses.backward()
        model.zero_grad(set_to_none=True)
        model.eval()

    return _time(models, step, batches, repetitions, warmup, precision)


def _time(
    models: Mapping[str, GeneralizedRCNN],
    run: Callable[[str, list[dict]], None],
    batches: Sequence[list[dict]],
    repetitions: int,
    warmup: int,
    precision: torch.dtype,
) -> dict[str, dict[str, float]]:
    device = next(iter(models.values())).device

    def run_round(name: str, repetition: int) -> None:
        # A context for every run: weights that autocast has cast are kept as long as it lasts.
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            run(name, batches[max(repetition - warmup, 0) % len(batches)])

    results = {}
    seconds = seconds_in_turn(run_round, models, warmup + repetitions, device)
    for name, values in seconds.items():
        values = values[warmup:]
        median = statistics.median(values)
        quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
        times = {
            "seconds": median,
            "spread": quarters[2] - quarters[0],
            "images_per_s": len(batches[0]) / median,
        }
        results[name] = times | _count(models[name], partial(run_round, name, 0))
    return results


def _count(model: GeneralizedRCNN, run: Callable[[], None]) -> dict[str, float]:
    """What a run takes whatever the machine's speed."""
    # detectron2's heads do not count what they are shown.
    counts: Any = getattr(model.roi_heads, "rois_shown", Counter())
    before = counts.copy()
    with FlopCounterMode(display=False) as counter:
        run()
    shown = {f"{name}_rois": count - before[name] for name, count in counts.items()}
    # In a run of its own: the counter keeps what activation checkpoints would free.
    with _recording_peak(model.device) as peak:
        run()
    # Folded blocks are kept beside the others, by now.
    folded = [getattr(module, "folded_blocks", None) for module in model.modules()]
    kept = [model, *(blocks for blocks in folded if blocks is not None)]
    tensors = [t for m in kept for t in (*m.parameters(), *m.buffers())]
    return {
        "gmacs": counter.get_total_flops() / 2e9,
        "peak_mib": (sum(tensor.nbytes for tensor in tensors) + peak[0]) / 2**20,
        **shown,
    }


@contextmanager
def _recording_peak(device: torch.device) -> Iterator[list[int]]:
    """Filled with the most bytes that tensors took at a time, beyond those before."""
    peak: list[int] = []
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device) - before)
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    # The only public place where torch gives allocations one by one
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path) as f:
            events = json.load(f)["traceEvents"]
    events = [e for e in events if e.get("name") == "[memory]"]
    events = [e["args"] for e in sorted(events, key=lambda e: e["ts"])]
    peak.append(_most_bytes((e["Addr"], e["Bytes"]) for e in events))


def _most_bytes(events: Iterable[tuple[int, int]]) -> int:
    """The most bytes held at a time, from (address, bytes; negative where freed) in order.

    What was allocated before and is freed meanwhile does not count.
    """
    held: dict[int, int] = {}
    total = most = 0
    for address, size in events:
        if size > 0:
            held[address] = size
            total += size
            most = max(most, total)
        else:
            total -= held.pop(address, 0)
    return most


def profile_inference(
    model: GeneralizedRCNN, inputs: list[dict], precision: torch.dtype = torch.float32
) -> str:
    """A table of the operators that a forward pass spends its time in, the dearest first.

    It has the caller's thread and torch's own; of RoIAlign on all cores, the caller's share.
    """
    activities = [ProfilerActivity.CPU]
    if model.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with (
        torch.no_grad(),
        torch.autocast(model.device.type, precision, enabled=precision != torch.float32),
        profile(activities=activities) as profiler,
    ):
        model.inference(inputs)
    return profiler.key_averages().table(
        sort_by=f"self_{model.device.type}_time_total", row_limit=12
    )


def seconds_in_turn(
    run: Callable[[str, int], object], names: Iterable[str], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of `run(name, round)` by name and round; all names in turn, round by round."""
    names = list(names)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names:
            seconds[name].append(seconds_of(partial(run, name, index), device))
    return seconds


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds from the start of `run` to the end of its work on the device."""
    if device.type != "cuda":
        start_time = time.perf_counter()
        run()
        return time.perf_counter() - start_time
    stream = torch.cuda.current_stream(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream.synchronize()  # else work from before would be in it
    start.record(stream)
    run()
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end) / 1000  # events count milliseconds
