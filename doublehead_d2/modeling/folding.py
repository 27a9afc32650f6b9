"""Batch norms folded into the convolutions before them, for inference."""

import copy
import itertools
from typing import Any, TypeVar

from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

M = TypeVar("M", bound=nn.Module)
_FOLDED = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm, FrozenBatchNorm2d)


def can_fold(module: nn.Module) -> bool:
    """Whether a folded copy would do all that `module` does, and changes of it could be seen.

    A copy does not call the hooks of the original, weights of pruning and parametrisations are made
    in forward passes, and tensors made in inference mode do not count their changes.
    """
    tensors = itertools.chain(module.parameters(), module.buffers())
    return not (
        any(
            m._forward_hooks or m._forward_pre_hooks or is_parametrized(m) for m in module.modules()
        )
        or any(x.is_inference() for x in tensors)
    )


def fold_batch_norms(module: M) -> M:
    """A copy of `module` that computes the same in evaluation mode, up to rounding, in less time.

    With a batch norm's running mean μ and variance v, scale γ and shift β, the convolution
    y = w * x + b and the norm γ (y - μ) / sqrt(v + ε) + β are one convolution with the weights
    s w and the bias s (b - μ) + β, s = γ / sqrt(v + ε). Other norms stay.

    Args:
        module: its convolutions with norms are detectron2's `Conv2d`. It is not changed.
    """
    module = copy.deepcopy(module)
    for conv in module.modules():
        norm: Any = getattr(conv, "norm", None)
        if not isinstance(conv, Conv2d) or type(norm) not in _FOLDED:
            continue
        statistics = (norm.running_mean, norm.running_var, norm.eps)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, *statistics, norm.weight, norm.bias
        )
        conv.norm = None
    return module
