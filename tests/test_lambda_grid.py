"""The numbers of Figure 8, of grids made by hand."""

import json

import pytest

from builders import small_cfg
from doublehead_d2 import model_zoo
from doublehead_d2.analysis.lambda_grid import (
    Gain,
    LambdaPoint,
    gains,
    lambda_grid,
    lambdas_of,
    observations,
    points_of,
)

POINTS = [
    LambdaPoint("a", 0.7, 0.8, {"reg_head": 37.5, "cls_head": 38.8, "unfused": 39.7, "fused": 40.3})
]
POINTS += [LambdaPoint("b", 1.0, 1.0, {"unfused": 39.8})]
POINTS += [LambdaPoint("c", 1.0, 0.8, {"reg_head": 38.0, "unfused": 39.5, "fused": 39.4})]
POINTS += [LambdaPoint("d", 0.7, 1.0, {"cls_head": 39.25, "unfused": 39.25, "reg_head": None})]


def test_gains_by_hand() -> None:
    # (c) against the better of (a) and (b): a 39.7 - 38.8, c 39.5 - 38.0, d 0; b has no single one
    found = gains(POINTS, "unfused", ["reg_head", "cls_head"])
    assert [(round(gain.value, 6), gain.point.model) for gain in found] == [
        *((0.0, "d"), (0.9, "a"), (1.5, "c"))
    ]
    found = gains(POINTS, "fused", ["unfused"])
    assert [(round(gain.value, 6), gain.point.model) for gain in found] == [(-0.1, "c"), (0.6, "a")]
    assert gains(POINTS[1:2], "fused", ["unfused"]) == []
    assert str(Gain(0.9, POINTS[0])) == "+0.9 (λfc = 0.7, λconv = 0.8)"


def test_content_is_plain_json() -> None:
    content = lambda_grid(POINTS, data="shapes_val")
    assert json.loads(json.dumps(content)) == content
    assert content["data"] == "shapes_val" and content["metric"] == "AP"
    assert content["points"][1] == {
        **{"model": "b", "lambda_fc": 1.0, "lambda_conv": 1.0},
        "AP": {"reg_head": None, "cls_head": None, "unfused": 39.8, "fused": None},
    }
    assert [point.pair for point in points_of(content)] == [point.pair for point in POINTS]


def test_observations_by_hand() -> None:
    assert observations(lambda_grid(POINTS, data="x")) == [
        "Two heads (c) have more AP than the better single one (a, b) for 2 of 3 pairs; the "
        "differences are +0.0 (λfc = 0.7, λconv = 1) to +1.5 (λfc = 1, λconv = 0.8).",
        "Fusion of scores (d) has more AP than none (c) for 1 of 2 pairs; the differences are "
        "-0.1 (λfc = 1, λconv = 0.8) to +0.6 (λfc = 0.7, λconv = 0.8).",
        "The best fused model (d), of λfc = 0.7, λconv = 0.8, has 40.3 AP, +0.5 against "
        "Double-Head without unfocused tasks (c, λfc = 1, λconv = 1), which has 39.8.",
    ]


def test_what_cannot_be_compared_is_not_said() -> None:
    assert observations(lambda_grid([], data="x")) == []
    assert observations(lambda_grid(POINTS[1:2], data="x")) == []
    *_, best = observations(lambda_grid(POINTS[:1], data="x", metric="AP75"))
    assert best == "The best fused model (d), of λfc = 0.7, λconv = 0.8, has 40.3 AP75."


def test_lambda_of_a_config() -> None:
    node = "MODEL.ROI_DOUBLE_HEAD"
    cfg = small_cfg(f"{node}.CLS_HEAD.LAMBDA", 0.7, f"{node}.REG_HEAD.LAMBDA", 0.8)
    assert lambdas_of(cfg) == (0.7, 0.8)
    with pytest.raises(ValueError, match="NAME is 'TSDROIHeads'; allowed: 'DoubleHeadROIHeads'"):
        lambdas_of(model_zoo.get_config("Shapes-Detection/tsd_rcnn_tiny.yaml"))


def test_what_is_refused() -> None:
    twice = [*POINTS, POINTS[0]._replace(model="e")]
    with pytest.raises(ValueError, match="'a' and 'e' both have λfc = 0.7, λconv = 0.8; allowed"):
        lambda_grid(twice, data="x")
    with pytest.raises(ValueError, match="'a' has λfc = 1.5, λconv = 0.8; allowed: from 0 to 1"):
        lambda_grid([POINTS[0]._replace(lambda_fc=1.5)], data="x")
