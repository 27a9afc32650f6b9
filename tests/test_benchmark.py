"""The benchmark measures what it says: which models, how many RoIs, in turn."""

import json
import re
from pathlib import Path

import cv2
import pytest
import torch

from conftest import REPOSITORY
from doublehead_d2.analysis import benchmark
from doublehead_d2.analysis.benchmark import (
    BASELINE,
    VARIANTS,
    Setting,
    build_variant,
    prepare,
    random_inputs,
    time_inference,
    time_training,
)
from doublehead_d2.analysis.plots import curves
from doublehead_d2.tools import benchmark as tool

SMALL = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.DIM", 16),
    *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.BOTTLENECK_DIM", 8),
    *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NONLOCAL_DIM", 8),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
]
SETTING = Setting(image_size=(128, 160), num_proposals=100, survivors=0.3)
# Of the 100 RoIs of an image: all, or the survivors where scores are the fc-head's
SEEN = {
    "faster_rcnn": 0,
    "double_head_plain": 100,
    "double_head": 30,
    "mmdet_layout_plain": 100,
    "mmdet_layout": 30,
    "ext_plain": 100,
    "ext": 100,
    "ext_floor": 30,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_rois_that_reach_the_regression_head(name: str) -> None:
    model = build_variant(name, "cpu", SMALL)
    inputs = random_inputs(SETTING)
    prepare(model, inputs, SETTING)
    result = time_inference({name: model}, inputs, repetitions=1)[name]
    assert result["reg_head_rois"] == SEEN[name]
    assert result["images_per_s"] == pytest.approx(1 / result["seconds"])


def test_plain_variants_detect_the_same() -> None:
    inputs = random_inputs(SETTING)
    for name in ("double_head", "mmdet_layout", "ext"):
        detections = []
        for variant in (name, f"{name}_plain"):
            model = build_variant(variant, "cpu", SMALL)
            prepare(model, inputs, SETTING)
            with torch.no_grad():
                detections.append(model.inference(inputs, do_postprocess=False)[0])
        torch.testing.assert_close(*[x.scores for x in detections])
        boxes = [x.pred_boxes.tensor for x in detections]
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-4)


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(benchmark, "time_when_done", lambda device: next(clock) ** 2)
    models = {name: build_variant(name, "cpu", SMALL) for name in (BASELINE, "double_head")}
    inputs = random_inputs(SETTING)
    # Readings of the clock are 0, 1, 4, 9, ...: after 4 of warm-up the baseline's rounds last from
    # 16 to 25, 64 to 81 and 144 to 169, those of the other 36 to 49, 100 to 121 and 196 to 225.
    results = time_inference(models, inputs, repetitions=3)
    assert [results[name]["seconds"] for name in models] == [17, 21]


def test_training_is_a_step_without_an_update() -> None:
    name = "double_head"
    model = build_variant(name, "cpu", SMALL)
    before = model.roi_heads.reg_predictor.bbox_pred.weight.clone()
    setting = Setting(image_size=(128, 160), batch_size=2)
    inputs = random_inputs(setting, num_objects=5)
    result = time_training({name: model}, inputs, repetitions=1)[name]
    assert 0 < result["reg_head_rois"] <= 2 * 32 and not model.training
    assert torch.equal(model.roi_heads.reg_predictor.bbox_pred.weight, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_too_many_proposals_are_refused() -> None:
    model = build_variant(BASELINE, "cpu", SMALL)
    setting = SETTING._replace(num_proposals=100000)
    with pytest.raises(ValueError, match=r"100000 proposals are asked for; allowed: up to the \d+"):
        prepare(model, random_inputs(setting), setting)


def test_tool_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "results.json"
    words = ["--models", "double_head", "--device", "cpu", "--image-size", "128", "160"]
    words += ["--proposals", "50", "100", "--survivors", "0.2", "--repetitions", "1", "--train"]
    picture = tmp_path / "curves.png"
    words += ["--json", str(path), "--plot", str(picture)]
    assert tool.main([*words, "--opts", *map(str, SMALL)]) == 0
    assert cv2.imread(str(picture)).std() > 1  # not blank
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert [run["task"] for run in content["runs"]] == ["inference", "inference", "training"]
    assert [run["results"]["double_head"]["reg_head_rois"] for run in content["runs"][:2]] == [
        10,
        20,
    ]
    for run in content["runs"]:
        assert list(run["results"]) == [BASELINE, "double_head"]  # the baseline is always there
        assert run["results"][BASELINE]["ratio"] == 1
    assert "num_proposals 50" in printed and content["versions"] in printed


def test_curves_join_runs_that_differ_in_the_axis_alone() -> None:
    def run(proposals: int, survivors: float, seconds: float) -> dict:
        setting = {"batch_size": 1, "num_proposals": proposals, "survivors": survivors}
        return {**setting, "results": {"a": {"seconds": seconds}}}

    runs = [run(200, 0.1, 3.0), run(100, 0.1, 2.0), run(100, 0.5, 4.0)]
    assert curves(runs, "num_proposals") == {
        "a, survivors 0.1": [(100, 2.0), (200, 3.0)],
        "a, survivors 0.5": [(100, 4.0)],
    }
    assert curves(runs[1:], "survivors") == {"a": [(0.1, 2.0), (0.5, 4.0)]}


def test_readme_has_the_recorded_numbers() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    records = REPOSITORY / "dev" / "benchmarks"
    recorded = json.loads((records / "inference_cpu.json").read_text())
    assert f"{recorded['hardware']}, {recorded['versions']}" in text
    (run,) = recorded["runs"]
    assert list(run["results"]) == list(VARIANTS)
    for result in run["results"].values():
        row = (f"{result['seconds']:.2f}", f"{result['ratio']:.2f}", str(result["reg_head_rois"]))
        assert f"| {' | '.join(row)} |" in text
    for row in json.loads((records / "score_floor_shapes.json").read_text())["floors"]:
        milliseconds = 1000 * row["seconds"]
        cells = f"{row['floor']:g} | {row['AP']:.2f} | {row['RoIs']:.1f} | {milliseconds:.1f}"
        assert f"| {cells} |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repetitions", "0"], "--repetitions is 0; allowed: 1 or more"),
        (["--survivors", "1.5"], r"--survivors is \[1.5\]; allowed: 0 to 1"),
        (["--proposals", "10", "0"], "--proposals is 0; allowed: 1 or more"),
        (["--plot", "a.png"], "with several --proposals or --survivors"),
        (["--opts", "MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_tool_refuses(words: list, message: str, capsys: pytest.CaptureFixture) -> None:
    assert tool.main(["--device", "cpu", *words]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and not captured.out
