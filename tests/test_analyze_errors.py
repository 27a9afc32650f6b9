"""The tool: models in all modes, two models, stored detections, VOC's layout, and refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from asked import write_model
from detectron2.data import MetadataCatalog

from conftest import TINY_EXT
from doublehead_d2.analysis.error_tables import MEANINGS, MOST_CLASSES, markdown
from doublehead_d2.analysis.errors import KINDS, METRICS
from doublehead_d2.plots import HEAD_COLOURS, plot_errors
from doublehead_d2.tools import analyze_errors
from doublehead_d2.tools.analyze_errors import main
from places import CLASSES, Place

MODES = ["reg_head", "cls_head", "unfused", "fused"]
SINGLE = "Shapes-Detection/single_fc_rcnn_tiny.yaml"


def results(place: Place, name: str = "found.json", **changes: Any) -> str:
    """Detections of all objects of the test images, the first of them changed."""
    data = json.loads((place.small / "coco/annotations/instances_val.json").read_text())
    fields = ("image_id", "category_id", "bbox")
    found = [{**{f: x[f] for f in fields}, "score": 0.9} for x in data["annotations"]]
    found[0].update(changes)
    path = place.folder / name
    path.write_text(json.dumps(found))
    return str(path)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; `test_pictures` draws them."""
    monkeypatch.setattr(analyze_errors, "plot_errors", lambda content, folder: ["errors.png"])


def run(place: Place, *args: str) -> tuple[dict[str, Any], str]:
    """What the tool writes."""
    output = place.folder / "errors"
    assert main(["--output", str(output), *args]) == 0
    return json.loads((output / "errors.json").read_text()), (output / "errors.md").read_text()


def refused(capsys: pytest.CaptureFixture, *args: str) -> str:
    capsys.readouterr()
    assert main(args) == 1
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err


def test_a_model_in_all_modes(place: Place, capsys: pytest.CaptureFixture) -> None:
    config = write_model(place.folder / "ext", place.coco("val"))
    content, text = run(place, config)
    assert [x["mode"] for x in content["runs"]] == MODES == [x["name"] for x in content["runs"]]
    assert [x["configured"] for x in content["runs"]] == [False, False, False, True]
    assert {x["model"] for x in content["runs"]} == {"ext"}
    assert [(x["run"], x["reference"]) for x in content["differences"]] == [
        (mode, "fused") for mode in MODES[:3]
    ]
    assert content["images"] == 4 and content["classes"] == CLASSES and content["crowds"] == 0
    for one in content["runs"]:
        found = json.loads(Path(one["detections_file"]).read_text())
        assert len(found) == one["detections"] > 0
    fused, unfused = content["runs"][3], content["runs"][2]
    difference = content["differences"][2]["values"]["dAP background"]
    assert difference == pytest.approx(
        unfused["errors"]["background"]["dAP"] - fused["errors"]["background"]["dAP"]
    )
    assert all(f"| {mode}" in text for mode in MODES) and "(errors.png)" in text
    printed = capsys.readouterr().out
    assert "| reg_head" in printed and "Average Precision" not in printed


@pytest.mark.slow
def test_two_models(place: Place) -> None:
    data = place.coco("val")
    first = write_model(place.folder / "ext", data)
    # Its own test set is not asked for.
    second = write_model(
        place.folder / "single", "nowhere", SINGLE, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.06
    )
    content, text = run(place, first, second)
    assert [x["name"] for x in content["runs"]] == [*(f"ext, {mode}" for mode in MODES), "single"]
    assert content["runs"][4]["mode"] == "configured" and content["runs"][4]["configured"]
    pairs = [(x["run"], x["reference"]) for x in content["differences"]]
    assert pairs[:3] == [(f"ext, {mode}", "ext, fused") for mode in MODES[:3]]
    assert pairs[3:] == [(f"ext, {mode}", "single") for mode in MODES]
    one, two = content["notes"][-2:]
    assert one.startswith("MODEL.ROI_HEADS.SCORE_THRESH_TEST is 0.06: what is below is missing")
    assert "SCORE_THRESH_TEST is 0 and 0.06" in two and two in text


@pytest.mark.slow
def test_two_models_in_the_same_modes(place: Place) -> None:
    data = place.coco("val")
    # Scores of one head; the average of both, which is none of the four modes by its name
    first = write_model(place.folder / "one", data)
    (place.folder / "b").mkdir()
    second = write_model(
        place.folder / "b" / "one", data, TINY_EXT, "MODEL.ROI_DOUBLE_HEAD.BOX_SOURCE", "cls_head"
    )
    content, _ = run(place, first, second)
    names = [x["name"] for x in content["runs"]]
    assert len(set(names)) == 9 and names[0].endswith("one/config, reg_head")
    pairs = [(x["run"], x["reference"]) for x in content["differences"]]
    assert len(pairs) == 3 + 4 + 4
    for (run_name, reference), mode in zip(pairs[7:], MODES, strict=True):
        assert run_name.endswith(f"one/config, {mode}") and "/b/" not in run_name
        assert reference.endswith(f"b/one/config, {mode}")


def test_a_new_run_forgets_the_detections_of_the_last_one(place: Place) -> None:
    config = write_model(place.folder / "single", place.coco("val"), SINGLE)
    content, _ = run(place, config)
    assert content["runs"][0]["detections"] > 0 and content["differences"] == []
    content, text = run(place, config, "--opts", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert content["runs"][0]["detections"] == 0
    assert content["runs"][0]["best_f1"] is None
    rows = [cells(line) for line in text.splitlines() if line.startswith("| configured")]
    assert ["configured", *["-"] * 4] in rows


def test_stored_detections(place: Place, capsys: pytest.CaptureFixture) -> None:
    data = place.coco("val")
    one, two = results(place), results(place, "other.json", bbox=[0, 0, 1, 1])
    content, text = run(place, "--detections", one, two, "--dataset", data)
    perfect, other = content["runs"]
    assert [perfect["name"], other["name"]] == ["found", "other"]
    assert perfect["scores"] == pytest.approx(dict.fromkeys(METRICS, 100))
    assert {x["count"] for x in perfect["errors"].values()} == {0}
    assert other["errors"]["missed"]["count"] == other["errors"]["background"]["count"] == 1
    (difference,) = content["differences"]
    assert (difference["run"], difference["reference"]) == ("found", "other")
    assert difference["values"]["AP"] > 0 and "| found − other |" in text
    assert not (place.folder / "errors/inference").exists()
    content, text = run(place, "--detections", one, "--dataset", data, "--iou", "0.75")
    assert content["iou"] == 0.75 and content["differences"] == []
    assert "AP at IoU 0.75 would gain" in text and "IoU 0.1 to 0.75; mended" in text


def test_data_in_vocs_layout_and_words_as_image_ids(place: Place) -> None:
    _, data = place.voc()
    config = write_model(place.folder / "single", data, SINGLE)
    content, _ = run(place, config)
    assert content["images"] == 4 and content["classes"] == CLASSES
    stored = content["runs"][0]
    found = json.loads(Path(stored["detections_file"]).read_text())
    assert {type(x["image_id"]) for x in found} == {str} and len(found) == stored["detections"]
    again, _ = run(place, "--dataset", data, "--detections", stored["detections_file"])
    assert again["runs"][0]["scores"] == stored["scores"]
    assert again["runs"][0]["errors"] == stored["errors"]


def test_own_data_are_named_on_the_command_line(place: Place) -> None:
    folder = place.small / "coco"
    text = f"mine_errors=coco:{folder}/annotations/instances_val.json:{folder}/val"
    content, _ = run(place, "--dataset", text, "--detections", results(place))
    assert content["data"] == "mine_errors" and content["images"] == 4
    config = write_model(place.folder / "single", place.coco("val"), SINGLE)
    content, _ = run(place, config, "--dataset", text)
    assert content["data"] == "mine_errors" and content["objects"] > 0


def test_changed_voc_data_are_converted_anew(place: Place) -> None:
    _, data = place.voc()
    path = place.folder / "found.json"
    path.write_text("[]")
    args = ("--dataset", data, "--detections", str(path))
    before, _ = run(place, *args)
    folder = Path(MetadataCatalog.get(data).dirname) / "Annotations"
    name = (folder.parent / "ImageSets/Main/test.txt").read_text().split()[0]
    text = (folder / f"{name}.xml").read_text()
    start, end = text.index("<object>"), text.index("</object>") + len("</object>")
    (folder / f"{name}.xml").write_text(text[:end] + text[start:end] + text[end:])
    after, _ = run(place, *args)
    assert after["objects"] == before["objects"] + 1
    assert MetadataCatalog.get(data).get("json_file") is None


def test_crowds_and_a_class_without_objects(place: Place) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["categories"].append({"id": 99, "name": "none"})
        data["annotations"][0]["iscrowd"] = 1

    content, text = run(place, "--dataset", place.coco("val", edit), "--detections", results(place))
    assert content["crowds"] == 1 and "1 crowds" in text
    none = content["runs"][0]["classes"][3]
    assert none["name"] == "none" and none["objects"] == 0 and none["AP"] is None
    (row,) = [
        line for line in text.splitlines() if line.startswith("| none") and line.count("|") > 8
    ]
    assert cells(row) == ["none", "0", *["-"] * 8]
    assert {x["count"] for x in content["runs"][0]["errors"].values()} == {0}


def test_what_is_refused(place: Place, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    data, found = place.coco("val"), results(place)
    config = write_model(place.folder / "ext", data)
    other = place.folder / "other.yaml"
    other.write_text(Path(config).read_text().replace("- circle", "- disc"))
    output = ("--output", str(tmp_path / "never"))
    empty = place.coco("val", lambda data: data.update(annotations=[]))
    for args, message in [
        ((), "nothing to analyse; allowed: one or two CONFIG, or --detections"),
        ((config, config, config), "CONFIG names 3 files; allowed: one or two"),
        (("--dataset", data, "--detections", *[found] * 3), "--detections names 3 files"),
        (("--detections", found), "--detections stands instead of CONFIG; allowed: with --dataset"),
        ((config, "--dataset", data, "--detections", found), "--detections stands instead of"),
        ((config, "--score-threshold", "1.5"), "--score-threshold is 1.5; allowed: 0 to 1"),
        (
            (config, "--dataset", data, "--dataset", data),
            "--dataset is given 2 times; allowed: once",
        ),
        ((config, "--iou", "0.1"), "--iou is 0.1; allowed: above 0.1 and below 1"),
        ((config, str(other)), f"{CLASSES}, '{other}' has ['disc', 'rectangle', 'triangle']"),
        ((config, "--opts", "MODEL.WEIGHTS", ""), "MODEL.WEIGHTS is empty; allowed: the weights"),
        ((config, "--opts", "DATASETS.TEST", "()"), "DATASETS.TEST is empty; allowed: data to"),
        ((config, "--dataset", "shapes_vel"), "Data set 'shapes_vel' is not registered"),
        ((config, "--dataset", empty), "it has no object to score detections against"),
        (("--dataset", empty, "--detections", found), "it has no object to score detections"),
        (("--dataset", data, "--detections", "none.json"), "none.json"),
        (("--dataset", data, "--detections", results(place, score=7)), "detection 0 has score 7"),
        (("no.yaml",), "no config file 'no.yaml'"),
    ]:
        assert message in refused(capsys, *output, *args), args
    assert not (tmp_path / "never/errors.json").exists()
    assert not (tmp_path / "never/inference").exists()


def test_without_hotcoco(
    place: Place, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert 'pip install "hotcoco>=1.3"' in refused(capsys, "Shapes-Detection/any.yaml")


def test_the_help_says_what_it_needs(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "pip install" in capsys.readouterr().out


def content_of(classes: int) -> dict[str, Any]:
    """What the tool writes of nothing detected, by hand."""
    names = [f"c{i}" for i in range(classes)]
    scores = dict.fromkeys(METRICS, 12.345)
    run = {
        "name": "fused",
        "model": "m",
        "mode": "fused",
        "detections": 3,
        "scores": scores,
        "best_f1": {"threshold": 0.5, "precision": 50.0, "recall": 25.0, "F1": 100 / 3},
        "thresholds": {"precision": [None] * 101, "recall": [0.0] * 101},
        "confusion": {"threshold": 0.5, "matrix": [[1] * (classes + 1)] * (classes + 1)},
        "errors": {kind: {"dAP": i + 0.126, "count": i} for i, kind in enumerate(KINDS)},
        "unfound": ["c0"],
        "classes": [{"name": n, "objects": 1, **scores, "best_f1": None} for n in names],
    }
    return {
        "data": "d",
        "images": 1,
        "objects": 1,
        "crowds": 0,
        "classes": names,
        "iou": 0.5,
        "hotcoco": "1.3",
        "notes": [],
        "runs": [run],
        "differences": [
            {"run": "a", "reference": "b", "values": {"AP": -1.5, "AR": 2.0, "dAP both": None}}
        ],
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_tables_by_hand() -> None:
    lines = markdown(content_of(2)).splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert ["fused", *["12.35"] * 4, "3"] in rows or ["fused", *["12.34"] * 4, "3"] in rows
    assert ["fused", "0.500", "50.00", "25.00", "33.33"] in rows
    kinds = [f"{i}.13 ({i})" for i in range(len(KINDS))]
    assert ["", *KINDS] in rows and ["fused", *kinds] in rows
    assert ["", "AP", "AR", "dAP both"] in rows and ["a − b", "-1.50", "+2.00", "-"] in rows
    assert ["background", "1", "1", "1"] in rows
    assert any(line.startswith("Of c0 nothing is found (fused)") for line in lines)
    assert all(any(line.startswith(f"- **{kind}**") for line in lines) for kind in KINDS)
    assert list(MEANINGS) == list(KINDS)


def test_matrices_of_many_classes_are_left_to_the_json_file() -> None:
    text = markdown(content_of(MOST_CLASSES + 1))
    assert "The matrices of 16 classes are in the JSON file." in text
    assert "| background" not in text
    assert "| background" in markdown(content_of(MOST_CLASSES))


@pytest.mark.parametrize(
    "classes", [1, pytest.param(MOST_CLASSES + 1, marks=pytest.mark.slow)], ids=["one", "many"]
)
def test_pictures(classes: int, tmp_path: Path) -> None:
    content = content_of(classes)
    second = {**content["runs"][0], "name": "x", "model": "other", "mode": "configured"}
    content["runs"].append({**second, "best_f1": None})
    paths = plot_errors(content, str(tmp_path))
    names = [f"{x}.{y}" for x in ("errors", "thresholds", "confusion") for y in ("png", "svg")]
    assert [Path(path).name for path in paths] == names
    for path in map(Path, paths):
        found = path.read_bytes()
        assert found.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in found


def test_every_mode_has_its_colour() -> None:
    assert list(HEAD_COLOURS) == MODES and len(set(HEAD_COLOURS.values())) == 4
