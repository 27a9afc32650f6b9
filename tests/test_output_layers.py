"""Score fusion, and ω and λ as loss weights."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from builders import EXT, small_cfg
from doublehead_d2.config import SCORE_FUSIONS
from doublehead_d2.modeling.output_layers import (
    build_cls_output_layers,
    build_reg_output_layers,
    fuse_scores,
)


def random_probs(seed: int, rois: int = 50, classes: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rois, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    # s_fc = 0.6, s_conv = 0.5: 0.6 + 0.5 · 0.4 = 0.8
    [("cls_head", 0.6), ("reg_head", 0.5), ("complementary", 0.8), ("average", 0.55), ("max", 0.6)],
)
def test_fusion_by_hand(fusion: str, expected: float) -> None:
    fused = fuse_scores(torch.tensor([[0.6]]), torch.tensor([[0.5]]), fusion)
    torch.testing.assert_close(fused, torch.tensor([[expected]]))


def test_complementary_identities() -> None:
    a, b = random_probs(0), random_probs(1)
    fused = fuse_scores(a, b, "complementary")
    torch.testing.assert_close(fused, 1 - (1 - a) * (1 - b))
    torch.testing.assert_close(fused, fuse_scores(b, a, "complementary"))
    assert (fused >= torch.maximum(a, b)).all() and (fused <= 1).all()


@pytest.mark.parametrize("fusion", SCORE_FUSIONS)
def test_fusion_of_nothing(fusion: str) -> None:
    empty = torch.zeros(0, 6)
    assert fuse_scores(empty, empty, fusion).shape == (0, 6)


def test_omega_and_lambda_factor_into_the_authors_weights() -> None:
    cfg, shape = small_cfg(*EXT), ShapeSpec(channels=32)
    cls_layers, reg_layers = (
        build_cls_output_layers(cfg, shape),
        build_reg_output_layers(cfg, shape),
    )
    # conv cls 0.5, conv reg 2.0, fc cls 1.4, fc reg 0.6
    assert reg_layers.loss_weight == pytest.approx({"loss_cls": 0.5, "loss_box_reg": 2.0})
    assert cls_layers.loss_weight == pytest.approx({"loss_cls": 1.4, "loss_box_reg": 0.6})


def test_box_reg_loss_weight_multiplies_both_box_losses() -> None:
    cfg = small_cfg(*EXT, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 3.0)
    shape = ShapeSpec(channels=32)
    assert build_cls_output_layers(cfg, shape).loss_weight["loss_box_reg"] == pytest.approx(1.8)
    assert build_reg_output_layers(cfg, shape).loss_weight["loss_box_reg"] == pytest.approx(6.0)


def test_switched_off_predictor_has_no_parameters_and_predicts_zeros() -> None:
    cfg, shape = small_cfg(), ShapeSpec(channels=32)
    cls_layers, reg_layers = (
        build_cls_output_layers(cfg, shape),
        build_reg_output_layers(cfg, shape),
    )
    names = {name for name, _ in cls_layers.named_parameters()}
    assert names == {"cls_score.weight", "cls_score.bias"}
    names = {name for name, _ in reg_layers.named_parameters()}
    assert names == {"bbox_pred.weight", "bbox_pred.bias"}
    x = torch.randn(7, 32)
    assert cls_layers(x).deltas.shape == (7, 20) and not cls_layers(x).deltas.any()
    assert reg_layers(x).scores.shape == (7, 6) and not reg_layers(x).scores.any()
