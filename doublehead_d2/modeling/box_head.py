"""The conv-head of Double-Head R-CNN as a box head of detectron2's registry."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from doublehead_d2.config import check_conv_head_config
from doublehead_d2.modeling.blocks import NonLocalBlock, ResidualBlock

# RoIs that go through the blocks together in inference on a CPU: their maps then stay in its cache,
# and no time goes into asking for memory. 32 to 64 were fastest; the output is the same up to
# rounding, at the paper's widths bitwise.
CPU_CHUNK = 32


@ROI_BOX_HEAD_REGISTRY.register()
class DoubleHeadConvHead(nn.Module):
    """A stack of residual and non-local blocks, then average pooling (Section 4.1, Fig. 5).

    Works in `DoubleHeadROIHeads` in either role and, as the paper's Single-Conv, in
    `StandardROIHeads`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        blocks: Sequence[str],
        dim: int = 1024,
        bottleneck_dim: int = 256,
        nonlocal_dim: int = 512,
        nonlocal_groups: int = 4,
        norm: str = "BN",
    ) -> None:
        """
        Args:
            input_shape: shape of the RoI features; its channels are used.
            blocks: "residual" first, then any of "bottleneck" and "nonlocal".
            dim: channels of every block's output.
            bottleneck_dim: inner channels of the bottleneck blocks.
            nonlocal_dim: inner channels of the non-local blocks.
            nonlocal_groups: groups of a non-local block, a divisor of `nonlocal_dim`.
            norm: normalisation, a name that `detectron2.layers.get_norm` knows.
        """
        super().__init__()
        assert blocks and blocks[0] == "residual", f"first block must be 'residual': {blocks}"
        self.output_channels = dim
        self.cpu_chunk = CPU_CHUNK
        layers: list[nn.Module] = [ResidualBlock(input_shape.channels, dim, norm=norm)]
        for block in blocks[1:]:
            if block == "bottleneck":
                layers.append(
                    BottleneckBlock(dim, dim, bottleneck_channels=bottleneck_dim, norm=norm)
                )
            else:
                assert block == "nonlocal", f"unknown block '{block}'"
                layers.append(NonLocalBlock(dim, nonlocal_dim, nonlocal_groups, norm=norm))
        self.blocks = nn.Sequential(*layers)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read `MODEL.ROI_DOUBLE_HEAD.CONV_HEAD`; raises ValueError where it is invalid."""
        check_conv_head_config(cfg, input_shape.channels)
        node = cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD
        return {
            "input_shape": input_shape,
            "blocks": node.BLOCKS,
            "dim": node.DIM,
            "bottleneck_dim": node.BOTTLENECK_DIM,
            "nonlocal_dim": node.NONLOCAL_DIM,
            "nonlocal_groups": node.NONLOCAL_GROUPS,
            "norm": node.NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map RoI features R x C x H x W to feature vectors R x DIM."""
        # Batch norm needs all RoIs in training; a trace would keep today's number of chunks.
        if self.training or x.device.type != "cpu" or torch.jit.is_tracing():
            return self._forward_chunk(x)
        return torch.cat([self._forward_chunk(chunk) for chunk in x.split(self.cpu_chunk)])

    def _forward_chunk(self, x: Tensor) -> Tensor:
        return self.blocks(x).mean(dim=(2, 3))

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of one RoI's feature vector, as detectron2's box heads give it."""
        return ShapeSpec(channels=self.output_channels)
