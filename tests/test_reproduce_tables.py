"""The study of the paper's tables: its numbers, its sentences, its configs, and a short run."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model

from conftest import DATASETS, REPOSITORY
from doublehead_d2 import model_zoo
from doublehead_d2.analysis import order_trial, paper_tables
from doublehead_d2.analysis.study import study_config
from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.data import write_shapes
from doublehead_d2.tools import reproduce_tables

NAMES = {
    paper_tables.EXT: "COCO-Detection/double_head_ext_rcnn_R_50_FPN_paper_1x.yaml",
    "faster_rcnn_c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "faster_rcnn_c5": "COCO-Detection/faster_rcnn_R_50_C5_1x.yaml",
    "grcn": "COCO-Detection/grcn_R_50_C5_1x.yaml",
}
EMPTY: dict = {mode: {} for mode in paper_tables.EXT_MODES}
TSD: dict = {row: {} for row in paper_tables.TSD}


def scores(**aps: list[float]) -> dict:
    return {
        row: {seed: {"AP": ap, "AP50": ap + 1, "AP75": ap - 1} for seed, ap in enumerate(values)}
        for row, values in aps.items()
    }


def test_spread_by_hand() -> None:
    # Mean of 1, 2, 6 is 3; deviations -2, -1, 3; (4 + 1 + 9) / 2 = 7.
    found = paper_tables.spread([1.0, 2.0, 6.0])
    assert (found.mean, found.count) == (3.0, 3) and found.deviation == pytest.approx(7**0.5)
    assert str(found) == "3.00 ± 2.65"
    assert str(paper_tables.spread([4.0])) == "4.00"


def test_order_by_hand() -> None:
    found = scores(a=[10.0, 12.0], b=[8.0, 8.0], c=[5.0, 7.0])
    # By seed a - b is 2, 4 and c - b is -3, -1: standard deviations sqrt(2), over sqrt(2) seeds.
    statement = paper_tables.order_statement(found, ["a", "b", "c"], first="a", last="c")
    assert statement == (
        "a first: yes (+3.00 AP to b, standard error 1.00); "
        "c last: yes (-2.00 AP to b, standard error 1.00)"
    )
    statement = paper_tables.order_statement(found, ["a", "b", "c"], first="b", last="b")
    assert "b first: no, a is (-3.00 AP to a" in statement
    assert "b last: no, c is (+2.00 AP to c" in statement


def test_order_compares_the_seeds_that_all_rows_have() -> None:
    found = scores(a=[10.0, 12.0], b=[8.0])
    statement = paper_tables.order_statement(found, ["a", "b"], first="a")
    assert statement == "a first: yes (+2.00 AP to b, standard error unknown with a single seed)"
    apart = {"a": {1: found["a"][1]}, "b": found["b"]}
    assert "no seed has a result" in paper_tables.order_statement(apart, ["a", "b"], first="a")


def test_order_with_missing_rows_or_one_seed() -> None:
    found = scores(a=[10.0], b=[], c=[5.0])
    assert "no result for b" in paper_tables.order_statement(found, ["a", "b"], first="a")
    statement = paper_tables.order_statement(found, ["a", "c"], first="a")
    assert "unknown with a single seed" in statement


def test_table_shows_missing_rows() -> None:
    lines = paper_tables.markdown_table(scores(a=[10.0, 12.0], b=[]), {"a": 36.8}).splitlines()
    assert lines[2] == "| a | 11.00 ± 1.41 | 12.00 ± 1.41 | 10.00 ± 1.41 | 0, 1 | 36.8 |"
    assert lines[3] == "| b | – | – | – | none yet | – |"


def test_table_of_rows_that_no_paper_has() -> None:
    lines = paper_tables.markdown_table(scores(a=[10.0, 12.0]), {}).splitlines()
    assert lines == [
        "| row | AP | AP50 | AP75 | seeds |",
        "|---|---|---|---|---|",
        "| a | 11.00 ± 1.41 | 12.00 ± 1.41 | 10.00 ± 1.41 | 0, 1 |",
    ]


def test_claims_by_hand() -> None:
    found = scores(a=[10.0, 12.0, 90.0], b=[8.0, 8.0], c=[], d=[1.0])
    # a - b is 2, 4 in the seeds that both have: 3 on average, sqrt(2) / sqrt(2) its error.
    assert paper_tables.claim_statement(found, "a", "b") == (
        "yes (+3.00 AP of a to b, standard error 1.00)"
    )
    assert paper_tables.claim_statement(found, "b", "a") == (
        "no (-3.00 AP of b to a, standard error 1.00)"
    )
    assert "standard error unknown with" in paper_tables.claim_statement(found, "a", "d")
    assert "no seed has a result for a and c" in paper_tables.claim_statement(found, "a", "c")


def test_claims_of_another_metric() -> None:
    found = {"a": {1: {"AP": 1.0, "APl": 5.0}}, "b": {1: {"AP": 2.0, "APl": 4.5}}}
    assert paper_tables.claim_statement(found, "a", "b", "APl").startswith("yes (+0.50 APl of a")
    none = {name: {1: {"APl": math.nan}, 2: {"APl": math.nan}} for name in "ab"}
    assert "no object that APl looks at" in paper_tables.claim_statement(none, "a", "b", "APl")
    assert "| a | – | 1, 2 |" in paper_tables.markdown_table(none, {}, ["APl"])
    table = paper_tables.markdown_table(found, {"a": 3.0}, ["APl"]).splitlines()
    assert table[0] == "| row | APl | seeds | AP in the paper (COCO) |"
    assert table[2:] == ["| a | 5.00 | 1 | 3.0 |", "| b | 4.50 | 1 | – |"]


def test_rows_are_the_papers() -> None:
    assert len(paper_tables.TABLE_1) == 10
    configs = {name.split("/")[1] for name in model_zoo.list_configs()}
    rows = (*paper_tables.TABLE_1, *paper_tables.TSD, *paper_tables.BACKBONES)
    assert {f"{row}.yaml" for row in rows} <= configs
    assert {row for pair in paper_tables.TSD_CLAIMS.values() for row in pair} <= {*paper_tables.TSD}
    assert max(paper_tables.TABLE_1.values()) == paper_tables.TABLE_1["double_head_tuned"]


@pytest.mark.parametrize("row", [x for x in reproduce_tables.ROWS if x not in order_trial.CONFIGS])
def test_the_overlay_changes_sizes_and_no_heads(row: str, tmp_path: Path) -> None:
    cfg = study_config(row, 3, tmp_path, ["SOLVER.MAX_ITER", "7"])
    full = model_zoo.get_config(NAMES.get(row, f"Ablations/{row}.yaml"))
    for node in (cfg, full):
        node.MODEL.ROI_BOX_HEAD.FC_DIM = 0
        for key in ("DIM", "BOTTLENECK_DIM", "NONLOCAL_DIM"):
            node.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD[key] = 0
        node.MODEL.ROI_TSD.OFFSET_DIM = 0
    assert cfg.MODEL.ROI_DOUBLE_HEAD == full.MODEL.ROI_DOUBLE_HEAD
    assert cfg.MODEL.ROI_TSD == full.MODEL.ROI_TSD
    assert cfg.MODEL.ROI_BOX_HEAD == full.MODEL.ROI_BOX_HEAD
    assert cfg.MODEL.ROI_HEADS.NAME == full.MODEL.ROI_HEADS.NAME
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (3, 7)
    assert cfg.MODEL.ROI_GRCN == full.MODEL.ROI_GRCN
    assert cfg.MODEL.RESNETS.OUT_FEATURES == full.MODEL.RESNETS.OUT_FEATURES
    assert cfg.MODEL.BACKBONE.NAME == full.MODEL.BACKBONE.NAME
    from_nothing = row in paper_tables.BACKBONES
    backbone = "backbone_c5.pth" if row in paper_tables.GRCN else "backbone.pth"
    assert ("" if from_nothing else str(tmp_path / backbone)) == cfg.MODEL.WEIGHTS
    frozen = 0 if from_nothing else 4 if row in paper_tables.GRCN else 5
    assert frozen == cfg.MODEL.BACKBONE.FREEZE_AT


def test_the_backbones_differ_in_nothing_else(tmp_path: Path) -> None:
    resnet, detnet = (study_config(row, 1, tmp_path) for row in paper_tables.BACKBONES)
    assert resnet.MODEL.BACKBONE.NAME != detnet.MODEL.BACKBONE.NAME
    for cfg in (resnet, detnet):
        cfg.MODEL.BACKBONE.NAME = cfg.MODEL.ROI_HEADS.NAME = cfg.OUTPUT_DIR = ""
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = []
    assert resnet == detnet


def test_rows_without_fpn_start_from_a_resnet_of_their_size(tmp_path: Path) -> None:
    """Trained below an FPN, on the images that they see; its stages fill theirs."""
    start = study_config("backbone_c5", 0, tmp_path, ["MODEL.DEVICE", "cpu"])
    assert (start.MODEL.BACKBONE.FREEZE_AT, start.MODEL.RESNETS.NORM) == (0, "BN")
    model = build_model(start)
    weights = {k: x for k, x in model.state_dict().items() if not k.startswith("roi_heads")}
    torch.save({"model": weights}, tmp_path / "backbone_c5.pth")
    for row in paper_tables.GRCN:
        cfg = study_config(row, 1, tmp_path, ["MODEL.DEVICE", "cpu"])
        assert cfg.INPUT == start.INPUT and cfg.MODEL.BACKBONE.FREEZE_AT == 4
        checkpointer = DoubleHeadCheckpointer(build_model(cfg))
        checkpointer.load(cfg.MODEL.WEIGHTS)
        missing = {key.rsplit(".", 2)[0] for key in checkpointer.missing_keys}
        resnet = {key for key in missing if "res" in key or "stem" in key}
        assert not resnet and missing, row


def test_ladder_by_hand() -> None:
    """Results of G-RCN's rows have AP70; without any there is no such section."""
    runs = {row: {} for row in paper_tables.GRCN}
    assert "G-RCN" not in paper_tables.report(
        {r: {} for r in paper_tables.TABLE_1}, EMPTY, TSD, {}, runs
    )
    for row, ap70 in (("faster_rcnn_c5", 50.0), ("grcn", 53.0)):
        runs[row] = {1: {"AP": 40.0, "AP50": 70.0, "AP70": ap70, "AP75": 30.0}}
    text = paper_tables.report({r: {} for r in paper_tables.TABLE_1}, EMPTY, TSD, {}, runs)
    assert "| row | AP | AP70 | AP75 | seeds |" in text
    assert "| grcn | 40.00 | 53.00 | 30.00 | 1 |" in text
    assert (
        "- G-RCN helps: yes (+3.00 AP70 of grcn to faster_rcnn_c5, standard error unknown with a "
        "single seed)." in text
    )
    rows = {row for *pair, _ in paper_tables.GRCN_CLAIMS.values() for row in pair}
    assert rows <= {*paper_tables.GRCN}


def test_settings_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"opts": ["SOLVER.MAX_ITER", "5"]}))
    finished = tmp_path / "single_fc_w1" / "1" / "result.json"
    finished.parent.mkdir(parents=True)
    finished.write_text("{}")
    assert reproduce_tables.main(["--output", str(tmp_path), "--seeds", "1"]) == 1
    assert "holds runs with --opts SOLVER.MAX_ITER 5, not (none)" in capsys.readouterr().err


def test_runs_of_another_variation_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = tmp_path / "whole_single_fc_14x14" / "1" / "result.json"
    finished.parent.mkdir(parents=True)
    finished.write_text(json.dumps({"variation": ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "28"]}))
    assert reproduce_tables.main(["--output", str(tmp_path), "--seeds", "1"]) == 1
    assert (
        "14x14/1/result.json was made with MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 28, "
        "its row now states MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 14; allowed"
    ) in capsys.readouterr().err


def test_data_that_is_not_built_in_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "tables"), "--rows", "whole_single_fc", "--opts"]
    assert reproduce_tables.main([*words, "DATASETS.TEST", "('coco_2017_val',)"]) == 1
    assert "coco_2017_val" in capsys.readouterr().err


def test_a_mistyped_option_is_named_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tables"
    words = ["--output", str(output), "--opts", "SOLVER.MAX_ITTER", "5"]
    assert reproduce_tables.main(words) == 1
    assert "MAX_ITTER" in capsys.readouterr().err
    assert not output.exists()


def test_tables_say_what_the_runs_were_made_with(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"opts": ["SOLVER.BASE_LR", "0.1"]}))
    for seed, hardware in ((1, "a GPU"), (2, "a GPU"), (3, "a CPU")):
        result = {
            "row": "single_fc_w1",
            "seed": seed,
            "scores": {"box": {"AP": 1.0, "AP50": 2.0, "AP75": 0.5}},
            "iterations": 7,
            "environment": {"hardware": hardware},
        }
        path = tmp_path / "single_fc_w1" / str(seed) / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
    text = reproduce_tables.write_tables(tmp_path)
    assert text.endswith(
        "- options: SOLVER.BASE_LR 0.1\n- hardware: a GPU; a CPU\n- iterations of a row: 7\n"
    )


@pytest.mark.parametrize("record", ["hard_tsd", "hard_backbones", "grcn", "order"])
def test_docs_have_the_tables_of_the_recorded_studies(record: str) -> None:
    content = json.loads((REPOSITORY / f"dev/benchmarks/shapes_{record}.json").read_text())
    document = (REPOSITORY / "docs/REPRODUCTION.md").read_text(encoding="utf-8")
    text = reproduce_tables.format_tables(content)
    made_with = text[text.index("- options:") :]
    titles = {"hard_tsd": "TSD", "hard_backbones": "DetNet", "grcn": "G-RCN"}
    title = titles.get(record, "The paper's order in a fair trial")
    section = text.split(f"## {title}")[1].split("\n## ")[0].split("- options:")[0]
    assert section.count("| ") > 9
    # A section each, with what it was made with at its end; text between the tables.
    own = document.split(f"\n## {title}")[1].split("\n## ")[0]
    place = 0
    for block in [*section.split("\n\n"), made_with.replace("\n\n", "\n")]:
        lines = [x for x in block.splitlines() if x.startswith(("|", "- ", "###", "`"))]
        place = own.find("\n".join(lines), place)
        assert place >= 0, lines


@pytest.mark.parametrize("given, expected", [("3", "3"), (None, "4")])
def test_a_users_number_of_threads_stands(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cores are shared: of eight, two trainings have four each."""
    seen = []

    def run(command: list[str], *, env: dict[str, str], **options: object) -> SimpleNamespace:
        seen.append(env["OMP_NUM_THREADS"])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce_tables.subprocess, "run", run)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert reproduce_tables._run_all([("whole_single_fc", 1)], tmp_path, 2, []) == []
    assert seen == [expected]


@pytest.mark.slow
def test_short_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shapes(DATASETS / "shapes_hard", num_train=8, num_val=3, kind="shapes_hard")
    rows = ["single_conv_w1", "double_head_ext"]
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "4"]
    words = ["--output", str(tmp_path), "--jobs", "2", "--rows", *rows, "--seeds", "1"]
    assert reproduce_tables.main([*words, "--opts", *opts]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "results.json").read_text())
    assert {(r["row"], r["seed"]) for r in content["runs"]} == {
        ("backbone", 0),
        *((row, 1) for row in rows),
    }
    for r in content["runs"]:
        assert r["iterations"] == (12 if r["row"] == "backbone" else 2)  # half the batch
        assert "torch" in r["environment"]["versions"] and "CPU" in r["environment"]["hardware"]
        assert r["environment"]["data"].endswith("shapes_hard_val (3 images)")
    (ext,) = [r for r in content["runs"] if r["row"] == "double_head_ext"]
    assert set(ext["scores"]) == set(paper_tables.EXT_MODES)
    # All rows start from the weights that were trained first, and leave the backbone as it is.
    start = torch.load(tmp_path / "backbone.pth")["model"]
    assert not any(name.startswith("roi_heads") for name in start)
    for row in rows:
        end = torch.load(tmp_path / row / "1" / "model_final.pth")["model"]
        name = "backbone.bottom_up.res5.1.conv2.weight"
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=0)
        name = "backbone.fpn_output2.weight"
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=0.05)
        assert not torch.equal(end[name], start[name])

    # What is done is not done again, and what is new or was interrupted is.
    capsys.readouterr()
    (tmp_path / "single_conv_w1" / "1" / "result.json").unlink()
    words = ["--output", str(tmp_path), "--jobs", "2", "--rows", rows[0], "--seeds", "1", "2", "1"]
    assert reproduce_tables.main([*words, "--opts", *opts]) == 0
    started = [x for x in capsys.readouterr().out.splitlines() if "log in" in x]
    # In whichever order, since they start at once.
    assert sorted(x.split(":")[0] for x in started) == [f"{rows[0]}, seed {s}" for s in (1, 2)]
    text = (tmp_path / "tables.md").read_text()
    assert "| complementary | " in text and "| 1 | 40.3 |" in text and "| 1, 2 | 35.9 |" in text
    assert "Table 1, weights tuned: not yet known: no result for single_fc_w1" in text


@pytest.mark.slow
@pytest.mark.usefixtures("shapes")
def test_short_trial_of_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that train all of the network, one of them varied: curves, fusions and their tables."""
    write_shapes(DATASETS / "shapes_colors", num_train=8, num_val=3, kind="shapes_colors")
    rows = [order_trial.FUSED, "whole_double_head_colors"]
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1"]
    words = ["--output", str(tmp_path), "--jobs", "2", "--rows", *rows, "--seeds", "1"]
    assert reproduce_tables.main([*words, "--opts", *opts]) == 0, capsys.readouterr().err
    ext, colors = (json.loads((tmp_path / row / "1" / "result.json").read_text()) for row in rows)
    assert [iteration for iteration, _ in ext["curve"]] == [1, 2]
    assert {*ext["fusions"]} == {*paper_tables.EXT_MODES} and "fusions" not in colors
    # The row is scored as it is configured, which is one of the fusions.
    configured = {m: ext["scores"]["box"][m] for m in paper_tables.METRICS}
    assert ext["fusions"]["complementary"] == configured
    assert colors["environment"]["data"].startswith("shapes_colors_train (8 images)")
    text = (tmp_path / "tables.md").read_text()
    assert "### Fusion of its Double-Head-Ext" in text and "### Nine classes" in text
    start = torch.load(tmp_path / "backbone_demo.pth")["model"]
    end = torch.load(tmp_path / rows[1] / "1" / "model_final.pth")["model"]
    name = "backbone.bottom_up.res5.1.conv2.weight"
    assert not torch.equal(end[name], start[name])  # the ResNet learns, too
    assert end["roi_heads.box_predictor.cls_score.weight"].shape[0] == 9 + 1
