"""Seconds, memory and operations of detectors side by side, in one process.

Models with random weights, whose RPN and classifier say little, are set up to cost what a trained
model costs: the number of proposals is given, and the share of them with a class above the test
threshold (the survivors), by moving that threshold. A trained Double-Head-Ext is measured as it is.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from doublehead_d2 import model_zoo
from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.modeling import DoubleHeadConvHead, DoubleHeadROIHeads
from doublehead_d2.modeling.pooling import ParallelROIAlign, pool_in_parallel

BASELINE = "faster_rcnn"
_NODE = "MODEL.ROI_DOUBLE_HEAD"


class Variant(NamedTuple):
    """A detector to measure."""

    config: str  # name in the zoo
    opts: tuple = ()  # config changes, KEY, VALUE, ...
    tasks: tuple[str, ...] = ("inference",)
    # On a CPU, neither chunks in the conv-head nor RoIAlign on all cores, or both; None: as built
    plain: bool | None = None


_FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_paper_1x.yaml"
_DOUBLE = "COCO-Detection/double_head_rcnn_R_50_FPN_paper_1x.yaml"
_EXT = "COCO-Detection/double_head_ext_rcnn_R_50_FPN_paper_1x.yaml"
_MMDET = "Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml"
_ALL_ROIS = (f"{_NODE}.LAZY_REG_HEAD", False)
_FOREGROUND = (f"{_NODE}.TRAIN_REG_HEAD_ON", "foreground")
_CHECKPOINTS = (f"{_NODE}.CONV_HEAD.USE_ACT_CHECKPOINT", True)
_FOLDED = (f"{_NODE}.CONV_HEAD.FOLD_BN", True)
_FLOOR = (f"{_NODE}.SCORE_FLOOR", 0.05)
_BOTH = ("inference", "training")
# "_plain": every RoI through the whole conv-head at once, as in the two published implementations
VARIANTS = {
    BASELINE: Variant(_FASTER, tasks=_BOTH),
    # What of the difference to the baseline is RoIAlign's
    "faster_rcnn_pooled": Variant(_FASTER, plain=False),
    "double_head_plain": Variant(_DOUBLE, _ALL_ROIS, plain=True),
    "double_head": Variant(_DOUBLE, tasks=_BOTH),
    "mmdet_layout_plain": Variant(_MMDET, _ALL_ROIS, plain=True),
    "mmdet_layout": Variant(_MMDET),
    "ext_plain": Variant(_EXT, plain=True),
    "ext": Variant(_EXT, tasks=_BOTH),
    "ext_folded": Variant(_EXT, _FOLDED),
    "ext_floor": Variant(_EXT, _FLOOR),
    "double_head_foreground": Variant(_DOUBLE, _FOREGROUND, ("training",)),
    "double_head_checkpoints": Variant(_DOUBLE, _CHECKPOINTS, ("training",)),
    "double_head_both": Variant(_DOUBLE, _FOREGROUND + _CHECKPOINTS, ("training",)),
    "ext_checkpoints": Variant(_EXT, _CHECKPOINTS, ("training",)),
}
# The detectors that are in a trained Double-Head-Ext: its fc-head alone, its fc-head's scores with
# its conv-head's boxes, and the whole
_UNFUSED = (f"{_NODE}.SCORE_FUSION", "cls_head")
_NOT_SPARED = (f"{_NODE}.SCORE_FLOOR", 0.0, f"{_NODE}.CONV_HEAD.FOLD_BN", False)
TRAINED_VARIANTS: dict[str, tuple] = {
    BASELINE: ("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    "double_head_plain": (*_UNFUSED, *_ALL_ROIS),
    "double_head": _UNFUSED,
    "ext_plain": (),
    "ext": (),
    "ext_folded": _FOLDED,
    "ext_floor": _FLOOR,
}


class Setting(NamedTuple):
    """What a measurement is made with."""

    image_size: tuple[int, int] = (800, 1216)  # height, width
    batch_size: int = 1
    num_proposals: int = 1000  # an image
    survivors: float = 0.15  # share of the proposals with a class above the test threshold


def build_variant(name: str, device: str, opts: Sequence[object] = ()) -> GeneralizedRCNN:
    """A model of `VARIANTS` with random weights, in evaluation mode.

    Args:
        name: key of `VARIANTS`.
        device: as MODEL.DEVICE.
        opts: further config changes.
    """
    variant = VARIANTS[name]
    cfg = model_zoo.read_config(model_zoo.get_config_file(variant.config))
    cfg.merge_from_list([*variant.opts, *opts, "MODEL.WEIGHTS", "", "MODEL.DEVICE", device])
    # Random layers have no trained statistics: inputs of size 1, and below residual blocks that add
    # little, keep activations from growing until boxes overflow.
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    torch.manual_seed(0)
    model = _build(cfg, variant.plain)
    for module in model.backbone.modules():
        if isinstance(module, BottleneckBlock):
            module.conv3.norm.weight.fill_(0.2)
    return model


def build_trained(name: str, cfg: CfgNode) -> GeneralizedRCNN:
    """A model of `TRAINED_VARIANTS` with the weights of a trained Double-Head-Ext.

    Args:
        name: key of `TRAINED_VARIANTS`.
        cfg: of the trained model, its weights in MODEL.WEIGHTS.

    Raises:
        ValueError: the model has no weights, or not those of two heads that both learned both
            tasks, or does not fuse their scores.
    """
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    fused = cfg.MODEL.ROI_HEADS.NAME == "DoubleHeadROIHeads" and node.CLS_HEAD.LAMBDA < 1
    if not (fused and node.SCORE_FUSION not in ("cls_head", "reg_head") and cfg.MODEL.WEIGHTS):
        raise ValueError(
            f"MODEL.WEIGHTS is '{cfg.MODEL.WEIGHTS}', {_NODE}.SCORE_FUSION '{node.SCORE_FUSION}'; "
            "allowed: the weights of a trained Double-Head-Ext, from which the others are taken"
        )
    cfg = cfg.clone()
    cfg.merge_from_list([*_NOT_SPARED, *TRAINED_VARIANTS[name]])
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    node.SCORE_FLOOR = min(node.SCORE_FLOOR, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
    model = _build(cfg, VARIANTS[name].plain)
    checkpointer = DoubleHeadCheckpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    missing = [k for k in checkpointer.missing_keys if not k.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"'{cfg.MODEL.WEIGHTS}' lacks {len(missing)} tensors of the model, {missing[0]} first; "
            "allowed: the weights of a trained Double-Head-Ext"
        )
    return model


def _build(cfg: CfgNode, plain: bool | None) -> GeneralizedRCNN:
    model = build_model(cfg).eval()
    for module in model.modules() if plain is not None else ():
        if isinstance(module, DoubleHeadConvHead) and plain:
            module.cpu_chunk = 1 << 30
        elif isinstance(module, ParallelROIAlign) and plain:
            module.parallel = False
        elif isinstance(module, ROIPooler) and not plain:
            pool_in_parallel(module)
    return model


def random_inputs(setting: Setting, num_objects: int = 0, num_classes: int = 80) -> list[dict]:
    """Images of noise, in detectron2's input format.

    Args:
        setting: size and number of the images.
        num_objects: annotated boxes an image, for training.
        num_classes: of the objects.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = setting.image_size
    inputs = []
    for _ in range(setting.batch_size):
        pixels = torch.randint(0, 256, (3, height, width), generator=generator).float()
        sample: dict[str, Any] = {"image": pixels, "height": height, "width": width}
        if num_objects:
            corners = torch.rand(num_objects, 2, 2, generator=generator)
            corners = corners.sort(dim=1)[0] * torch.tensor([width - 32.0, height - 32.0])
            boxes = torch.cat([corners[:, 0], corners[:, 1] + 32], dim=1)
            classes = torch.randint(0, num_classes, (num_objects,), generator=generator)
            objects = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=classes)
            sample["instances"] = objects
        inputs.append(sample)
    return inputs


@torch.no_grad()
def prepare(model: GeneralizedRCNN, inputs: list[dict], setting: Setting) -> None:
    """Set the number of proposals and the share of survivors, in place.

    Raises:
        ValueError: the RPN has not as many proposals; says how many.
    """
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.pre_nms_topk[False] = max(1000, setting.num_proposals)
    rpn.post_nms_topk[False] = setting.num_proposals
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    proposals, _ = rpn(images, features)
    found = min(len(x) for x in proposals)
    if found < setting.num_proposals:
        raise ValueError(
            f"{setting.num_proposals} proposals are asked for; allowed: up to the {found} that the "
            f"random RPN gives for images of {setting.image_size}"
        )
    boxes = [x.proposal_boxes for x in proposals]
    if isinstance(heads, DoubleHeadROIHeads):
        scores = heads.predict(features, boxes).cls_head.scores
    else:
        maps = [features[name] for name in heads.box_in_features]
        scores = heads.box_predictor(heads.box_head(heads.box_pooler(maps, boxes)))[0]
    # Logits that differ from RoI to RoI as a trained model's; initial ones are all alike.
    factor = 3 / scores.std()
    heads.box_predictor.cls_score.weight *= factor
    scores = scores * factor
    best = scores.softmax(dim=1)[:, :-1].amax(dim=1)
    threshold = best.quantile(1 - setting.survivors).item()
    heads.box_predictor.test_score_thresh = threshold
    if getattr(heads, "score_floor", 0) > 0:
        heads.score_floor = threshold  # the highest that is allowed


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
        and the most memory that its tensors took at a time) and "reg_head_rois" (RoIs that reached
        the regression head, or 0).
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
    with FlopCounterMode(display=False) as counter, counting_rois(model) as rois:
        run()
    # In a run of its own: the counter keeps what activation checkpoints would free.
    with _recording_peak(model.device) as peak:
        run()
    # Folded blocks are kept beside the others, by now.
    copies = [x for m in model.modules() if isinstance(m, DoubleHeadConvHead) for x in m._folded]
    tensors = [t for m in (model, *copies) for t in (*m.parameters(), *m.buffers())]
    return {
        "gmacs": counter.get_total_flops() / 2e9,
        "peak_mib": (sum(tensor.nbytes for tensor in tensors) + peak[0]) / 2**20,
        "reg_head_rois": sum(rois),
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


def find_device(name: str | None) -> str:
    """The device to measure on: the named one, or the GPU if there is one.

    Raises:
        ValueError: no CPU or CUDA device, or one that torch does not find here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        known = torch.empty(0, device=name).device.type in ("cpu", "cuda")
    except (AssertionError, RuntimeError):  # a build without CUDA; no such device
        known = False
    if not known:
        found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        allowed = ["cpu", "cuda", *found] if found else ["cpu"]
        raise ValueError(f"--device is '{name}'; allowed here: {', '.join(allowed)}")
    return "cpu" if torch.device(name).type == "cpu" else name  # there is one, cpu:0


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


@contextmanager
def counting_rois(model: GeneralizedRCNN) -> Iterator[list[int]]:
    """Filled with the number of RoIs of each call of the regression head, if there is one."""
    rois: list[int] = []
    if not isinstance(model.roi_heads, DoubleHeadROIHeads):
        yield rois
        return
    hook = model.roi_heads.reg_head.register_forward_pre_hook(
        lambda module, args: rois.append(len(args[0]))
    )
    try:
        yield rois
    finally:
        hook.remove()
