"""Seconds and memory of detectors side by side, in one process.

Models have random weights, whose RPN and classifier say little; what costs time in a trained model
is set instead: the number of proposals, and the share of them with a class above the test
threshold (the survivors), by moving that threshold.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from doublehead_d2 import model_zoo
from doublehead_d2.modeling import DoubleHeadConvHead, DoubleHeadROIHeads

BASELINE = "faster_rcnn"
_LAZY = "MODEL.ROI_DOUBLE_HEAD.LAZY_REG_HEAD"


class Variant(NamedTuple):
    """A detector to measure."""

    config: str  # name in the zoo
    chunks: bool = True  # whether the conv-head works in chunks on a CPU
    opts: tuple = ()  # config changes, KEY, VALUE, ...


_FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_paper_1x.yaml"
_DOUBLE = "COCO-Detection/double_head_rcnn_R_50_FPN_paper_1x.yaml"
_EXT = "COCO-Detection/double_head_ext_rcnn_R_50_FPN_paper_1x.yaml"
_MMDET = "Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml"
# "_plain": every RoI through the whole conv-head at once, as in the two published implementations
VARIANTS = {
    BASELINE: Variant(_FASTER),
    "double_head_plain": Variant(_DOUBLE, chunks=False, opts=(_LAZY, False)),
    "double_head": Variant(_DOUBLE),
    "mmdet_layout_plain": Variant(_MMDET, chunks=False, opts=(_LAZY, False)),
    "mmdet_layout": Variant(_MMDET),
    "ext_plain": Variant(_EXT, chunks=False),
    "ext": Variant(_EXT),
    "ext_floor": Variant(_EXT, opts=("MODEL.ROI_DOUBLE_HEAD.SCORE_FLOOR", 0.05)),
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
    cfg = model_zoo.get_config(variant.config)
    cfg.merge_from_list([*variant.opts, *opts, "MODEL.WEIGHTS", "", "MODEL.DEVICE", device])
    # Random layers have no trained statistics: inputs of size 1, and below residual blocks that add
    # little, keep activations from growing until boxes overflow.
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, DoubleHeadConvHead) and not variant.chunks:
            module.cpu_chunk = 1 << 30
    for module in model.backbone.modules():
        if isinstance(module, BottleneckBlock):
            module.conv3.norm.weight.fill_(0.2)
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
    inputs: list[dict],
    *,
    repetitions: int,
    warmup: int = 1,
) -> dict[str, dict[str, float]]:
    """Median seconds of a forward pass of each model, all of them in turn.

    Args:
        models: prepared, in evaluation mode, on one device.
        inputs: a batch.
        repetitions: timed rounds.
        warmup: rounds before.

    Returns:
        by model: "seconds" (median), "spread" (of the middle half of the rounds), "images_per_s",
        "reg_head_rois" (RoIs of the batch that reached the regression head, or 0) and, on a GPU,
        "peak_mib".
    """

    def forward(name: str) -> None:
        with torch.no_grad():
            models[name].inference(inputs)

    return _time(models, forward, len(inputs), repetitions, warmup)


def time_training(
    models: Mapping[str, GeneralizedRCNN],
    inputs: list[dict],
    *,
    repetitions: int,
    warmup: int = 1,
) -> dict[str, dict[str, float]]:
    """Median seconds of a forward and a backward pass; as :func:`time_inference`."""

    def step(name: str) -> None:
        model = models[name].train()
        with EventStorage():
            sum(model(inputs).values()).backward()
        model.zero_grad(set_to_none=True)
        model.eval()

    return _time(models, step, len(inputs), repetitions, warmup)


def _time(
    models: Mapping[str, GeneralizedRCNN],
    run: Any,
    num_images: int,
    repetitions: int,
    warmup: int,
) -> dict[str, dict[str, float]]:
    device = next(iter(models.values())).device
    seconds: dict[str, list[float]] = {name: [] for name in models}
    results: dict[str, dict[str, float]] = {name: {} for name in models}
    for repetition in range(warmup + repetitions):
        for name, model in models.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            with _counting_rois(model) as rois:
                start = time_when_done(device)
                run(name)
                elapsed = time_when_done(device) - start
            if repetition >= warmup:
                seconds[name].append(elapsed)
            results[name]["reg_head_rois"] = sum(rois)
            if device.type == "cuda":
                results[name]["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    for name, values in seconds.items():
        median = statistics.median(values)
        quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
        results[name] |= {
            "seconds": median,
            "spread": quarters[2] - quarters[0],
            "images_per_s": num_images / median,
        }
    return results


def time_when_done(device: torch.device) -> float:
    """The time in seconds when all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _counting_rois(model: GeneralizedRCNN) -> Iterator[list[int]]:
    """Filled with the number of RoIs of each call of the regression head."""
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
