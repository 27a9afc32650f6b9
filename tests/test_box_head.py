"""The conv-head: size, shape and place in detectron2's registries."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_box_head
from torch import nn

from builders import small_cfg
from doublehead_d2 import DoubleHeadConvHead

POOLED = ShapeSpec(channels=256, height=7, width=7)


def conv_head(blocks: list[str]) -> DoubleHeadConvHead:
    with torch.device("meta"):
        return DoubleHeadConvHead(POOLED, blocks=blocks)


@pytest.mark.parametrize(
    ("blocks", "millions"),
    [(["residual"] + k * ["bottleneck"], m) for k, m in enumerate([1.06, 2.13, 3.19, 4.25, 5.31])]
    + [(["residual"] + k * ["nonlocal", "bottleneck"], m) for k, m in ((1, 4.13), (2, 7.19))],
)
def test_parameters_are_those_of_table_2(blocks: list[str], millions: float) -> None:
    # The paper's M is 2^20, and it counts the weights of convolutions alone.
    weights = sum(m.weight.numel() for m in conv_head(blocks).modules() if isinstance(m, nn.Conv2d))
    assert weights / 2**20 == pytest.approx(millions, abs=0.006)


def test_biases_only_in_the_non_local_block() -> None:
    head = conv_head(["residual", "nonlocal", "bottleneck"])
    with_bias = {
        n for n, m in head.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None
    }
    assert with_bias == {f"blocks.1.{layer}" for layer in ("theta", "phi", "g", "out")}


def test_average_pools() -> None:
    head = DoubleHeadConvHead(ShapeSpec(channels=4), blocks=["residual"], dim=6).eval()
    x = torch.randn(3, 4, 7, 7)
    assert head(x).shape == (3, head.output_shape.channels) == (3, 6)
    torch.testing.assert_close(head(x), head.blocks(x).flatten(2).mean(dim=2))


def test_is_a_box_head_of_detectron2() -> None:
    cfg = small_cfg("MODEL.ROI_BOX_HEAD.NAME", "DoubleHeadConvHead")
    head = build_box_head(cfg, ShapeSpec(channels=8, height=7, width=7))
    assert isinstance(head, DoubleHeadConvHead)
    assert head(torch.zeros(0, 8, 7, 7)).shape == (0, 32)


def small_head() -> DoubleHeadConvHead:
    torch.manual_seed(0)
    blocks = ["residual", "nonlocal", "bottleneck"]
    sizes = {"dim": 16, "bottleneck_dim": 8, "nonlocal_dim": 8}
    head = DoubleHeadConvHead(ShapeSpec(channels=8), blocks=blocks, **sizes)
    nn.init.normal_(head.blocks[1].out.weight)  # it starts at 0
    return head


@torch.no_grad()
def test_chunks_change_nothing_but_rounding() -> None:
    head, x = small_head().eval(), torch.randn(75, 8, 7, 7)
    in_chunks = head(x)
    head.cpu_chunk = 1000
    torch.testing.assert_close(in_chunks, head(x), rtol=1e-5, atol=1e-6)


def test_training_sees_all_rois_at_once() -> None:
    """Batch norm's statistics are those of the whole batch."""
    x = torch.randn(75, 8, 7, 7)
    whole, in_chunks = small_head().train(), small_head().train()
    whole.cpu_chunk = 1000
    torch.testing.assert_close(in_chunks(x), whole(x), rtol=0, atol=0)
    torch.testing.assert_close(in_chunks.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert in_chunks.blocks[0].conv1.norm.num_batches_tracked == 1


@torch.no_grad()
def test_a_trace_is_not_bound_to_a_number_of_chunks() -> None:
    head = small_head().eval()
    traced = torch.jit.trace(head, torch.randn(40, 8, 7, 7))
    for count in (0, 5, 100):
        x = torch.randn(count, 8, 7, 7)
        torch.testing.assert_close(traced(x), head(x))
