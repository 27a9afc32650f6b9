"""Keys of mmdetection's Double-Head R-CNN, versions 2 and 3 (`DoubleHeadRoIHead`)."""

from collections.abc import Iterator

from doublehead_d2.checkpoint.sources.mmdet_trunk import trunk
from doublehead_d2.checkpoint.sources.renames import COUNTED_NORM, LINEAR, Rename, layer
from doublehead_d2.checkpoint.sources.source import Published, Source

HEAD = "roi_head.bbox_head"


def renames(depth: int) -> Iterator[Rename]:
    """Every key of a model with a ResNet of `depth` layers.

    Tensors stay as they are: background is the last class there, too, and frozen batch norms have
    the same epsilon.
    """
    yield from trunk(depth)
    yield from _heads()


def _heads() -> Iterator[Rename]:
    """The fc-head classifies, the conv-head regresses."""
    yield from layer(f"{HEAD}.fc_cls", "roi_heads.box_predictor.cls_score", LINEAR)
    yield from layer(f"{HEAD}.fc_reg", "roi_heads.reg_predictor.bbox_pred", LINEAR)
    for theirs, ours in (("conv1", "conv1"), ("conv2", "conv2"), ("conv_identity", "shortcut")):
        block = f"roi_heads.reg_head.blocks.0.{ours}"
        yield from layer(f"{HEAD}.res_block.{theirs}.conv", block, ["weight"])
        yield from layer(f"{HEAD}.res_block.{theirs}.bn", f"{block}.norm", COUNTED_NORM)
    for branch in range(4):
        for i in (1, 2, 3):
            theirs, ours = f"{HEAD}.conv_branch.{branch}", f"roi_heads.reg_head.blocks.{branch + 1}"
            yield from layer(f"{theirs}.conv{i}", f"{ours}.conv{i}", ["weight"])
            yield from layer(f"{theirs}.bn{i}", f"{ours}.conv{i}.norm", COUNTED_NORM)
    for i in range(2):
        yield from layer(f"{HEAD}.fc_branch.{i}", f"roi_heads.box_head.fc{i + 1}", LINEAR)


_FILE = "dh_faster_rcnn_r50_fpn_1x_coco_20200130-586b67df.pth"
SOURCE = Source(
    name="mmdet",
    title="mmdetection",
    model="Double-Head R-CNN",
    mark="roi_head.bbox_head.",
    model_mark="roi_head.bbox_head.conv_branch.",
    res4="backbone.layer3.",
    cls_scores=(f"{HEAD}.fc_cls",),
    box_deltas=(f"{HEAD}.fc_reg",),
    background_boxes=0,
    agnostic_rows=4,
    renames=renames,
    published={
        "mmdet/dh_faster_rcnn_r50_fpn_1x_coco": Published(
            file=_FILE,
            depth=50,
            address="https://download.openmmlab.com/mmdetection/v2.0/double_heads/"
            f"dh_faster_rcnn_r50_fpn_1x_coco/{_FILE}",
            direct=True,
            config="Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml",
        ),
    },
)
