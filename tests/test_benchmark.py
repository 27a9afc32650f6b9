"""The benchmark measures what it says: which models, how many RoIs, in turn."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads

from conftest import REPOSITORY
from doublehead_d2 import model_zoo
from doublehead_d2.analysis import benchmark
from doublehead_d2.analysis.benchmark import (
    BASELINE,
    TRAINED_VARIANTS,
    VARIANTS,
    Setting,
    build_trained,
    build_variant,
    prepare,
    random_inputs,
    time_inference,
    time_training,
)
from doublehead_d2.analysis.complexity import model_complexity
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
    "ext_folded": 100,
    "ext_floor": 30,
}


@pytest.fixture(autouse=True)
def _memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stays as it is."""
    monkeypatch.setattr(tool, "keep_freed_memory", lambda: True)


def test_every_variant_has_a_task() -> None:
    assert list(SEEN) == [name for name in VARIANTS if "inference" in VARIANTS[name].tasks]
    assert {task for variant in VARIANTS.values() for task in variant.tasks} == {
        "inference",
        "training",
    }
    assert VARIANTS.keys() >= TRAINED_VARIANTS.keys()


@pytest.mark.parametrize("name", SEEN)
def test_rois_that_reach_the_regression_head(name: str) -> None:
    model = build_variant(name, "cpu", SMALL)
    inputs = random_inputs(SETTING)
    prepare(model, inputs, SETTING)
    result = time_inference({name: model}, [inputs], repetitions=1)[name]
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
    results = time_inference(models, [inputs], repetitions=3)
    assert [results[name]["seconds"] for name in models] == [17, 21]


def test_training_is_a_step_without_an_update() -> None:
    name = "double_head"
    model = build_variant(name, "cpu", SMALL)
    before = model.roi_heads.reg_predictor.bbox_pred.weight.clone()
    setting = Setting(image_size=(128, 160), batch_size=2)
    inputs = random_inputs(setting, num_objects=5)
    result = time_training({name: model}, [inputs], repetitions=1)[name]
    assert 0 < result["reg_head_rois"] <= 2 * 32 and not model.training
    assert torch.equal(model.roi_heads.reg_predictor.bbox_pred.weight, before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "seen"), [("double_head", "all"), ("double_head_both", "foreground")]
)
def test_training_shows_the_regression_head_what_the_keys_say(name: str, seen: str) -> None:
    model = build_variant(name, "cpu", SMALL)
    setting = Setting(image_size=(128, 160), batch_size=2)
    inputs = random_inputs(setting, num_objects=40)
    result = time_training({name: model}, [inputs], repetitions=1)[name]
    # A quarter of the sample of 32 is foreground at most; 40 objects fill it.
    assert result["reg_head_rois"] == {"all": 64, "foreground": 16}[seen]


def test_multiply_adds_and_memory_are_counted() -> None:
    """Of all RoIs the regression head takes its share of the counted work."""
    inputs = random_inputs(SETTING)
    results = {}
    for name in (BASELINE, "ext", "ext_floor"):
        model = build_variant(name, "cpu", SMALL)
        prepare(model, inputs, SETTING)
        results |= time_inference({name: model}, [inputs], repetitions=1)
    cfg = model_zoo.get_config(VARIANTS["ext"].config)
    cfg.merge_from_list([*SMALL, "MODEL.RPN.POST_NMS_TOPK_TEST", 100])
    a_roi = model_complexity(cfg)["flops"]["reg_head"] / 100 / 1e9
    saved = results["ext"]["gmacs"] - results["ext_floor"]["gmacs"]
    assert saved == pytest.approx(70 * a_roi)
    weights = sum(p.nbytes for p in [*model.parameters(), *model.buffers()]) / 2**20
    maps = 128 * 160 * (3 + 4 / 4) * 4 / 2**20  # the image and the stem's output
    assert results["ext"]["peak_mib"] > weights + maps
    model.roi_heads.reg_head.fold_bn = True
    folded = time_inference({name: model}, [inputs], repetitions=1)[name]["peak_mib"]
    copied = sum(p.nbytes for p in model.roi_heads.reg_head.parameters()) / 2**20
    assert folded > results["ext_floor"]["peak_mib"] + 0.8 * copied


def test_most_bytes_by_hand() -> None:
    # 10, 10 + 30, 30, 30 + 5, 5, and a tensor from before is freed
    events = [(1, 10), (2, 30), (1, -10), (1, 5), (2, -30), (7, -100)]
    assert benchmark._most_bytes(events) == 40
    assert benchmark._most_bytes([]) == 0


def test_batches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_count", lambda model, run: run() or {})
    model, seen = build_variant(BASELINE, "cpu", SMALL), []
    monkeypatch.setattr(model, "inference", lambda inputs: seen.append(inputs[0]))
    time_inference({BASELINE: model}, [["a"], ["b"]], repetitions=3)
    assert seen == ["a", "a", "b", "a", "a"]  # warm-up, three rounds, the count


def test_precision_is_autocasts() -> None:
    model = build_variant(BASELINE, "cpu", SMALL)
    inputs, seen = random_inputs(SETTING), []
    prepare(model, inputs, SETTING)
    model.roi_heads.box_head.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    time_inference({BASELINE: model}, [inputs], repetitions=1, precision=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}


def test_too_many_proposals_are_refused() -> None:
    model = build_variant(BASELINE, "cpu", SMALL)
    setting = SETTING._replace(num_proposals=100000)
    with pytest.raises(ValueError, match=r"100000 proposals are asked for; allowed: up to the \d+"):
        prepare(model, random_inputs(setting), setting)


@pytest.mark.parametrize("kept", [True, False])
def test_tool_prints_and_writes(kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "results.json"
    words = ["--models", "double_head", "--device", "cpu", "--image-size", "128", "160"]
    words += ["--proposals", "50", "100", "--survivors", "0.2", "--repetitions", "1", "--train"]
    picture = tmp_path / "curves.png"
    words += ["--json", str(path), "--plot", str(picture)]
    words += [] if kept else ["--release-memory", "--profile"]
    assert tool.main([*words, "--opts", *map(str, SMALL)]) == 0
    assert cv2.imread(str(picture)).std() > 1  # not blank
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert [run["task"] for run in content["runs"]] == ["inference", "inference", "training"]
    assert content["precision"] == "float32" and content["repetitions"] == 1
    assert content["keeps_freed_memory"] == kept
    assert [run["results"]["double_head"]["reg_head_rois"] for run in content["runs"][:2]] == [
        10,
        20,
    ]
    for run in content["runs"]:
        assert list(run["results"]) == [BASELINE, "double_head"]  # the baseline is always there
        assert run["results"][BASELINE]["ratio"] == 1
    assert ("Self CPU time total" in printed) == (not kept)
    assert "num_proposals 50" in printed and content["versions"] in printed


def test_a_stopped_benchmark_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    words = ["--models", BASELINE, "--device", "cpu", "--image-size", "128", "160"]
    words += ["--proposals", "50", "100000", "--repetitions", "1", "--json", str(path)]
    assert tool.main([*words, "--opts", *map(str, SMALL)]) == 1
    (run,) = json.loads(path.read_text())["runs"]
    assert run["num_proposals"] == 50


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a small "trained" Double-Head-Ext, its weights beside it."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = model_zoo.get_config("Shapes-Detection/double_head_ext_rcnn_tiny.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.DATASETS.TEST = ("benchmark_shapes",)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "config.yaml"


@pytest.fixture
def images(tmp_path: Path) -> Iterator[None]:
    """A registered data set of three pictures."""
    records = []
    for i in range(3):
        path = str(tmp_path / f"{i}.png")
        cv2.imwrite(path, np.full((96, 128, 3), 40 * i, np.uint8))
        records.append({"file_name": path, "image_id": i, "height": 96, "width": 128})
    DatasetCatalog.register("benchmark_shapes", lambda: records)
    MetadataCatalog.get("benchmark_shapes").thing_classes = ["a", "b", "c"]
    yield
    DatasetCatalog.remove("benchmark_shapes")
    MetadataCatalog.remove("benchmark_shapes")


def test_detectors_of_a_trained_model_have_its_weights(trained: Path) -> None:
    cfg = model_zoo.read_config(trained)
    models = {name: build_trained(name, cfg) for name in TRAINED_VARIANTS}
    weights = torch.load(cfg.MODEL.WEIGHTS)["model"]
    assert type(models[BASELINE].roi_heads) is StandardROIHeads
    for name, model in models.items():
        state = model.state_dict()
        assert state.keys() == weights.keys() or name == BASELINE
        for key, value in state.items():
            assert torch.equal(value, weights[key]), (name, key)
    assert models["double_head"].roi_heads.score_fusion == "cls_head"
    assert models["ext_floor"].roi_heads.score_floor == 0.05


def test_tool_measures_a_trained_model(
    trained: Path, images: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "trained.json"
    words = ["--trained", str(trained), "--device", "cpu", "--repetitions", "1"]
    assert tool.main([*words, "--batch-sizes", "1", "2", "--json", str(path)]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert [run["batch_size"] for run in runs] == [1, 2]
    for run in runs:
        assert list(run["results"]) == list(TRAINED_VARIANTS)
        assert run["data"] == "benchmark_shapes"
    assert "inference, trained" in capsys.readouterr().out
    assert tool.main([*words, "--batch-sizes", "4"]) == 1
    assert "--batch-sizes is 4; allowed: up to 3 images" in capsys.readouterr().err


def test_only_a_trained_ext_has_them_all() -> None:
    cfg = model_zoo.get_config("Shapes-Detection/double_head_rcnn_tiny.yaml")
    with pytest.raises(ValueError, match="SCORE_FUSION 'cls_head'; allowed: .* Double-Head-Ext"):
        build_trained("ext", cfg)


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


def recorded(name: str) -> dict:
    return json.loads((REPOSITORY / "dev" / "benchmarks" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def readme() -> str:
    return (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_readme_has_the_recorded_inference(readme: str) -> None:
    ordinary, kept = (recorded(f"inference_cpu{x}") for x in ("_released_memory", ""))
    assert (ordinary["keeps_freed_memory"], kept["keeps_freed_memory"]) == (False, True)
    assert f"{kept['hardware']}, {kept['versions']}" in readme
    assert f"of {kept['repetitions']} rounds" in readme
    (run,), (run_kept,) = ordinary["runs"], kept["runs"]
    assert list(run_kept["results"]) == list(SEEN)
    for name, result in run_kept["results"].items():
        cells = [f"{result['gmacs']:.0f}", f"{result['reg_head_rois']}"]
        cells += [f"{result['peak_mib']:.0f}"]
        for row in (run["results"].get(name), result):
            cells.append(f"{row['seconds']:.2f} ({row['ratio']:.2f})" if row else "–")
        assert f"| {' | '.join(cells)} |" in readme, name


def test_readme_has_the_recorded_training(readme: str) -> None:
    *_, run = recorded("training_cpu")["runs"]
    assert run["task"] == "training"
    for name, result in run["results"].items():
        cells = [f"{result['gmacs']:.0f}", f"{result['reg_head_rois']}"]
        cells += [f"{result['peak_mib']:.0f} ({result['memory_ratio']:.2f})"]
        cells += [f"{result['seconds']:.1f} ({result['ratio']:.2f})"]
        assert f"| {' | '.join(cells)} |" in readme, name


def test_readme_has_the_recorded_ways(readme: str) -> None:
    runs = recorded("conv_head_cpu")["runs"]
    for way in runs[0]["results"]:
        cells = [f"{run['results'][way]['ratio']:.2f}" for run in runs]
        difference = max(run["results"][way]["difference"] for run in runs)
        assert f"| {way} | {' | '.join(cells)} | {difference:.0e} |" in readme


def test_readme_has_the_recorded_floors(readme: str) -> None:
    for row in recorded("score_floor_shapes")["floors"]:
        milliseconds = 1000 * row["seconds"]
        cells = f"{row['floor']:g} | {row['AP']:.2f} | {row['RoIs']:.1f} | {milliseconds:.1f}"
        assert f"| {cells} |" in readme


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repetitions", "0"], "--repetitions is 0; allowed: 1 or more"),
        (["--survivors", "1.5"], r"--survivors is \[1.5\]; allowed: 0 to 1"),
        (["--proposals", "10", "0"], "--proposals is 0; allowed: 1 or more"),
        (["--plot", "a.png"], "with several --proposals or --survivors"),
        (["--models", "double_head_both"], "double_head_both is for training alone; allowed: with"),
        (["--trained", "a.yaml", "--train"], "--trained measures inference"),
        (["--trained", "a.yaml", "--models", "mmdet_layout"], "--models of faster_rcnn "),
        (["--opts", "MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_tool_refuses(words: list, message: str, capsys: pytest.CaptureFixture) -> None:
    assert tool.main(["--device", "cpu", *words]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and not captured.out
