"""Head outputs and losses against those of the two published implementations.

The arrays are described in golden/README.md. Everything runs through `DoubleHeadROIHeads.predict`,
`losses` and `inference`; only pooling is replaced by the pooled features of the reference.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from builders import EXT, random_boxes, random_features, small_heads
from doublehead_d2.modeling.output_layers import DoubleHeadPredictions, fuse_scores

GOLDEN = Path(__file__).parent / "golden"
K = 5
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
MMDET = [
    "MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.BLOCKS",
    ["residual"] + 4 * ["bottleneck"],
    "MODEL.ROI_DOUBLE_HEAD.REG_HEAD.LOSS_WEIGHT",
    2.0,
]


def official_name(key: str) -> str:
    """Our parameter name of a key of the authors' head."""
    rules = [
        ("feature_extractor.nonlocal_conv.bottom.0.", "reg_head.blocks.0.conv1."),
        ("feature_extractor.nonlocal_conv.bottom.1.", "reg_head.blocks.0.conv1.norm."),
        ("feature_extractor.nonlocal_conv.bottom.3.", "reg_head.blocks.0.conv2."),
        ("feature_extractor.nonlocal_conv.bottom.4.", "reg_head.blocks.0.conv2.norm."),
        ("feature_extractor.nonlocal_conv.top.0.", "reg_head.blocks.0.shortcut."),
        ("feature_extractor.nonlocal_conv.top.1.", "reg_head.blocks.0.shortcut.norm."),
        ("feature_extractor.fc6.", "box_head.fc1."),
        ("feature_extractor.fc7.", "box_head.fc2."),
        ("predictor.cls_score.", "reg_predictor.cls_score."),
        ("predictor.bbox_pred.", "reg_predictor.bbox_pred."),
        ("predictor.cls_score_fc.", "box_predictor.cls_score."),
        ("predictor.bbox_pred_fc.", "box_predictor.bbox_pred."),
        (".W.0.", ".out."),
        (".W.bn.", ".out.norm."),
        (".ffconv.bottleneck.0.", ".conv1."),
        (".ffconv.bottleneck.1.", ".conv1.norm."),
        (".ffconv.bottleneck.3.", ".conv2."),
        (".ffconv.bottleneck.4.", ".conv2.norm."),
        (".ffconv.bottleneck.6.", ".conv3."),
        (".ffconv.bottleneck.7.", ".conv3.norm."),
    ]
    for i in range(2):  # a stack of theirs is our non-local block and the bottleneck after it
        block = 2 + 2 * i if "ffconv" in key else 1 + 2 * i
        rules.append((f"feature_extractor.shared_nonlocal.{i}.", f"reg_head.blocks.{block}."))
    for theirs, ours in rules:
        key = key.replace(theirs, ours)
    return key


def mmdet_name(key: str) -> str:
    """Our parameter name of a key of mmdetection's head."""
    if key.startswith("res_block."):
        key = key.replace("conv_identity.", "shortcut.")
        key = key.replace("res_block.", "reg_head.blocks.0.")
        return key.replace(".conv.", ".").replace(".bn.", ".norm.")
    if key.startswith("conv_branch."):
        _, index, layer, name = key.split(".")
        layer = layer.replace("bn", "conv") + (".norm" if layer.startswith("bn") else "")
        return f"reg_head.blocks.{int(index) + 1}.{layer}.{name}"
    rules = [
        ("fc_branch.0", "box_head.fc1"),
        ("fc_branch.1", "box_head.fc2"),
        ("fc_cls", "box_predictor.cls_score"),
        ("fc_reg", "reg_predictor.bbox_pred"),
    ]
    for theirs, ours in rules:
        key = key.replace(theirs, ours)
    return key


def official_rows(name: str, value: Tensor) -> Tensor:
    """Their class 0 is background: ours is the last, and has no box."""
    if "cls_score" in name:
        return torch.cat([value[1:], value[:1]])
    return value[4:] if "bbox_pred" in name else value


def load(arrays: dict, heads: torch.nn.Module, name_of: Callable, rows: Callable) -> None:
    state = {}
    for key, value in arrays.items():
        if key.startswith("sd/"):
            name = name_of(key[3:])
            state[name] = rows(name, torch.as_tensor(value))
    heads.load_state_dict(state, strict=True)


def feed(heads: torch.nn.Module, cls_features: np.ndarray, reg_features: np.ndarray) -> None:
    """Replace pooling: what the classification head sees, and what the regression head sees."""
    by_scale = {1.0: torch.as_tensor(cls_features), 1.3: torch.as_tensor(reg_features)}
    heads._pool = lambda maps, boxes, scale: by_scale[scale]


def proposals_with(labels: Tensor, deltas: Tensor, heads: torch.nn.Module) -> list[Instances]:
    """Proposals whose regression targets are `deltas`."""
    boxes = random_boxes(len(labels))
    gt_boxes = heads.reg_predictor.box2box_transform.apply_deltas(deltas, boxes.tensor)
    fields = {"proposal_boxes": boxes, "gt_boxes": Boxes(gt_boxes), "gt_classes": labels}
    return [Instances((64, 64), **fields)]


def predict(heads: torch.nn.Module) -> DoubleHeadPredictions:
    return heads.predict(random_features(1), [random_boxes(6)])


def losses(heads: torch.nn.Module, proposals: list[Instances]) -> dict[str, Tensor]:
    with EventStorage():
        return heads.losses(predict(heads), proposals)


@pytest.fixture
def official() -> tuple[dict, torch.nn.Module]:
    arrays = dict(np.load(GOLDEN / "official_head.npz"))
    heads = small_heads(*EXT)
    load(arrays, heads, official_name, official_rows)
    feed(heads, arrays["in/pooled_fc"], arrays["in/pooled_conv"])
    return arrays, heads


@pytest.fixture
def mmdet() -> tuple[dict, torch.nn.Module]:
    arrays = dict(np.load(GOLDEN / "mmdet_head.npz"))
    heads = small_heads(*MMDET)
    load(arrays, heads, mmdet_name, lambda name, value: value)
    feed(heads, arrays["in/x_cls"], arrays["in/x_reg"])
    return arrays, heads


def assert_official_losses(got: dict[str, Tensor], arrays: dict, prefix: str) -> None:
    expected = {
        "loss_cls": "loss_classifier_fc",
        "loss_box_reg": "loss_box_reg",
        "loss_cls_unfocused": "loss_classifier",
        "loss_box_reg_unfocused": "loss_box_reg_fc",
    }
    expected = {name: torch.as_tensor(arrays[prefix + key]) for name, key in expected.items()}
    torch.testing.assert_close(got, expected, **CLOSE)


def official_proposals(arrays: dict, heads: torch.nn.Module) -> list[Instances]:
    labels = torch.as_tensor(arrays["in/labels"])
    labels = torch.where(labels == 0, K, labels - 1)
    return proposals_with(labels, torch.as_tensor(arrays["in/regression_targets"]), heads)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_official_outputs(official: tuple, mode: str) -> None:
    arrays, heads = official
    heads.train(mode == "train")
    predictions = predict(heads)
    expected = {
        "cls_fc": predictions.cls_head.scores,
        "reg_fc": predictions.cls_head.deltas,
        "cls_conv": predictions.reg_head.scores,
        "reg_conv": predictions.reg_head.deltas,
    }
    for key, got in expected.items():
        reference = torch.as_tensor(arrays[f"{mode}/{key}"])
        if key.startswith("cls"):
            reference = torch.cat([reference[:, 1:], reference[:, :1]], dim=1)
        else:
            reference = reference[:, 4:]
        torch.testing.assert_close(got, reference, msg=lambda m, key=key: f"{key}: {m}", **CLOSE)


def test_official_batch_norm_statistics(official: tuple) -> None:
    arrays, heads = official
    predict(heads.train())
    state = heads.state_dict()
    after = {k: v for k, v in arrays.items() if k.startswith("train/after_sd/")}
    assert len(after) == 33
    for key, value in after.items():
        name = official_name(key.removeprefix("train/after_sd/"))
        torch.testing.assert_close(state[name], torch.as_tensor(value), **CLOSE)


def test_official_losses(official: tuple) -> None:
    arrays, heads = official
    got = losses(heads.train(), official_proposals(arrays, heads))
    assert_official_losses(got, arrays, "train/")
    total = torch.as_tensor(arrays["train/loss_total"])
    torch.testing.assert_close(sum(got.values()), total, **CLOSE)


def test_official_losses_with_frozen_batch_norm(official: tuple) -> None:
    arrays, heads = official
    for module in heads.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert_official_losses(losses(heads, official_proposals(arrays, heads)), arrays, "frozenbn/")


def test_official_losses_without_foreground(official: tuple) -> None:
    arrays, heads = official
    proposals = official_proposals(arrays, heads)
    proposals[0].gt_classes[:] = K
    got = losses(heads.eval(), proposals)
    assert_official_losses(got, arrays, "nofg/")
    assert got["loss_box_reg"] == 0 and got["loss_box_reg_unfocused"] == 0


def test_official_fusion(official: tuple) -> None:
    arrays, heads = official
    predictions = predict(heads.eval())
    probs = [head.scores.softmax(dim=1) for head in predictions[:2]]
    fused = fuse_scores(*probs, "complementary")
    reference = torch.as_tensor(arrays["eval/prob_mode3"])
    reference = torch.cat([reference[:, 1:], reference[:, :1]], dim=1)
    torch.testing.assert_close(fused, reference, **CLOSE)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_mmdet_outputs_and_losses(mmdet: tuple, mode: str) -> None:
    arrays, heads = mmdet
    heads.train(mode == "train")
    predictions = predict(heads)
    for got, key in ((predictions.cls_head.scores, "cls"), (predictions.reg_head.deltas, "reg")):
        torch.testing.assert_close(got, torch.as_tensor(arrays[f"{mode}/{key}"]), **CLOSE)
    targets = torch.as_tensor(arrays["in/bbox_targets"])
    proposals = proposals_with(torch.as_tensor(arrays["in/labels"]), targets, heads)
    with EventStorage():
        got = heads.losses(predictions, proposals)
    expected = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox"}
    expected = {name: torch.as_tensor(arrays[f"{mode}/{key}"]) for name, key in expected.items()}
    torch.testing.assert_close(got, expected, **CLOSE)


def test_mmdet_batch_norm_statistics(mmdet: tuple) -> None:
    arrays, heads = mmdet
    predict(heads.train())
    state = heads.state_dict()
    after = {k: v for k, v in arrays.items() if k.startswith("train/after_sd/")}
    assert len(after) == 45
    for key, value in after.items():
        name = mmdet_name(key.removeprefix("train/after_sd/"))
        torch.testing.assert_close(state[name], torch.as_tensor(value), **CLOSE)


def test_mmdet_losses_without_foreground(mmdet: tuple) -> None:
    arrays, heads = mmdet
    labels = torch.full((6,), K)
    proposals = proposals_with(labels, torch.zeros(6, 4), heads)
    got = losses(heads.eval(), proposals)
    expected = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox"}
    expected = {name: torch.as_tensor(arrays[f"nofg/{key}"]) for name, key in expected.items()}
    torch.testing.assert_close(got, expected, **CLOSE)
