"""Keys of the TSD authors' code, github.com/Sense-X/TSD, a fork of mmdetection 1."""

from collections.abc import Iterator

from torch import Tensor

from doublehead_d2.checkpoint.sources.mmdet_trunk import trunk
from doublehead_d2.checkpoint.sources.renames import (
    LINEAR,
    Rename,
    background_last,
    layer,
    without_background_box,
)
from doublehead_d2.checkpoint.sources.source import Published, Source

HEAD = "bbox_head"
MASK_SCORES = "mask_head.conv_logits"


def renames(depth: int) -> Iterator[Rename]:
    """Every key of a model with a ResNet of `depth` layers, without a mask head.

    Background moves from the first class to the last, and its boxes go. Pooling has no parameters.
    """
    yield from trunk(depth)
    offset = "roi_heads.offset_head"
    yield from layer(f"{HEAD}.shared_fc.0", f"{offset}.fc", LINEAR)
    for delta in ("delta_c", "delta_r"):
        for i in (0, 2):
            yield from layer(f"{HEAD}.{delta}.{i}", f"{offset}.{delta}.{i}", LINEAR)
    for theirs, ours in (("shared", "sibling"), ("TSD_pc", "box"), ("TSD_pr", "reg")):
        for i in range(2):
            yield from layer(f"{HEAD}.{theirs}_fcs.{i}", f"roi_heads.{ours}_head.fc{i + 1}", LINEAR)
    for theirs, cls_head, reg_head in (("", "sibling", "sibling"), ("TSD_", "box", "reg")):
        yield from layer(
            f"{HEAD}.{theirs}fc_cls",
            f"roi_heads.{cls_head}_predictor.cls_score",
            LINEAR,
            dict.fromkeys(LINEAR, background_last),
        )
        yield from layer(
            f"{HEAD}.{theirs}fc_reg",
            f"roi_heads.{reg_head}_predictor.bbox_pred",
            LINEAR,
            dict.fromkeys(LINEAR, without_background_box),
        )


def mask_renames() -> Iterator[Rename]:
    """The mask head of their Mask R-CNN; the mask of background goes."""
    head = "roi_heads.mask_head"
    for i in range(4):
        yield from layer(f"mask_head.convs.{i}.conv", f"{head}.mask_fcn{i + 1}", LINEAR)
    yield from layer("mask_head.upsample", f"{head}.deconv", LINEAR)
    classes = dict.fromkeys(LINEAR, without_background_mask)
    yield from layer(MASK_SCORES, f"{head}.predictor", LINEAR, classes)


def without_background_mask(rows: Tensor) -> Tensor:
    """K + 1 rows, background first, to K."""
    return rows[1:].clone()


def _published(name: str, depth: int, identifier: str, config: str) -> Published:
    return Published(
        file=f"{name}.pth",
        depth=depth,
        address=f"https://drive.google.com/open?id={identifier}",
        direct=False,
        config=f"Imported/official_tsd_{config}_R_{depth}_FPN_1x.yaml",
        masks=name.startswith("mask"),
    )


# The authors' links have no names of files: these are those of their configs.
_PUBLISHED = {
    "faster_rcnn_r50_fpn_TSD_1x": (50, "1G0ngN4Ro5PpcB7S__09Cz3EkAfsWWPy_", "rcnn"),
    "faster_rcnn_r101_fpn_TSD_1x": (101, "1FghatPmrWx8QPeZaOn-dODJP3nqu9Jdj", "rcnn"),
    "faster_rcnn_r152_fpn_TSD_1x": (152, "1OQTkZIzNZ323BBxsxwMbl6YDYAgAfvb0", "rcnn"),
    "mask_rcnn_r50_fpn_TSD_1x": (50, "17iFSOinWyTtWRF4wc6B-zNext4DuZLDt", "mask_rcnn"),
}
SOURCE = Source(
    name="tsd",
    title="the TSD authors' code (mmdetection 1)",
    model="TSD",
    mark=f"{HEAD}.",
    model_mark=f"{HEAD}.TSD_",
    res4="backbone.layer3.",
    cls_scores=(f"{HEAD}.TSD_fc_cls", f"{HEAD}.fc_cls", MASK_SCORES),
    box_deltas=(f"{HEAD}.TSD_fc_reg", f"{HEAD}.fc_reg"),
    background_boxes=1,
    agnostic_rows=None,  # their progressive constraint needs boxes of every class
    renames=renames,
    published={f"tsd/{name}": _published(name, *entry) for name, entry in _PUBLISHED.items()},
    mask_renames=mask_renames,
    refused={
        rf"^{HEAD}\.\d+\.": "a Cascade R-CNN, which has a box head for each of its stages",
        r"\.conv2(\.conv)?_offset\.": "a model with deformable convolutions",
    },
)
