"""RoI heads say what they are made of, and nobody else has to know them."""

from collections import Counter
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import nn

from builders import random_boxes, random_features, small_cfg, small_heads
from doublehead_d2.benchmark.complexity import count_flops, count_parameters, model_complexity
from doublehead_d2.benchmark.heads import ask
from doublehead_d2.benchmark.timing import time_inference
from doublehead_d2.benchmark.variants import Setting, prepare, random_inputs
from doublehead_d2.modeling.parts import Part, standard_parts
from doublehead_d2.tools.complexity import format_table

WIDTH = 8 * 7 * 7  # of a RoI feature of `small_cfg`


class StubROIHeads(StandardROIHeads):
    """A further system: one head, and two layers more that look at every RoI."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__(cfg, input_shape)
        self.first, self.second = nn.Linear(WIDTH, 3, bias=False), nn.Linear(3, 2)
        self.rois_shown: Counter[str] = Counter()

    def parts(self) -> list[Part]:
        box, *others = standard_parts(self)
        modules = [self.first, self.second]
        layers = [nn.Flatten(), *modules]
        return [box, box._replace(name="stub_head", modules=modules, layers=layers), *others]

    def cls_logits(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return self.box_predictor(self.box_head(pooled))[0]

    def _forward_box(self, features: dict, proposals: list[Instances]) -> Any:
        boxes = [x.proposal_boxes for x in proposals]
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        self.rois_shown["stub_head"] += len(pooled)
        self.second(self.first(pooled.flatten(1)))
        return super()._forward_box(features, proposals)


class SilentROIHeads(StandardROIHeads):
    """Has a layer more and does not say so."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__(cfg, input_shape)
        self.extra = nn.Linear(2, 2)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {x.__name__: x for x in (StubROIHeads, SilentROIHeads)}
    monkeypatch.setattr(ROI_HEADS_REGISTRY, "_obj_map", {**ROI_HEADS_REGISTRY._obj_map, **heads})


def cfg_of(name: str, *opts: object) -> CfgNode:
    cfg = small_cfg("MODEL.ROI_HEADS.NAME", name, "MODEL.RPN.POST_NMS_TOPK_TEST", 10, *opts)
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 64
    return cfg


def test_a_further_head_is_counted() -> None:
    stock, stub = (model_complexity(cfg_of(x)) for x in ("StandardROIHeads", "StubROIHeads"))
    # weights 392 * 3 + 3 * 2, each used once for each of 10 RoIs; biases 2
    weights = WIDTH * 3 + 3 * 2
    assert stub["parameters"] == {
        **stock["parameters"],
        "stub_head": weights + 2,
        "total": stock["parameters"]["total"] + weights + 2,
    }
    assert stub["flops"] == {
        **stock["flops"],
        "stub_head": 10 * weights,
        "total": stock["flops"]["total"] + 10 * weights,
    }
    # In the order in which they run, and as a column of the tool's table
    assert list(stub["flops"]) == ["backbone", "rpn", "box_head", "stub_head", "total"]
    assert "stub_head M" in format_table({"stub": stub})


def test_a_further_head_is_measured() -> None:
    torch.manual_seed(0)
    cfg = cfg_of("StubROIHeads")
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    model = build_model(cfg).eval()
    setting = Setting(image_size=(64, 64), num_proposals=20, survivors=0.5)
    inputs = random_inputs(setting)
    prepare(model, inputs, setting)
    result = time_inference({"stub": model}, [inputs], repetitions=1)["stub"]
    assert result["stub_head_rois"] == 20
    assert result["gmacs"] > 0


def test_parts_left_out_are_refused() -> None:
    model = build_model(cfg_of("SilentROIHeads"))
    with pytest.raises(ValueError, match=r"'SilentROIHeads', whose parts leave out .* parts\(\)"):
        count_parameters(model)


def test_heads_that_cannot_be_asked_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"NAME is 'Linear'; allowed: 'StandardROIHeads', 'Res5ROIHeads', or"
    ):
        ask(nn.Linear(1, 1))


def test_parts_of_the_double_head() -> None:
    opts = ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True]
    heads = small_heads(*opts)
    assert ask(heads) is heads
    parts = heads.parts()
    assert [part.name for part in parts] == ["box_head", "reg_head", "mask_head", "keypoint_head"]
    assert [part.on_detections for part in parts] == [False, False, True, True]
    named = {id(p) for part in parts for m in part.modules for p in m.parameters()}
    assert named == {id(p) for p in heads.parameters()}


@torch.no_grad()
def test_the_double_head_counts_what_its_heads_are_shown() -> None:
    heads = small_heads("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0).eval()
    features, boxes = random_features(2), [random_boxes(6), random_boxes(3)]
    heads.predict(features, boxes)
    assert heads.rois_shown == {"box_head": 9, "reg_head": 9}
    proposals = [Instances((64, 64), proposal_boxes=x) for x in boxes]
    heads.detect(features, proposals)  # none has a probability above 1
    assert heads.rois_shown == {"box_head": 18, "reg_head": 9}
    logits = heads.cls_logits(features, boxes)
    torch.testing.assert_close(logits, heads.predict(features, boxes).cls_head.scores)


@torch.no_grad()
def test_stock_heads_answer_by_the_adapter() -> None:
    torch.manual_seed(0)
    cfg = cfg_of("StandardROIHeads")
    model = build_model(cfg).eval()
    heads, features = ask(model.roi_heads), random_features(1)
    assert [part.name for part in heads.parts()] == ["box_head"]
    boxes = [random_boxes(4)]
    pooled = model.roi_heads.box_pooler([features[x] for x in ("p2", "p3", "p4", "p5")], boxes)
    expected = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))[0]
    torch.testing.assert_close(heads.cls_logits(features, boxes), expected)
    assert count_flops(model, (64, 64), 0, 0)["box_head"] == 0
