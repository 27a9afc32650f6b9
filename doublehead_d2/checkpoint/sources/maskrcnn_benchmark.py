"""Keys of the authors' code, github.com/wuyuebupt/doubleheadsrcnn, a fork of maskrcnn-benchmark."""

from collections.abc import Iterator

from torch import Tensor

from doublehead_d2.checkpoint.sources.renames import (
    COUNTED_NORM,
    LINEAR,
    NORM,
    Rename,
    background_last,
    layer,
    resnet_stages,
    without_background_box,
)
from doublehead_d2.checkpoint.sources.source import Published, Source

FEATURES = "roi_heads.box.feature_extractor"
PREDICTOR = "roi_heads.box.predictor"

# Its frozen batch norms divide by sqrt(var), detectron2's by sqrt(var + this).
FROZEN_NORM_EPS = 1e-5


def renames(depth: int) -> Iterator[Rename]:
    """Every key of a model with a ResNet of `depth` layers.

    Frozen variances lose detectron2's epsilon, background moves from the first class to the last,
    and its boxes go. The anchors are dropped: `LegacyAnchorGenerator` makes them.
    """
    stem = "backbone.bottom_up.stem.conv1"
    yield from layer("backbone.body.stem.conv1", stem, ["weight"])
    yield from _frozen_norm("backbone.body.stem.bn1", f"{stem}.norm")
    yield from resnet_stages(depth, "backbone.body", _frozen_norm)
    for i in range(1, 5):
        yield from layer(f"backbone.fpn.fpn_inner{i}", f"backbone.fpn_lateral{i + 1}", LINEAR)
        yield from layer(f"backbone.fpn.fpn_layer{i}", f"backbone.fpn_output{i + 1}", LINEAR)
    for i in range(5):
        yield Rename(f"rpn.anchor_generator.cell_anchors.{i}", None)
    rpn = "proposal_generator.rpn_head"
    yield from layer("rpn.head.conv", f"{rpn}.conv", LINEAR)
    yield from layer("rpn.head.cls_logits", f"{rpn}.objectness_logits", LINEAR)
    yield from layer("rpn.head.bbox_pred", f"{rpn}.anchor_deltas", LINEAR)
    yield from _heads()


def _heads() -> Iterator[Rename]:
    """Both heads classify and regress."""
    first = f"{FEATURES}.nonlocal_conv"
    for conv, norm, ours in (
        ("top.0", "top.1", "shortcut"),
        ("bottom.0", "bottom.1", "conv1"),
        ("bottom.3", "bottom.4", "conv2"),
    ):
        block = f"roi_heads.reg_head.blocks.0.{ours}"
        yield from layer(f"{first}.{conv}", block, ["weight"])
        yield from layer(f"{first}.{norm}", f"{block}.norm", COUNTED_NORM)
    for i in range(2):
        # One of theirs is our non-local block and the bottleneck block after it.
        theirs = f"{FEATURES}.shared_nonlocal.{i}"
        nonlocal_block = f"roi_heads.reg_head.blocks.{2 * i + 1}"
        for name in ("g", "theta", "phi"):
            yield from layer(f"{theirs}.{name}", f"{nonlocal_block}.{name}", LINEAR)
        yield from layer(f"{theirs}.W.0", f"{nonlocal_block}.out", LINEAR)
        yield from layer(f"{theirs}.W.bn", f"{nonlocal_block}.out.norm", COUNTED_NORM)
        for j in range(3):
            conv = f"roi_heads.reg_head.blocks.{2 * i + 2}.conv{j + 1}"
            yield from layer(f"{theirs}.ffconv.bottleneck.{3 * j}", conv, ["weight"])
            norm = f"{theirs}.ffconv.bottleneck.{3 * j + 1}"
            yield from layer(norm, f"{conv}.norm", COUNTED_NORM)
    for i in (1, 2):
        yield from layer(f"{FEATURES}.fc{i + 5}", f"roi_heads.box_head.fc{i}", LINEAR)
    for suffix, ours in (("", "roi_heads.reg_predictor"), ("_fc", "roi_heads.box_predictor")):
        classes = dict.fromkeys(LINEAR, background_last)
        yield from layer(f"{PREDICTOR}.cls_score{suffix}", f"{ours}.cls_score", LINEAR, classes)
        boxes = dict.fromkeys(LINEAR, without_background_box)
        yield from layer(f"{PREDICTOR}.bbox_pred{suffix}", f"{ours}.bbox_pred", LINEAR, boxes)


def _frozen_norm(theirs: str, ours: str) -> Iterator[Rename]:
    yield from layer(theirs, ours, NORM, {"running_var": without_eps})


def without_eps(variance: Tensor) -> Tensor:
    """The variance to which detectron2's frozen batch norm adds its epsilon."""
    return variance - FROZEN_NORM_EPS


def _published(depth: int, identifier: str) -> Published:
    return Published(
        file=f"dh_faster_rcnn_R_{depth}_FPN_1x.pth",
        depth=depth,
        address=f"https://drive.google.com/open?id={identifier}",
        direct=False,
        config=f"Imported/official_double_head_ext_rcnn_R_{depth}_FPN_1x.yaml",
    )


SOURCE = Source(
    name="maskrcnn_benchmark",
    title="the authors' code (maskrcnn-benchmark)",
    model="Double-Head R-CNN",
    mark="roi_heads.box.",
    model_mark="roi_heads.box.feature_extractor.nonlocal_conv.",
    res4="backbone.body.layer3.",
    cls_scores=(f"{PREDICTOR}.cls_score", f"{PREDICTOR}.cls_score_fc"),
    box_deltas=(f"{PREDICTOR}.bbox_pred", f"{PREDICTOR}.bbox_pred_fc"),
    background_boxes=1,
    agnostic_rows=8,
    renames=renames,
    published={
        "official/dh_faster_rcnn_R_50_FPN_1x": _published(50, "1KnRoyJQjS9rQUTCFEm54AIsUy2qbZTK_"),
        "official/dh_faster_rcnn_R_101_FPN_1x": _published(
            101, "18CMdq4U9TZOCz7SSj-3c27xkfqO_gvwP"
        ),
    },
)
