"""What imported checkpoints were trained with and detectron2 does otherwise.

For imported models alone (configs/Imported): anchors, the RPN, clipping to pixels, small boxes.
Boxes are XYXY in absolute coordinates of the (padded) network input.
"""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class LegacyAnchorGenerator(DefaultAnchorGenerator):
    """The anchors of the first Faster R-CNN, of Detectron and of maskrcnn-benchmark.

    They differ from `DefaultAnchorGenerator`'s in three ways: width and height are rounded for an
    anchor as large as the stride and only then scaled to its size; anchors are centred on the
    middle of the stride's cell, not on its corner; several sizes at one level are ordered by aspect
    ratio first. Where the original names the last pixel of a box, the anchors here end after it.
    """

    @staticmethod
    def cell_anchors_of(stride: int, sizes: list[float], aspect_ratios: list[float]) -> Tensor:
        """Those of the first cell, see :func:`legacy_cell_anchors`."""
        return legacy_cell_anchors(stride, sizes, aspect_ratios)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """As `DefaultAnchorGenerator`; raises ValueError for an OFFSET: the centre is fixed."""
        offset = cfg.MODEL.ANCHOR_GENERATOR.OFFSET
        if offset:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}; with NAME '{cls.__name__}', whose "
                "anchors are centred on the middle of a cell, allowed: 0.0"
            )
        return {**super().from_config(cfg, input_shape), "offset": 0.0}

    def _calculate_anchors(
        self, sizes: list[list[float]], aspect_ratios: list[list[float]]
    ) -> BufferList:
        return BufferList(
            [
                self.cell_anchors_of(stride, sizes_of_level, ratios)
                for stride, sizes_of_level, ratios in zip(
                    self.strides, sizes, aspect_ratios, strict=True
                )
            ]
        )


def legacy_cell_anchors(stride: int, sizes: list[float], aspect_ratios: list[float]) -> Tensor:
    """Anchors of the first cell of a feature map.

    Args:
        stride: of the feature map, in pixels.
        sizes: approximate square roots of the anchors' areas, in pixels.
        aspect_ratios: height / width.

    Returns:
        float32 XYXY boxes about (stride / 2, stride / 2), shape (ratios * sizes) x 4.
    """
    anchors = []
    for ratio in aspect_ratios:
        # Python's round is numpy's, with which the original rounds: halves go to the even number.
        width = round(math.sqrt(stride * stride / ratio))
        height = round(width * ratio)
        for size in sizes:
            half_w, half_h = width * size / stride / 2, height * size / stride / 2
            center = stride / 2
            anchors.append([center - half_w, center - half_h, center + half_w, center + half_h])
    return torch.tensor(anchors, dtype=torch.float32)


@ANCHOR_GENERATOR_REGISTRY.register()
class Mmdet1AnchorGenerator(LegacyAnchorGenerator):
    """The anchors of mmdetection 1.

    They are as large as detectron2's and centred as `LegacyAnchorGenerator`'s; corners are rounded
    to whole pixels. Where the original names the last pixel of a box, the anchors here end after
    it.
    """

    @staticmethod
    def cell_anchors_of(stride: int, sizes: list[float], aspect_ratios: list[float]) -> Tensor:
        """Those of the first cell, see :func:`mmdet1_cell_anchors`."""
        return mmdet1_cell_anchors(stride, sizes, aspect_ratios)


def mmdet1_cell_anchors(stride: int, sizes: list[float], aspect_ratios: list[float]) -> Tensor:
    """Anchors of the first cell of a feature map.

    Args:
        stride: of the feature map, in pixels.
        sizes: square roots of the anchors' areas before rounding, in pixels.
        aspect_ratios: height / width.

    Returns:
        float32 XYXY boxes about (stride / 2, stride / 2), shape (ratios * sizes) x 4; corners are
        whole numbers.
    """
    roots = torch.tensor(aspect_ratios).sqrt()[:, None]
    widths, heights = ((torch.tensor(sizes) * x).flatten() for x in (1 / roots, roots))
    # The first and the last pixel, half a width less half a pixel from the middle pixel's centre
    first_x, first_y, last_x, last_y = (
        (stride - 1) / 2 + sign * (length - 1) / 2
        for sign in (-1, 1)
        for length in (widths, heights)
    )
    # torch rounds halves to the even number, as the original, which rounds with torch.
    pixels = torch.stack([first_x, first_y, last_x, last_y], dim=1).round()
    return pixels + torch.tensor([0.0, 0.0, 1.0, 1.0])


@PROPOSAL_GENERATOR_REGISTRY.register()
class LegacyRPN(RPN):
    """`RPN` whose proposals are clipped to the pixels of the image, as in maskrcnn-benchmark.

    A proposal outside the image stays there as a sliver one pixel thin, which takes part in all
    that follows; detectron2 drops it.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """As `RPN`; with MODEL.RPN.BOUNDARY_THRESH >= 0 anchors may end where the image does."""
        ret = super().from_config(cfg, input_shape)
        if ret["anchor_boundary_thresh"] >= 0:
            # detectron2 asks for x2 < width, the original that the last pixel, x2 - 1, be below it.
            # The corners of legacy anchors are integers, so that half a pixel tells the two apart.
            ret["anchor_boundary_thresh"] += 0.5
        return ret

    @torch.no_grad()  # proposals are constants to the heads
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode, clip and choose proposals.

        Args:
            anchors: of each feature map, Hi * Wi * A boxes.
            pred_objectness_logits: of each feature map, N x (Hi * Wi * A).
            pred_anchor_deltas: of each feature map, N x (Hi * Wi * A) x 4.
            image_sizes: (height, width) of the N images.

        Returns:
            N elements with `proposal_boxes` and `objectness_logits`, the best first.
        """
        decoded = self._decode_proposals(anchors, pred_anchor_deltas)
        clipped = []
        for boxes in decoded:  # N x (Hi * Wi * A) x 4
            images = zip(boxes, image_sizes, strict=True)
            clipped.append(torch.stack([clip_to_pixels(x, size) for x, size in images]))
        return find_top_rpn_proposals(
            clipped,
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )


@PROPOSAL_GENERATOR_REGISTRY.register()
class Mmdet1RPN(LegacyRPN):
    """`LegacyRPN` whose proposals have a least size relative to their anchor, as in mmdetection."""

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """As :meth:`LegacyRPN.predict_proposals`."""
        deltas = [with_least_sizes(x, self.box2box_transform) for x in pred_anchor_deltas]
        return super().predict_proposals(anchors, pred_objectness_logits, deltas, image_sizes)


def with_least_sizes(deltas: Tensor, transform: Box2BoxTransform) -> Tensor:
    """Deltas that detectron2 decodes as mmdetection does those given.

    mmdetection limits how much smaller than its anchor or proposal a box may become, too, to
    16 / 1000; detectron2 only how much larger.

    Args:
        deltas: (dx, dy, dw, dh), one or several in the last dimension.
        transform: the box coder, with its weights and its limit of dw and dh.

    Returns:
        same shape.
    """
    least = [-math.inf] * 2 + [-transform.scale_clamp * x for x in transform.weights[2:]]
    return deltas.unflatten(-1, (-1, 4)).maximum(deltas.new_tensor(least)).flatten(-2)


def clip_to_pixels(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip boxes so that each covers a pixel of the image, as code does that names the last pixel.

    Args:
        boxes: XYXY, shape R x 4 or, one box a class, R x 4K.
        image_size: (height, width).

    Returns:
        new boxes of the same shape: the upper left corner lies at most at the beginning of the last
        pixel, the lower right one at least at the end of the first.
    """
    height, width = image_size
    x1, y1, x2, y2 = (boxes[:, i::4] for i in range(4))
    clipped = (
        x1.clamp(min=0, max=width - 1),
        y1.clamp(min=0, max=height - 1),
        x2.clamp(min=1, max=width),
        y2.clamp(min=1, max=height),
    )
    return torch.stack(clipped, dim=2).flatten(1)
