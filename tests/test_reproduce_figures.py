"""The paper's figures from models and data: what is written, resumed, shared, refused."""

import json
from pathlib import Path

import pytest
from asked import write_model

from doublehead_d2.analysis import figure_cases, figure_runs
from doublehead_d2.analysis.difficulty import GROUPS
from doublehead_d2.data import write_shapes
from doublehead_d2.tools import reproduce_figures
from places import Place

FC = "Shapes-Detection/single_fc_rcnn_tiny.yaml"
MODES = ["reg_head", "cls_head", "unfused", "fused"]
COUNT = 30  # windows of an object


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figure_runs, figure_cases):
        monkeypatch.setattr(module, "BLOCK", 2)


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; they are drawn once."""
    for name in ("plot_all_windows", "plot_all_correlations", "plot_spatial", "plot_lambda_grid"):
        monkeypatch.setattr(reproduce_figures, name, lambda content, place: [])
    monkeypatch.setattr(reproduce_figures, "plot_rule", lambda *args: [])


def options(place: Place, *words: str) -> list[str]:
    """Those that name a Double-Head-Ext and a Single-FC of random weights, and four images."""
    data = place.coco("val")
    models = [("Ext", write_model(place.folder / "ext", data))]
    models.append(("Single-FC", write_model(place.folder / "fc", data, FC)))
    named = [word for model in models for word in ("--model", *model)]
    count = ["--proposals-per-object", str(COUNT)]
    return [*named, *count, "--output", str(place.folder / "figures"), *words]


def read(place: Place, name: str) -> dict:
    return json.loads((place.folder / "figures" / f"{name}.json").read_text())


@pytest.mark.usefixtures("_small_blocks")
def test_all_figures(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = options(place, "--figures", *reproduce_figures.FIGURES, "--num-cases", "1")
    assert reproduce_figures.main(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out.splitlines()
    files = [Path(x) for x in printed if x.startswith(str(place.folder))]
    assert all(x.stat().st_size for x in files)
    names = {x.stem for x in files if x.suffix == ".svg"}
    assert {"windows_by_size", "windows_by_difficulty", "windows", "windows_enlarged"} <= names
    assert {"correlations_by_size", "correlations_by_difficulty"} <= names
    assert {"spatial", "lambda_grid", "windows_rule"} <= names
    assert {x.with_suffix(".png") for x in files if x.suffix == ".svg"} <= {*files}
    assert any(x.parent.name == "cases" for x in files)
    assert any(x.startswith("| Ext | fused | 0.") or x.startswith("| Ext | fused | -0.") for x in
               printed)  # fmt: skip

    windows = read(place, "windows")
    objects = windows["objects"]
    assert windows["images"] == 4 and windows["proposals"] == COUNT * objects
    assert windows["subset"].startswith("30 of about 14,401 windows around each object")
    runs = [(x["model"], x["mode"]) for x in windows["curves"][:: len(GROUPS)]]
    assert runs == [*(("Ext", mode) for mode in MODES), ("Single-FC", "configured")]
    for curve in windows["curves"]:
        if curve["group"] == "all":
            assert sum(curve["count"]) == COUNT * objects
            assert [sum(row) for row in curve["score_histogram"]] == curve["count"]
        empty = [count == 0 for count in curve["count"]]
        assert [x is None for x in curve["score_mean"]] == empty
    by_mode = {(x["mode"], x["group"]): x for x in windows["curves"] if x["model"] == "Ext"}
    unfused, fc, conv = (by_mode[mode, "all"] for mode in ("unfused", "cls_head", "reg_head"))
    assert unfused["score_mean"] == fc["score_mean"] != conv["score_mean"]
    assert unfused["iou_mean"] == conv["iou_mean"] != fc["iou_mean"]

    found = read(place, "correlations")["correlations"]
    assert {x["proposals"] for x in found} == {"windows", "rpn", "detections"}
    assert {x["group"] for x in found} == {*GROUPS}
    maps = read(place, "spatial")
    assert [(x["model"], x["kind"], x["of"]) for x in maps["maps"]] == [
        ("Ext", "conv", "output"),
        ("Ext", "fc", "output"),
        ("Ext", "fc", "weights"),
        ("Single-FC", "fc", "output"),
        ("Single-FC", "fc", "weights"),
    ]
    assert maps["objects"] == objects
    found = read(place, "summary")
    assert len(found["runs"]) == 5 and len(found["maps"]) == 5
    table = (place.folder / "figures" / "summary.md").read_text().splitlines()
    assert set(printed) >= {*table} and sum(x.startswith("| Ext |") for x in table) == 4 + 3
    (point,) = read(place, "lambda_grid")["points"]
    assert (point["lambda_fc"], point["lambda_conv"], point["model"]) == (0.7, 0.8, "Ext")
    assert {*point["AP"]} == {*MODES}
    (comparison,) = read(place, "cases")["comparisons"]
    assert comparison["counts"]["objects"] == objects and comparison["counts"]["images"] == 4


@pytest.mark.usefixtures("_no_pictures", "_small_blocks")
def test_a_run_that_was_stopped_goes_on(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first block of the second model; what is there is not counted again."""
    words = options(place)
    whole = figure_runs.examine
    calls: list[int] = []

    def stopped(*args: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(figure_runs, "examine", stopped)
    with pytest.raises(KeyboardInterrupt):
        reproduce_figures.main(words)
    # Blocks of the first model, of windows and of maps, and one of the second.
    assert len([*place.folder.glob("figures/passes/*/*/0*.json")]) == 5
    assert not (place.folder / "figures" / "windows.json").exists()
    calls[:] = [1] * 6
    assert reproduce_figures.main(words) == 0
    assert len(calls) == 6 + 3
    first = {name: read(place, name) for name in ("windows", "correlations", "spatial")}
    assert reproduce_figures.main(words) == 0
    assert len(calls) == 6 + 3  # nothing was left to do
    assert first == {name: read(place, name) for name in first}

    figures = str(place.folder / "figures")
    other = [*words, "--output", f"{figures}2", "--other-trainings", figures]
    assert reproduce_figures.main(other) == 0
    # The same weights: numbers deviate by nothing.
    table = (place.folder / "figures2" / "summary.md").read_text()
    assert table.count(" ± 0.000 ") > 20 and table.count(" ± 0.00 ") == 5
    again = json.loads((place.folder / "figures2" / "windows.json").read_text())
    for content in (again, first["windows"]):
        content.pop("rois_per_second")
    assert again == first["windows"]


@pytest.mark.slow
@pytest.mark.usefixtures("_no_pictures", "catalogs")
def test_processes_share_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes count what one does, a block each. The data is one that they can find, too."""
    write_shapes(tmp_path / "shapes", num_train=2, num_val=figure_runs.BLOCK + 1)
    folder = tmp_path / "shapes" / "coco"
    text = f"coco:{folder}/annotations/instances_val.json:{folder}/val"
    config = write_model(tmp_path / "ext", "own_val")
    words = ["--model", "Ext", config, "--dataset", f"own_val={text}", "--figures", "windows"]
    words += ["--proposals-per-object", str(COUNT)]
    found = []
    for jobs in ("1", "2"):
        output = tmp_path / f"jobs_{jobs}"
        assert reproduce_figures.main([*words, "--jobs", jobs, "--output", str(output)]) == 0, (
            capsys.readouterr().err
        )
        found.append(json.loads((output / "windows.json").read_text()))
        found[-1].pop("rois_per_second")
    assert found[0] == found[1]


@pytest.mark.usefixtures("_no_pictures")
def test_numbers_of_other_settings_are_not_mixed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = options(place, "--figures", "windows")
    assert reproduce_figures.main(words) == 0
    capsys.readouterr()
    assert reproduce_figures.main([*words, "--seed", "1"]) == 1
    error = capsys.readouterr().err
    assert "holds numbers of another config, weights, request or baseline; allowed" in error
    # Groups of classes follow from the baseline.
    assert reproduce_figures.main([*words, "--baseline", "Single-FC"]) == 1
    assert "or baseline; allowed: another --output" in capsys.readouterr().err
    # Fewer images are no other request, and are not taken for all.
    assert reproduce_figures.main([*words, "--num-images", "3"]) == 0
    assert read(place, "windows")["images"] == 3
    assert reproduce_figures.main(words) == 0
    assert read(place, "windows")["images"] == 4


@pytest.mark.usefixtures("_no_pictures")
def test_classes_of_data_in_vocs_layout_are_told_apart(place: Place) -> None:
    """Pascal VOC's evaluator gives no AP by class, COCO's does."""
    _, data = place.voc()
    config = write_model(place.folder / "ext", data)
    output = place.folder / "figures"
    words = ["--model", "Ext", config, "--figures", "windows", "--output", str(output)]
    assert reproduce_figures.main([*words, "--proposals-per-object", str(COUNT)]) == 0
    aps = json.loads((output / "difficulty.json").read_text())["AP"]
    assert len({x for x in aps if x is not None}) > 1
    assert read(place, "windows")["objects"] > 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "a", "b"], "--model names Ext, Single-FC, Ext"),
        (["--model", "only"], "--model only; allowed: NAME CONFIG, or with WEIGHTS"),
        (["--baseline", "SSD"], "--baseline is 'SSD'; allowed: Ext, Single-FC"),
        (["--jobs", "0"], "--jobs is 0; allowed: 1 or more"),
        (["--proposals-per-object", "-1"], "--proposals-per-object is -1; allowed: 0 or more"),
        (["--num-cases", "0"], "--num-cases is 0; allowed: 1 or more"),
        (["--dataset", "nowhere"], "nowhere"),
        (["--other-trainings", "a", "./a"], "/a twice; allowed: once"),
        (["--other-trainings", "nowhere"], "nowhere has no summary.json; allowed: outputs"),
        (
            ["--other-trainings", ".", "--figures", "windows", "spatial"],
            "--figures are windows spatial, which gives no summary",
        ),
    ],
)
def test_wrong_options_are_refused(
    words: list[str], message: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    if words == ["--model", "a", "b"]:
        words = ["--model", "Ext", "b"]
    assert reproduce_figures.main(options(place, *words)) == 1
    assert message in capsys.readouterr().err
    assert not (place.folder / "figures").exists()


def test_models_of_one_head_have_no_grid_and_no_case(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_model(place.folder / "fc", place.coco("val"), FC)
    words = ["--model", "Single-FC", config, "--output", str(place.folder / "figures")]
    assert reproduce_figures.main([*words, "--figures", "lambda_grid"]) == 1
    assert "no model for the grid of λ; allowed: MODEL.ROI_HEADS.NAME" in capsys.readouterr().err
    assert reproduce_figures.main([*words, "--figures", "cases"]) == 1
    assert "'Single-FC' has none; allowed: a model whose heads" in capsys.readouterr().err
