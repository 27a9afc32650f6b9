"""Anchors of the code that the authors' checkpoints were trained with."""

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
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class LegacyAnchorGenerator(DefaultAnchorGenerator):
    """The anchors of the first Faster R-CNN, of Detectron and of maskrcnn-benchmark.

    They differ from `DefaultAnchorGenerator`'s in three ways: width and height are rounded for an
    anchor as large as the stride and only then scaled to its size; anchors are centred on the
    middle of the stride's cell, not on its corner; several sizes at one level are ordered by aspect
    ratio first. Where the original names the last pixel of a box, the anchors here end after it.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """As `DefaultAnchorGenerator`; raises ValueError for an OFFSET: the centre is fixed."""
        offset = cfg.MODEL.ANCHOR_GENERATOR.OFFSET
        if offset:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}; with NAME 'LegacyAnchorGenerator', "
                "whose anchors are centred on the middle of a cell, allowed: 0.0"
            )
        return {**super().from_config(cfg, input_shape), "offset": 0.0}

    def _calculate_anchors(
        self, sizes: list[list[float]], aspect_ratios: list[list[float]]
    ) -> BufferList:
        return BufferList(
            [
                legacy_cell_anchors(stride, sizes_of_level, ratios)
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
