"""MODEL.ROI_DOUBLE_HEAD.TRAIN_REG_HEAD_ON: which sampled RoIs the regression head is shown."""

import copy

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats

from builders import EXT, image_list, random_features, sampled_proposals, small_heads
from doublehead_d2.modeling import DoubleHeadROIHeads

NODE = "MODEL.ROI_DOUBLE_HEAD"
FOREGROUND = [f"{NODE}.TRAIN_REG_HEAD_ON", "foreground"]
VARIANTS = {
    "plain": [],
    "one scale": [f"{NODE}.REG_HEAD.ROI_SCALE", 1.0],
    "agnostic": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
    "fc-head learns boxes, too": [f"{NODE}.CLS_HEAD.LAMBDA", 0.7],
    "giou": ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"],
    "checkpoints": [f"{NODE}.CONV_HEAD.USE_ACT_CHECKPOINT", True],
}


def train(heads: DoubleHeadROIHeads, proposals: list) -> tuple[dict, list[int]]:
    """Losses, after a backward pass, and the number of RoIs that the regression head saw."""
    seen: list[int] = []
    hook = heads.reg_head.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    with EventStorage():
        losses = heads.train()._forward_box(random_features(len(proposals)), proposals)
    hook.remove()
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}, seen


@pytest.mark.parametrize("counts", [(6, 4), (5, 0), (0, 3), (1,), (0, 0)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_all_rois(variant: str, counts: tuple) -> None:
    """Where no batch norm stands between the RoIs."""
    opts = [*VARIANTS[variant], f"{NODE}.CONV_HEAD.NORM", "FrozenBN"]
    of_all, of_foreground = small_heads(*opts), small_heads(*opts, *FOREGROUND)
    expected, seen = train(of_all, sampled_proposals(counts))
    assert seen == [sum(counts)]
    losses, seen = train(of_foreground, sampled_proposals(counts))
    assert seen == [sum(min(2, count) for count in counts)]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert (losses["loss_box_reg"] > 0) == any(counts)
    for name, parameter in of_all.named_parameters():
        other = of_foreground.get_parameter(name).grad
        torch.testing.assert_close(other, parameter.grad, rtol=1e-4, atol=1e-6)


def test_loss_by_hand() -> None:
    heads = small_heads(*FOREGROUND)
    for parameter in heads.reg_predictor.parameters():
        parameter.data.zero_()
    proposals = sampled_proposals((4,), num_foreground=1)
    proposals[0].proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 20.0]]).repeat(4, 1))
    # dx = 0.5 / 10 and weight 10, dy = 4 / 20 and weight 10: targets 0.5 and 2; sizes agree
    proposals[0].gt_boxes = Boxes(torch.tensor([[0.5, 4.0, 10.5, 24.0]]).repeat(4, 1))
    losses, seen = train(heads, proposals)
    assert seen == [1]
    # Smooth L1 with beta 1: 0.5 * 0.5^2 + (2 - 0.5); ω = 2.5; of 4 sampled RoIs
    assert losses["loss_box_reg"] == pytest.approx(2.5 * (0.125 + 1.5) / 4)


def test_batch_norm_counts_what_the_head_is_shown() -> None:
    heads = small_heads(*FOREGROUND)
    proposals = sampled_proposals((6, 4))
    of_foreground = copy.deepcopy(heads)
    train(heads, proposals)
    chosen = [x[x.gt_classes < 5] for x in proposals]
    train(of_foreground, chosen)
    buffers = dict(heads.reg_head.named_buffers())
    assert not torch.equal(
        buffers["blocks.0.conv1.norm.running_mean"], torch.zeros(8)
    )  # it has counted
    torch.testing.assert_close(buffers, dict(of_foreground.reg_head.named_buffers()))


def test_without_foreground_batch_norm_learns_nothing() -> None:
    heads = small_heads(*FOREGROUND)
    losses, seen = train(heads, sampled_proposals(num_foreground=0))
    assert seen == [0] and losses["loss_box_reg"] == 0 and losses["loss_cls"] > 0
    for name, parameter in heads.named_parameters():  # DDP misses no gradient
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    norm = heads.reg_head.blocks[0].conv1.norm
    assert torch.equal(norm.running_mean, torch.zeros(8))
    assert torch.equal(norm.running_var, torch.ones(8))


@pytest.mark.parametrize(("counts", "stand_ins"), [((0, 4), 1), ((3, 2), 1), ((0, 0), 0)])
def test_a_roi_stands_in_for_synchronised_norms(counts: tuple, stand_ins: int) -> None:
    heads = small_heads(*FOREGROUND, f"{NODE}.CONV_HEAD.NORM", "naiveSyncBN")
    losses, seen = train(heads, sampled_proposals(counts, num_foreground=0))
    assert seen == [stand_ins] and losses["loss_box_reg"] == 0
    assert not any(p.grad.any() for p in heads.reg_head.parameters())
    heads = small_heads(*FOREGROUND, f"{NODE}.CONV_HEAD.NORM", "naiveSyncBN")
    assert train(heads, sampled_proposals((3, 2), num_foreground=1))[1] == [2]  # none is needed


def test_a_roi_stands_in_for_torchs_synchronised_norm() -> None:
    """Which trains on a GPU alone."""
    heads = small_heads(*FOREGROUND, f"{NODE}.CONV_HEAD.NORM", "nnSyncBN")
    masks = heads._foreground(sampled_proposals((3, 2), num_foreground=0))
    assert [mask.tolist() for mask in masks] == [[True, False, False], [False, False]]


def test_precise_batch_norm_without_foreground() -> None:
    """fvcore divides by the size of each batch."""
    heads = small_heads(*FOREGROUND).train()
    seen: list[int] = []
    heads.reg_head.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, num_foreground: int) -> None:
            proposals = sampled_proposals((6, 4), num_foreground=num_foreground)
            heads._forward_box(random_features(2), proposals)

    with EventStorage():
        update_bn_stats(Model(), [2, 0], num_iters=2)
    assert seen == [4, 1]
    assert heads.reg_head.blocks[0].conv1.norm.running_var.isfinite().all()


def test_masks_learn_from_predicted_boxes() -> None:
    """Background keeps its boxes, which no other head looks at."""
    opts = ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, f"{NODE}.CONV_HEAD.NORM", "FrozenBN"]
    by_all, by_foreground = sampled_proposals(), sampled_proposals()
    train(small_heads(*opts), by_all)
    train(small_heads(*opts, *FOREGROUND), by_foreground)
    before = sampled_proposals()
    for one, other, old in zip(by_all, by_foreground, before, strict=True):
        foreground = one.gt_classes < 5
        boxes = (one.proposal_boxes[foreground].tensor, other.proposal_boxes[foreground].tensor)
        torch.testing.assert_close(*boxes)
        boxes = (other.proposal_boxes[~foreground].tensor, old.proposal_boxes[~foreground].tensor)
        torch.testing.assert_close(*boxes)


def test_inference_shows_all_that_it_did() -> None:
    opts = [f"{NODE}.LAZY_REG_HEAD", False]
    results = []
    for changes in ([], FOREGROUND):
        heads, seen = small_heads(*opts, *changes).eval(), []
        heads.reg_head.register_forward_pre_hook(lambda module, x, s=seen: s.append(len(x[0])))
        with torch.no_grad():
            results.append(heads(image_list(2), random_features(), sampled_proposals())[0])
        assert seen == [10]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([f"{NODE}.TRAIN_REG_HEAD_ON", "fg"], "TRAIN_REG_HEAD_ON is 'fg'; allowed: 'all', 'foreg"),
        ([*EXT, *FOREGROUND], "LAMBDA is 0.8: .* learns from background, too; allowed: 'all'"),
    ],
)
def test_impossible_choices_are_refused(opts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_heads(*opts)
