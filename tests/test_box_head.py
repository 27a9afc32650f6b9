"""The conv-head: size, shape and place in detectron2's registries; what makes it cheaper."""

import copy
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.roi_heads import build_box_head
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from builders import small_cfg
from doublehead_d2 import DoubleHeadConvHead
from doublehead_d2.modeling import box_head
from doublehead_d2.modeling.folding import fold_batch_norms

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


@pytest.mark.parametrize("options", [{}, {"fold_bn": True}, {"use_act_checkpoint": True}])
@pytest.mark.parametrize("train", [False, True])
def test_the_last_map_is_what_is_averaged(options: dict[str, bool], train: bool) -> None:
    torch.manual_seed(0)
    head = DoubleHeadConvHead(ShapeSpec(channels=4), blocks=["residual"], dim=6, **options)
    head.train(train).cpu_chunk = 2
    x = torch.randn(5, 4, 7, 5)
    with torch.set_grad_enabled(train):
        last = head.feature_map(x)
        assert last.shape == (5, 6, 7, 5)
        torch.testing.assert_close(last, head.blocks(x))
        torch.testing.assert_close(last.mean(dim=(2, 3)), head(x), rtol=0, atol=0)
    assert head.feature_map(x[:0]).shape == (0, 6, 7, 5)


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
    whole, sizes = head(x), []
    head.cpu_chunk = 32
    head.blocks[0].register_forward_pre_hook(lambda module, x: sizes.append(len(x[0])))
    in_chunks = head(x)
    assert sizes == [32, 32, 11]
    torch.testing.assert_close(in_chunks, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dim", "rois"), [(1024, 32), (64, 512), (2048, 16), (65536, 1)])
def test_chunks_fill_the_same_memory(dim: int, rois: int) -> None:
    with torch.device("meta"):
        head = DoubleHeadConvHead(ShapeSpec(channels=4), blocks=["residual"], dim=dim)
    assert head.cpu_chunk == rois


def test_training_sees_all_rois_at_once() -> None:
    """Batch norm's statistics are those of the whole batch."""
    x = torch.randn(75, 8, 7, 7)
    whole, in_chunks = small_head().train(), small_head().train()
    in_chunks.cpu_chunk = 32
    torch.testing.assert_close(in_chunks(x), whole(x), rtol=0, atol=0)
    torch.testing.assert_close(in_chunks.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert in_chunks.blocks[0].conv1.norm.num_batches_tracked == 1


@torch.no_grad()
def test_a_trace_is_not_bound_to_a_number_of_chunks() -> None:
    head = small_head().eval()
    head.cpu_chunk = 32
    traced = torch.jit.trace(head, torch.randn(40, 8, 7, 7))
    for count in (0, 5, 100):
        x = torch.randn(count, 8, 7, 7)
        torch.testing.assert_close(traced(x), head(x))


# ------------------------------------------------------------------------------------- folding


def trained_head(norm: str = "BN", **kwargs: Any) -> DoubleHeadConvHead:
    """A small head whose norms have statistics, scales and shifts."""
    torch.manual_seed(0)
    blocks = ["residual", "nonlocal", "bottleneck"]
    sizes = {"dim": 32, "bottleneck_dim": 32, "nonlocal_dim": 8}
    head = DoubleHeadConvHead(ShapeSpec(channels=32), blocks=blocks, norm=norm, **sizes, **kwargs)
    nn.init.normal_(head.blocks[1].out.weight)
    for name, tensor in head.state_dict().items():
        if ".norm." in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return head


def test_folded_convolution_by_hand() -> None:
    conv = Conv2d(1, 1, kernel_size=1, bias=False, norm=nn.BatchNorm2d(1, eps=1.0)).eval()
    values = {"weight": 2.0, "norm.running_mean": 1.0, "norm.running_var": 3.0}
    for name, value in {**values, "norm.weight": 4.0, "norm.bias": 5.0}.items():
        conv.state_dict()[name].fill_(value)
    folded = fold_batch_norms(conv)
    # s = 4 / sqrt(3 + 1) = 2: weight 2 * 2, bias 2 * (0 - 1) + 5
    assert (folded.weight.item(), folded.bias.item(), folded.norm) == (4.0, 3.0, None)
    x = torch.full((1, 1, 1, 1), 3.0)
    assert conv(x).item() == folded(x).item() == 15.0  # ((2 * 3 - 1) / 2) * 4 + 5
    assert conv.weight.item() == 2.0 and conv.norm is not None


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "naiveSyncBN", "FrozenBN", "GN"])
@torch.no_grad()
def test_folding_changes_nothing_but_rounding(norm: str) -> None:
    head = trained_head(norm).eval()
    x = torch.randn(40, 32, 7, 7)
    expected, names = head(x), list(head.state_dict())
    head.fold_bn = True
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)
    convolutions = [m for m in head._folded[0].modules() if isinstance(m, Conv2d)]
    assert sum(conv.norm is not None for conv in convolutions) == (0 if norm != "GN" else 7)
    assert list(head.state_dict()) == names  # no second copy of the weights in checkpoints
    assert head(x[:0]).shape == (0, 32)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_folded_weights_follow_every_change(mode: type) -> None:
    head, x = trained_head(fold_bn=True).eval(), torch.randn(5, 32, 7, 7)

    def check() -> None:
        with mode():
            folded = head(x)
            head.fold_bn = False
            torch.testing.assert_close(folded, head(x), rtol=1e-4, atol=1e-5)
            head.fold_bn = True

    check()
    first = head._folded[0]
    check()
    assert head._folded[0] is first  # nothing has changed
    head.load_state_dict(DoubleHeadConvHead(ShapeSpec(channels=32), blocks=["residual"], dim=32)
                         .state_dict(), strict=False)  # fmt: skip
    check()
    head.train()(x).sum().backward()  # new running statistics
    head.eval()
    check()
    torch.optim.SGD(head.parameters(), lr=0.1).step()
    check()
    with torch.no_grad():
        head.blocks[0].conv1.norm.running_mean.add_(1)
    check()
    with torch.no_grad():
        head.blocks[0].conv1.norm.bias.add_(1)
    check()
    head.blocks[0].conv1.weight.data = -head.blocks[0].conv1.weight.data  # moved
    check()
    head.blocks[0].conv1.norm.bias.data.add_(1)
    head.eval()
    check()
    copy.deepcopy(head).blocks[0].conv1.norm.bias.data.add_(1)
    check()
    assert head._folded[0] is not first


def test_folds_only_where_no_gradient_is_wanted() -> None:
    head, x = trained_head(fold_bn=True).eval(), torch.randn(5, 32, 7, 7)
    head(x).sum().backward()
    assert all(p.grad is not None for p in head.parameters()) and not head._folded
    with torch.no_grad():
        head.train()(x)
    assert not head._folded


@pytest.mark.parametrize(("key", "name"), [("FOLD_BN", "fold_bn"), ("USE_ACT_CHECKPOINT",) * 2])
@pytest.mark.parametrize("on", [True, False])
def test_keys_reach_the_head(key: str, name: str, on: bool) -> None:
    cfg = small_cfg(f"MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.{key}", on)
    cfg.MODEL.ROI_BOX_HEAD.NAME = "DoubleHeadConvHead"
    head = build_box_head(cfg, ShapeSpec(channels=8, height=7, width=7))
    assert getattr(head, name.lower()) is on


def test_tensors_of_inference_mode_are_not_folded() -> None:
    """They count no changes, so that folded ones would stay as they were."""
    with torch.inference_mode():
        head, x = trained_head(fold_bn=True).eval(), torch.randn(5, 32, 7, 7)
        head(x)
        head.blocks[0].conv1.norm.bias.add_(1)
        changed = head(x)
        assert not head._folded
        head.fold_bn = False
        assert torch.equal(changed, head(x))


@torch.no_grad()
def test_hooks_and_computed_weights_are_not_folded() -> None:
    x, called = torch.randn(5, 32, 7, 7), []
    changes = (
        lambda head: head.blocks[1].register_forward_hook(lambda *args: called.append("hook")),
        lambda head: prune.l1_unstructured(head.blocks[0].conv1, "weight", 0.5),
        lambda head: weight_norm(head.blocks[0].conv1),
    )
    for change in changes:
        head = trained_head(fold_bn=True).eval()
        before = head(x)
        change(head)
        head.eval()  # modules that a change adds are in training mode
        after = head(x)
        head.fold_bn = False
        assert torch.equal(after, head(x)) and before.shape == after.shape
    assert called == ["hook"] * 2


@torch.no_grad()
def test_norms_that_adapt_see_all_rois_at_once() -> None:
    head, x = trained_head(fold_bn=True).eval(), torch.randn(40, 32, 7, 7)
    head.cpu_chunk = 16
    norms = [module for module in head.modules() if isinstance(module, nn.BatchNorm2d)]
    counts = [int(norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.train()
    head(x)
    assert [int(norm.num_batches_tracked) for norm in norms] == [count + 1 for count in counts]


def test_a_trace_does_not_fold() -> None:
    head, x = trained_head(fold_bn=True).eval(), torch.randn(5, 32, 7, 7)
    traced = torch.jit.trace(head, x)
    torch.testing.assert_close(traced(x), head(x))


def test_a_compiled_graph_has_neither_chunks_nor_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    head, sizes = trained_head(fold_bn=True).eval(), []
    head.cpu_chunk = 32
    head.blocks[0].register_forward_pre_hook(lambda module, x: sizes.append(len(x[0])))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad():
        head(torch.randn(70, 32, 7, 7))
    assert sizes == [70] and not head._folded


# ------------------------------------------------------------------- activation checkpoints


def train_step(head: DoubleHeadConvHead, x: torch.Tensor) -> int:
    """A forward and a backward pass; returns the bytes kept in between."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = head(x).square().sum()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("norm", ["BN", "naiveSyncBN_N", "FrozenBN", "GN"])
@pytest.mark.parametrize("count", [0, 6])
def test_checkpoints_change_no_gradient_and_no_statistic(norm: str, count: int) -> None:
    x = torch.randn(count, 32, 7, 7)
    heads = [trained_head(norm, use_act_checkpoint=c).train() for c in (False, True)]
    inputs = [x.clone().requires_grad_() for _ in heads]
    bytes_kept = [train_step(head, x) for head, x in zip(heads, inputs, strict=True)]
    for name, parameter in heads[1].named_parameters():
        assert torch.equal(parameter.grad, heads[0].get_parameter(name).grad), name
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    # Running statistics, and how many batches they have seen, too
    torch.testing.assert_close(heads[1].state_dict(), heads[0].state_dict(), rtol=0, atol=0)
    if norm == "BN":
        assert heads[1].blocks[0].conv1.norm.num_batches_tracked == 1
        assert heads[1].blocks[0].conv1.norm.momentum == 0.1
    if count:
        assert bytes_kept[1] < bytes_kept[0] / 2


def test_checkpoints_keep_the_blocks_inputs_alone() -> None:
    head, count = trained_head(use_act_checkpoint=True).train(), 50
    weights = sum(p.nbytes for p in head.parameters())
    maps = 3 * count * 32 * 49 * 4  # the inputs of three blocks
    vector = count * 32 * 4  # squared by the loss
    assert (
        maps + vector <= train_step(head, torch.randn(count, 32, 7, 7)) <= maps + vector + weights
    )


def test_checkpoints_allow_a_second_backward_pass() -> None:
    gradients = []
    for checkpoints in (False, True):
        head = trained_head(use_act_checkpoint=checkpoints).train()
        loss = head(torch.ones(3, 32, 7, 7).cumsum(0)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append({name: p.grad for name, p in head.named_parameters()})
        assert head.blocks[0].conv1.norm.num_batches_tracked == 1
    torch.testing.assert_close(*gradients)


def test_checkpoints_are_for_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(box_head, "_checkpoint", lambda block, x: calls.append(1) or block(x))
    head, x = trained_head(use_act_checkpoint=True), torch.randn(2, 32, 7, 7)
    head.eval()(x)
    with torch.no_grad():
        head.train()(x)
    assert not calls
    head(x)
    assert len(calls) == 3
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    head(x)
    assert len(calls) == 3


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_computed_again_running_statistics_stay(kind: type) -> None:
    norm = kind(4, momentum=0.3)
    with box_head._RunningStatisticsKept(nn.Sequential(norm)):
        assert (norm.momentum, norm.num_batches_tracked) == (0.0, None)
    assert (norm.momentum, norm.num_batches_tracked) == (0.3, 0)
