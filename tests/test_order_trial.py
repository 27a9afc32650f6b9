"""The trial of the paper's order: its rows, the rule of when a row has settled, its sentences."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, build_model

from doublehead_d2 import model_zoo
from doublehead_d2.analysis import order_trial, paper_tables
from doublehead_d2.analysis.study import (
    ORDER_BACKBONE,
    backbone_of,
    double_box_losses,
    read_curve,
    study_config,
)
from doublehead_d2.config import check_config
from doublehead_d2.tools import reproduce_tables


def test_settled_by_hand() -> None:
    """The last three evaluations within 0.3 AP, whatever came before."""
    rising = [(1, 10.0), (2, 40.0), (3, 40.2)]
    assert not order_trial.settled(rising)
    assert order_trial.settled([*rising, (4, 40.3)])  # 40.0 to 40.3
    assert not order_trial.settled([*rising, (4, 40.31)])
    assert not order_trial.settled([*rising, (4, 39.89)])  # falls: 39.89 to 40.2
    assert not order_trial.settled([(1, 40.0), (2, 40.0)]) and not order_trial.settled([])


def test_curves_are_read_by_iterations_done(tmp_path: Path) -> None:
    """Of a training to 300, later to 500; what was its end is another place on the way."""
    lines = [{"iteration": 19, "total_loss": 1.0}, {"iteration": 199, "bbox/AP": 3.0}]
    lines += [{"iteration": 300, "bbox/AP": 4.0}, {"iteration": 399, "bbox/AP": 5.0}]
    lines += [{"iteration": 500, "bbox/AP": 6.0}]
    path = tmp_path / "metrics.json"
    path.write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    assert read_curve(path, 200, 500) == [(200, 3.0), (400, 5.0), (500, 6.0)]
    assert read_curve(path, 100, 500) == [(200, 3.0), (300, 4.0), (400, 5.0), (500, 6.0)]
    # Evaluated after each of three iterations
    lines = [{"iteration": place, "bbox/AP": float(place)} for place in (0, 1, 3)]
    path.write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    assert read_curve(path, 1, 3) == [(1, 0.0), (2, 1.0), (3, 3.0)]


def test_curves_by_hand() -> None:
    curves = {
        "a": {1: [(100, 10.0), (200, 20.0), (300, 20.1)], 2: [(100, 14.0), (200, 20.0)]},
        "b": {},
    }
    assert order_trial.curve_table(curves).splitlines() == [
        "| row | 100 | 200 | 300 | settled |",
        "|---|---|---|---|---|",
        "| a | 12.0 | 20.0 | 20.1 | 0 of 2 |",
        "| b | – | – | – | 0 of 0 |",
    ]


def test_report_by_hand() -> None:
    scores: dict = {row: {} for row in order_trial.CONFIGS}
    text = "\n".join(order_trial.order_report(scores, {}, {}))
    assert "###" not in text  # of the variations
    assert "| whole_double_fc | – | – | – | none yet | 38.1 |" in text
    assert "not yet known: no result for whole_single_fc" in text
    for place, row in enumerate(order_trial.ROWS):
        scores[row] = {1: {"AP": 40.0 + place, "AP50": 60.0, "AP75": 45.0}}
    curves = {"whole_single_fc": {1: [(9, 40.0)]}}
    fusions: dict = {mode: {} for mode in paper_tables.EXT_MODES}
    assert "Fusion" not in "\n".join(order_trial.order_report(scores, curves, fusions))
    for place, mode in enumerate(fusions):
        fusions[mode] = {1: {"AP": 46.0 - place, "AP50": 60.0, "AP75": 45.0}}
    text = "\n".join(order_trial.order_report(scores, curves, fusions))
    assert "| cls_head | 46.00 | 60.00 | 45.00 | 1 | 39.7 |" in text
    assert "| cls_head_alone | 41.00 | 60.00 | 45.00 | 1 | – |" in text
    assert "- Fusion: complementary first: no, cls_head is (-3.00 AP to cls_head," in text
    assert "cls_head last: no, complementary is (+3.00 AP to complementary" in text
    assert "- Order: whole_double_head_ext first: yes (+1.00 AP to whole_double_head," in text
    assert "An fc-head is better than a conv-head: no (-2.00 AP of whole_single_fc to" in text
    assert "| whole_single_fc_doubled | 41.00 | 60.00 | 45.00 | 1 | – |" in text
    assert "| whole_single_fc | 40.0 | 0 of 1 |" in text


def test_rows_and_claims_are_known() -> None:
    assert {*order_trial.PAPER, order_trial.DOUBLED} == {*order_trial.ROWS}
    assert {row for pair in order_trial.CLAIMS.values() for row in pair} <= {*order_trial.ROWS}
    assert {*order_trial.CONFIGS} <= {*reproduce_tables.ROWS}
    assert len(order_trial.CONFIGS) == 7 + 4 + 3 * 7  # GN is for rows with a conv-head


def test_variations_by_hand() -> None:
    """Two seeds of a conv-head with GN against three without; an fc-head it does not touch."""

    def found(**aps: float) -> dict[int, dict[str, float]]:
        return {int(s[1:]): {"AP": ap, "AP50": 90.0, "AP75": 80.0} for s, ap in aps.items()}

    scores: dict = {row: {} for row in order_trial.CONFIGS}
    scores["whole_single_fc"] = found(s1=50.0, s2=51.0, s3=52.0)
    scores["whole_single_conv"] = found(s1=48.0, s2=49.0, s3=70.0)
    scores["whole_single_conv_gn"] = found(s1=50.5, s2=52.5)  # +2.5, +3.5
    scores["whole_double_fc"] = found(s1=60.0)
    scores["whole_double_fc_larger"] = found(s1=58.0, s2=70.0)
    scores["whole_double_head_14x14"] = found(s2=40.0)
    curves = {"whole_single_conv_gn": {1: [(1, 50.2), (2, 50.4), (3, 50.5)], 2: [(3, 52.5)]}}
    assert order_trial.variation_report(scores, curves) == [
        "### GN for BN in the conv-head (32 groups; of one channel where there are 32 channels)",
        "`MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NORM GN`:",
        "",
        "| row | AP | AP50 | AP75 | seeds | to the row as it stands | settled |",
        "|---|---|---|---|---|---|---|",
        "| whole_single_conv_gn | 51.50 ± 1.41 | 90.00 ± 0.00 | 80.00 ± 0.00 | 1, 2 | +3.00 AP "
        "| 1 of 2 |",
        "",
        # -0.5 and -1.5; Double-Conv and Double-Head with GN have no result
        "- An fc-head is better than a conv-head: no (-1.00 AP of whole_single_fc to "
        "whole_single_conv_gn, standard error 0.50).",
        "",
        "### Objects 1.5 times as large",
        "`INPUT.MIN_SIZE_TRAIN (192,) INPUT.MAX_SIZE_TRAIN 192 INPUT.MIN_SIZE_TEST 192 "
        "INPUT.MAX_SIZE_TEST 192`:",
        "",
        "| row | AP | AP50 | AP75 | seeds | to the row as it stands | settled |",
        "|---|---|---|---|---|---|---|",
        "| whole_double_fc_larger | 64.00 ± 8.49 | 90.00 ± 0.00 | 80.00 ± 0.00 | 1, 2 "
        "| -2.00 AP (seeds 1) | 0 of 0 |",
        "",
        "",
        "### RoIs of 14x14 (an fc-head's first layer is four times as large)",
        "`MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 14`:",
        "",
        "| row | AP | AP50 | AP75 | seeds | to the row as it stands | settled |",
        "|---|---|---|---|---|---|---|",
        "| whole_double_head_14x14 | 40.00 | 90.00 | 80.00 | 2 | – | 0 of 0 |",
        "",  # a Double-FC of 7x7 is not what it is held against
        "",
    ]
    assert order_trial.variation_report({row: {} for row in order_trial.CONFIGS}, {}) == []


@pytest.mark.parametrize("row", order_trial.VARIED)
def test_variations_change_one_thing(row: str, tmp_path: Path) -> None:
    """The config of a varied row is that of its row but for the keys of the variation."""
    stands, name = order_trial.VARIED[row]
    varied, cfg = study_config(row, 1, tmp_path), study_config(stands, 1, tmp_path)
    check_config(varied)
    assert varied.OUTPUT_DIR != cfg.OUTPUT_DIR and backbone_of(row) == ORDER_BACKBONE
    cfg.OUTPUT_DIR = varied.OUTPUT_DIR
    assert cfg.dump() != varied.dump()
    if name == "gn":
        assert cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NORM == "BN"
        cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NORM = "GN"
    elif name == "larger":
        for key in ("MIN_SIZE_TEST", "MAX_SIZE_TRAIN", "MAX_SIZE_TEST"):
            cfg.INPUT[key] = cfg.INPUT[key] * 3 // 2
        cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MAX_SIZE_TRAIN,)
    elif name == "colors":
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_colors_train",), ("shapes_colors_val",)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES *= 3
    else:
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION *= 2
    assert cfg.dump() == varied.dump()


def test_what_a_variation_states_is_not_undone(tmp_path: Path) -> None:
    opts = ["SOLVER.MAX_ITER", "3", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"]
    with pytest.raises(ValueError, match=r"POOLER_RESOLUTION, which row whole_single_fc_14x14 st"):
        study_config("whole_single_fc_14x14", 1, tmp_path, opts)
    assert study_config("whole_single_fc", 1, tmp_path, opts).SOLVER.MAX_ITER == 3


def test_gn_is_in_the_conv_head_alone(tmp_path: Path) -> None:
    for row in order_trial.VARIATIONS["gn"].rows:
        cfg = study_config(f"{row}_gn", 1, tmp_path)
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg)
        kinds = [type(x).__name__ for x in model.roi_heads.modules() if "Norm" in type(x).__name__]
        assert kinds and {*kinds} == {"GroupNorm"}
        assert not any(isinstance(x, torch.nn.GroupNorm) for x in model.backbone.modules())


@pytest.mark.parametrize("row", order_trial.ROWS)
def test_rows_differ_in_their_heads_alone(row: str, tmp_path: Path) -> None:
    cfg, first = (study_config(name, 1, tmp_path) for name in (row, "whole_single_fc"))
    check_config(cfg)
    own = model_zoo.get_config(order_trial.ROWS[row]).MODEL
    for branch in ("CLS_HEAD", "REG_HEAD", "SCORE_FUSION", "BOX_SOURCE"):
        assert cfg.MODEL.ROI_DOUBLE_HEAD[branch] == own.ROI_DOUBLE_HEAD[branch]
    assert cfg.MODEL.ROI_HEADS.NAME == own.ROI_HEADS.NAME
    assert cfg.MODEL.ROI_BOX_HEAD.NAME == own.ROI_BOX_HEAD.NAME
    assert backbone_of(row) == ORDER_BACKBONE
    assert str(tmp_path / "backbone_demo.pth") == cfg.MODEL.WEIGHTS
    assert cfg.MODEL.BACKBONE == first.MODEL.BACKBONE and cfg.MODEL.BACKBONE.FREEZE_AT == 2
    assert cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD == first.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD
    assert (cfg.INPUT, cfg.DATASETS, cfg.TEST) == (first.INPUT, first.DATASETS, first.TEST)
    if row != order_trial.DOUBLED:
        assert (cfg.SOLVER, cfg.MODEL.RPN) == (first.SOLVER, first.MODEL.RPN)
    # As the rule says: steps at a third and three quarters, an evaluation every twelfth.
    end = cfg.SOLVER.MAX_ITER
    assert [12 * step / end for step in cfg.SOLVER.STEPS] == [4, 9]
    assert end == 12 * cfg.TEST.EVAL_PERIOD


def test_the_start_is_the_demo_as_it_stands(tmp_path: Path) -> None:
    cfg = study_config(ORDER_BACKBONE, 0, tmp_path)
    assert backbone_of(ORDER_BACKBONE) is None
    assert (cfg.DATASETS.TRAIN, cfg.SOLVER.MAX_ITER, cfg.MODEL.WEIGHTS) == (
        ("shapes_train",),
        1100,
        "",
    )


def test_heads_have_the_papers_proportion(tmp_path: Path) -> None:
    """Section 4.1: 3 residual blocks of 1.06 M, 2 non-local ones of 2 M, an fc-head of 13.25 M."""
    cfg = study_config("whole_double_head", 1, tmp_path)
    pooled = ShapeSpec(channels=cfg.MODEL.FPN.OUT_CHANNELS, height=7, width=7)
    names = (cfg.MODEL.ROI_DOUBLE_HEAD.REG_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NAME)
    conv, fc = (
        sum(x.numel() for x in ROI_BOX_HEAD_REGISTRY.get(name)(cfg, pooled).parameters())
        for name in names
    )
    assert (conv, fc) == (120_256, 217_344)
    assert conv / fc == pytest.approx((3 * 1.06 + 2 * 2) / 13.25, abs=0.02)


def test_doubled_losses_are_those_of_sgd(tmp_path: Path) -> None:
    """A step of SGD on 2a + b, and one on what the config makes of it, end at the same weight."""
    cfg, stock = (
        study_config(row, 1, tmp_path) for row in (order_trial.DOUBLED, "whole_single_fc")
    )
    doubled = stock.clone()
    double_box_losses(doubled)
    assert (doubled.SOLVER, doubled.MODEL.RPN) == (cfg.SOLVER, cfg.MODEL.RPN)
    ends = []
    for config, box_weight in ((stock, 2.0), (cfg, 1.0)):
        weight = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
        solver = config.SOLVER
        optimizer = torch.optim.SGD(
            [weight], solver.BASE_LR, solver.MOMENTUM, weight_decay=1000 * solver.WEIGHT_DECAY
        )
        for _ in range(3):
            optimizer.zero_grad()
            rpn = config.MODEL.RPN.LOSS_WEIGHT * (weight - 3).square().sum()
            (box_weight * (weight + 1).pow(4).sum() / 50 + rpn).backward()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)
