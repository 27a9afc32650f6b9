"""Building blocks of the conv-head (Fig. 5 of https://arxiv.org/abs/1904.06493).

Shape legend: R RoIs; C channels; H, W height and width of a RoI feature; N = H x W positions;
G groups of a non-local block; D inner channels of one group.

The paper's bottleneck block (Fig. 5b) is detectron2's own `BottleneckBlock`.
"""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from torch import Tensor, nn


class ResidualBlock(CNNBlockBase):
    """Raises the number of channels: 3x3, norm, ReLU, 1x1, norm, plus 1x1, norm; ReLU (Fig. 5a).

    The 3x3 convolution keeps the input's width; no convolution has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: str = "BN") -> None:
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            norm: a name that `detectron2.layers.get_norm` knows.
        """
        super().__init__(in_channels, out_channels, stride=1)
        self.conv1 = Conv2d(
            in_channels,
            in_channels,
            kernel_size=3,
            padding=1,
            bias=False,
            norm=get_norm(norm, in_channels),
        )
        self.conv2 = Conv2d(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        self.shortcut = Conv2d(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        for layer in (self.conv1, self.conv2, self.shortcut):
            weight_init.c2_msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map features R x C_in x H x W to R x C_out x H x W."""
        out = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(out + self.shortcut(x))


class NonLocalBlock(nn.Module):
    """Dot-product attention over the positions of a RoI, with a residual sum (Fig. 5c).

    In each group y_i = (1/N) Σ_j <θ_i, φ_j> g_j; then x + norm(out(y)), ReLU. What the paper
    leaves open is as in the authors' code (github.com/wuyuebupt/doubleheadsrcnn): consecutive
    groups of inner channels, division by N and no softmax, biases in all four convolutions and a
    norm after `out` alone, `out` zero at the start, so that a new block is relu(x).
    """

    def __init__(
        self, channels: int, inner_channels: int, groups: int, *, norm: str = "BN"
    ) -> None:
        """
        Args:
            channels: channels of input and output.
            inner_channels: channels of θ, φ and g, over all groups.
            groups: groups of inner channels that attend separately; divides `inner_channels`.
            norm: a name that `detectron2.layers.get_norm` knows.
        """
        super().__init__()
        assert inner_channels % groups == 0, f"{groups} groups for {inner_channels} channels"
        self.groups = groups
        # θ, φ and g keep torch's default initialisation: nothing normalises their products, and a
        # wider one would let attention swamp x from the start.
        self.theta = Conv2d(channels, inner_channels, kernel_size=1)
        self.phi = Conv2d(channels, inner_channels, kernel_size=1)
        self.g = Conv2d(channels, inner_channels, kernel_size=1)
        self.out = Conv2d(inner_channels, channels, kernel_size=1, norm=get_norm(norm, channels))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map features R x C x H x W to the same shape."""
        layers = (self.theta, self.phi, self.g)
        # One convolution that reads x once: the same values in less time (dev/benchmarks). Forward
        # hooks on the three are not called.
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        theta, phi, g = (self._split(y) for y in F.conv2d(x, weight, bias).chunk(3, dim=1))
        affinity = theta.transpose(2, 3) @ phi / phi.shape[3]  # R x G x N x N, row i: weights of j
        y = g @ affinity.transpose(2, 3)  # R x G x D x N
        y = y.reshape(x.shape[0], self.g.out_channels, x.shape[2], x.shape[3])
        return F.relu_(x + self.out(y))

    def _split(self, x: Tensor) -> Tensor:
        """Separate the groups: R x (G*D) x H x W to R x G x D x N."""
        # No -1 in the shape, which would be ambiguous for R = 0.
        rois, channels, height, width = x.shape
        return x.reshape(rois, self.groups, channels // self.groups, height * width)
