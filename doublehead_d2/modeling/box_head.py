"""The conv-head of Double-Head R-CNN as a box head of detectron2's registry."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from doublehead_d2.config import check_conv_head_config
from doublehead_d2.modeling.blocks import NonLocalBlock, ResidualBlock
from doublehead_d2.modeling.folding import can_fold, fold_batch_norms

# RoIs that go through the blocks together in inference on a CPU: their maps then stay in its cache,
# and no time goes into asking for memory. 32 to 64 were fastest; the output is the same up to
# rounding, at the paper's widths bitwise. Narrower heads take as many as fill as much memory.
CPU_CHUNK = 32  # of 1,024 channels


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
        fold_bn: bool = False,
        use_act_checkpoint: bool = False,
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
            fold_bn: in inference, fold batch norms into the convolutions, but for blocks with
                forward hooks (pruning has some), parametrised weights or tensors made in inference
                mode, whose changes cannot be seen.
            use_act_checkpoint: in training, keep only the blocks' inputs for the backward pass.
        """
        super().__init__()
        assert blocks and blocks[0] == "residual", f"first block must be 'residual': {blocks}"
        self.output_channels = dim
        self.cpu_chunk = max(1, CPU_CHUNK * 1024 // dim)
        self.fold_bn = fold_bn
        self.use_act_checkpoint = use_act_checkpoint
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
        # The folded blocks, and what they were made from; in a list, so that they are no submodule.
        self._folded: list[nn.Sequential] = []
        self._folded_from: list[tuple[int, int]] = []

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
            "fold_bn": node.FOLD_BN,
            "use_act_checkpoint": node.USE_ACT_CHECKPOINT,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map RoI features R x C x H x W to feature vectors R x DIM."""
        return self._run_blocks(x, _average)

    def feature_map(self, x: Tensor) -> Tensor:
        """The last map R x DIM x H x W, whose average over H and W :meth:`forward` returns.

        Args:
            x: RoI features R x C x H x W.
        """
        return self._run_blocks(x, _unchanged)

    def _run_blocks(self, x: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """What `finish` makes of the last map, RoI by RoI."""
        # A trace or a compiled graph would keep today's number of chunks and today's weights.
        tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
        learns = torch.is_grad_enabled()
        if self.use_act_checkpoint and self.training and learns and not tracing:
            for block in self.blocks:
                x = _checkpoint(block, x)
            return finish(x)

        # Of the norms alone, too, where their statistics are adapted to test data
        training = any(module.training for module in self.modules())
        folds = self.fold_bn and not (training or learns or tracing) and can_fold(self.blocks)
        blocks = self._folded_blocks() if folds else self.blocks
        # Batch norm needs all RoIs in training.
        if training or tracing or x.device.type != "cpu":
            return finish(blocks(x))
        return torch.cat([finish(blocks(chunk)) for chunk in x.split(self.cpu_chunk)])

    def train(self, mode: bool = True) -> "DoubleHeadConvHead":
        """As `nn.Module`; folded batch norms are folded anew after it."""
        self._folded, self._folded_from = [], []
        return super().train(mode)

    def _folded_blocks(self) -> nn.Sequential:
        """The blocks without batch norms, made anew when a weight has changed or moved.

        A change of `weight.data` is seen by nothing but the next `eval()`.
        """
        tensors = [*self.blocks.parameters(), *self.blocks.buffers()]
        state = [(x.data_ptr(), x._version) for x in tensors]
        if state != self._folded_from:
            folded = fold_batch_norms(self.blocks).requires_grad_(False)
            # What is left takes less time with channels last (dev/benchmarks/conv_head_cpu.json).
            self._folded = [folded.to(memory_format=torch.channels_last)]
            self._folded_from = state
        return self._folded[0]

    @property
    def folded_blocks(self) -> nn.Sequential | None:
        """The copy of the blocks that is kept without batch norms, once there is one."""
        return self._folded[0] if self._folded else None

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of one RoI's feature vector, as detectron2's box heads give it."""
        return ShapeSpec(channels=self.output_channels)


def _average(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


def _unchanged(x: Tensor) -> Tensor:
    return x


def _checkpoint(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, of which only `x` is kept for the backward pass."""
    return checkpoint(
        block,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing here is random
        context_fn=lambda: (nullcontext(), _RunningStatisticsKept(block)),
    )


class _RunningStatisticsKept:
    """Batch norms in training mode do not count what passes through them.

    Computed again for the backward pass, a batch would otherwise count twice. It can be entered any
    number of times, as a graph that is kept for a second backward pass asks for.
    """

    def __init__(self, block: nn.Module) -> None:
        kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
        self.norms: list[Any] = [m for m in block.modules() if isinstance(m, kinds)]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *exception: object) -> None:
        for norm, (momentum, counter) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
