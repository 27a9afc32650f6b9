"""The maps of box heads, of every system: from what each head is shown to what it says."""

import json
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes
from torch import nn

from builders import random_boxes, read_once
from doublehead_d2.analysis import head_maps as module
from doublehead_d2.analysis.head_maps import SpatialCorrelation, head_maps, last_map
from doublehead_d2.analysis.spatial import MeanCosines, position_cosines, weight_cosines
from doublehead_d2.benchmark.heads import ask

SIZES = [(64, 64), (48, 60)]  # without padding
KINDS = {
    "double_head_ext_rcnn": {"box_head": "fc", "reg_head": "conv"},
    "single_fc_rcnn": {"box_head": "fc"},
    "single_conv_rcnn": {"box_head": "conv"},
    "tsd_rcnn": {"box_head": "fc", "reg_head": "fc"},
    "double_head_tsd_rcnn": {"box_head": "fc", "reg_head": "conv"},
    "grcn": {"box_head": "other", "reg_head": "other"},
    "faster_rcnn_c4": {"box_head": "other"},
    "faster_rcnn_c5": {"box_head": "other"},
    "double_head_ext_rcnn_detnet": {"box_head": "fc", "reg_head": "conv"},
}
Shown = tuple[GeneralizedRCNN, dict[str, torch.Tensor], list[Boxes]]


def shown(system: str) -> Shown:
    """A model, the maps of two images and boxes in both."""
    torch.manual_seed(0)
    cfg = read_once(f"Shapes-Detection/{system}_tiny.yaml").clone()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg).eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(2, 3, 64, 64))
    return model, features, [random_boxes(3), random_boxes(2, seed=1)]


@pytest.mark.parametrize("system", KINDS)
@torch.no_grad()
def test_every_system(system: str) -> None:
    model, features, boxes = shown(system)
    heads: Any = model.roi_heads
    maps = head_maps(model, features, boxes, SIZES)
    assert {name: x.kind for name, x in maps.items()} == KINDS[system]
    pooled = module._pooled(heads, features, boxes, SIZES)
    for name, (kind, output) in maps.items():
        assert output.shape[::2] == (5, 7) and output.shape[3] == 7
        head = module._head(heads, name)
        if kind == "fc":
            first = head.fcs[0]
            before = output.sum(dim=(2, 3)) + first.bias
            expected = first(pooled[name].flatten(1))
            rounding = 1e-5 * float(expected.abs().max())  # untrained maps may be large
            torch.testing.assert_close(before, expected, rtol=1e-5, atol=rounding)
        elif system != "faster_rcnn_c4":
            torch.testing.assert_close(output.mean(dim=(2, 3)), head(pooled[name]))
    assert_shown_in_inference(heads, features, boxes, pooled)


def assert_shown_in_inference(heads: Any, features: dict, boxes: list, pooled: dict) -> None:
    """From the pooled features heads and output layers say what the detector says."""
    if hasattr(heads, "branch"):
        said = heads.predict(features, boxes, SIZES)
        image_of = torch.tensor([0, 0, 0, 1, 1])
        _, whole = heads.branch("box_head").pool(features, boxes, SIZES)
        vectors = heads.branch("box_head").vectors(pooled["box_head"], whole, image_of)
        scores, deltas = said.cls_head.scores, said.reg_head.deltas
        torch.testing.assert_close(heads.box_predictor(vectors).scores, scores)
    elif hasattr(heads, "predict"):
        said = heads.predict(features, boxes)
        tsd = hasattr(said, "tsd")
        scores = (said.tsd if tsd else said.cls_head).scores
        deltas = (said.tsd if tsd else said.reg_head).deltas
        found = heads.box_predictor(heads.box_head(pooled["box_head"]))
        torch.testing.assert_close(found.scores, scores)
    else:
        x = pooled["box_head"]
        for layer in ask(heads).parts()[0].layers:
            x = layer(x)
        torch.testing.assert_close(x[0], ask(heads).cls_logits(features, boxes))
        return
    found = heads.reg_predictor(heads.reg_head(pooled["reg_head"]))
    torch.testing.assert_close(found.deltas, deltas)


def test_convolutions_before_fc_layers() -> None:
    torch.manual_seed(0)
    shape = ShapeSpec(channels=3, height=4, width=4)
    head, x = FastRCNNConvFCHead(shape, conv_dims=[5], fc_dims=[6]), torch.randn(2, 3, 4, 4)
    kind, output = last_map(head, x)
    assert kind == "fc" and output.shape == (2, 6, 4, 4)
    before = head.fc1(head.conv1(x).flatten(1))
    torch.testing.assert_close(output.sum(dim=(2, 3)) + head.fc1.bias, before)
    head = FastRCNNConvFCHead(shape, conv_dims=[5], fc_dims=[])
    kind, output = last_map(head, x)
    assert kind == "conv"
    torch.testing.assert_close(output, head(x))


def test_heads_without_a_map_are_refused() -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="a box head is 'Sequential', which gives no map; allowed"):
        last_map(head, torch.zeros(1, 1, 2, 2))
    model, features, boxes = shown("single_fc_rcnn")
    with pytest.raises(AssertionError, match="training mode"):
        head_maps(model.train(), features, boxes, SIZES)
    with pytest.raises(AssertionError, match="training mode"):
        SpatialCorrelation().add(model, features, boxes, SIZES)


def test_correlations_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features, boxes = shown("double_head_ext_rcnn")
    maps = head_maps(model, features, boxes, SIZES)
    monkeypatch.setattr(module, "CHUNK", 2)
    parts = [SpatialCorrelation(), SpatialCorrelation()]
    parts[0].add(model, features, boxes, SIZES)
    # Nothing, and the second image alone
    parts[1].add(model, features, [Boxes(torch.zeros(0, 4))] * 2, SIZES)
    of_second = {name: x[1:] for name, x in features.items()}
    parts[1].add(model, of_second, boxes[1:], SIZES[1:])
    again = SpatialCorrelation.from_state(json.loads(json.dumps(parts[0].state())))
    again.merge(parts[1])
    assert [x.objects for x in again.cosines.values()] == [7, 7]
    assert [x.objects for x in parts[1].cosines.values()] == [2, 2]

    # Into one that has nothing yet
    empty = SpatialCorrelation()
    empty.merge(again)
    assert empty.state() == again.state()

    entries = json.loads(json.dumps(empty.entries("Ext", model, "fused")))
    keys = ("model", "mode", "head", "kind", "of", "side")
    assert [tuple(x[key] for key in keys) for x in entries] == [
        ("Ext", "fused", "reg_head", "conv", "output", 7),
        ("Ext", "fused", "box_head", "fc", "output", 7),
        ("Ext", "fused", "box_head", "fc", "weights", 7),
    ]
    for entry in entries[:2]:
        cosines = position_cosines(maps[entry["head"]].output)
        expected = torch.cat([cosines, cosines[3:]]).nanmean(dim=0)
        found = torch.tensor(entry["correlation"], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        off = found[~torch.eye(49, dtype=torch.bool)].mean().item()
        assert entry["mean_off_diagonal"] == pytest.approx(off, abs=1e-12)
    weight = model.roi_heads.box_head.fc1.weight
    expected = weight_cosines(weight, (weight.shape[1] // 49, 7, 7))
    torch.testing.assert_close(torch.tensor(entries[2]["correlation"]).double(), expected)


def test_what_is_not_defined_is_none() -> None:
    model, features, boxes = shown("single_conv_rcnn")
    correlation = SpatialCorrelation()
    correlation.add(model, features, boxes, SIZES)
    correlation.cosines["box_head"] = MeanCosines(49)  # nothing was added
    (entry,) = correlation.entries("a", model)
    assert entry["mode"] == "configured" and entry["mean_off_diagonal"] is None
    assert entry["correlation"] == [[None] * 49] * 49
