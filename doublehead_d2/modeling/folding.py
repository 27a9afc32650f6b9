"""Batch norms folded into the convolutions before them, for inference."""

import copy
from typing import Any

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of `module` that computes the same in evaluation mode, up to rounding, in less time.

    With a batch norm's running mean μ and variance v, scale γ and shift β, the convolution
    y = w * x + b and the norm γ (y - μ) / sqrt(v + ε) + β are one convolution with the weights
    s w and the bias s (b - μ) + β, s = γ / sqrt(v + ε). Other norms stay.

    Args:
        module: its convolutions with norms are detectron2's `Conv2d`. It is not changed.
    """
    module = copy.deepcopy(module)
    for conv in module.modules():
        if not isinstance(conv, Conv2d):
            continue
        norm: Any = conv.norm
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)):
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            conv.norm = None
    return module
