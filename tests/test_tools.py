"""The command line tools, on the trained model of the session."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from conftest import REPOSITORY, TINY_EXT
from doublehead_d2.tools import demo, make_shapes, quickstart, score_floor


def test_demo_asks_for_weights(tmp_path: Path) -> None:
    config = "Shapes-Detection/double_head_rcnn_tiny.yaml"
    with pytest.raises(ValueError, match="names no weights; add `--opts MODEL.WEIGHTS"):
        demo.main(["--config-file", config, "--input", "a.jpg"])


@pytest.mark.slow
def test_demo_says_where_weights_that_are_missing_belong(tmp_path: Path) -> None:
    config = "Imported/official_double_head_ext_rcnn_R_50_FPN_1x.yaml"
    words = ["-m", "doublehead_d2.tools.demo", "--config-file", config, "--input", "a.jpg"]
    result = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "FVCORE_CACHE": str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    file = tmp_path / "doublehead_d2" / "official" / "dh_faster_rcnn_R_50_FPN_1x.pth"
    assert result.stderr.rstrip().endswith(f"and save it as\n  {file}")


def test_pictures_of_one_name_from_several_folders() -> None:
    records = [{"file_name": name} for name in ("a/1.jpg", "b/1.jpg", "1.png", "2.jpg")]
    assert demo._picture_names(records) == ["1.png", "1_2.png", "1_3.png", "2.png"]


@pytest.mark.slow
def test_demo_draws_images_and_describes_boxes(
    trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = sorted(str(p) for p in (shapes / "coco" / "val").glob("*.jpg"))[:3]
    broken = tmp_path / "broken.jpg"
    broken.write_text("not an image")
    output = tmp_path / "out"
    code = demo.main(
        ["--config-file", str(trained / "config.yaml"), "--output", str(output)]
        + ["--batch-size", "2", "--score-threshold", "0.05"]
        + ["--input", images[0], str(broken), *images[1:]]
    )
    assert code == 1
    captured = capsys.readouterr()
    assert f"not readable as an image: {broken}" in captured.err
    entries = json.loads((output / "detections.json").read_text())
    assert [e["file_name"] for e in entries] == images
    assert all(cv2.imread(str(output / e["picture"])).shape[0] >= 384 for e in entries)
    detections = [d for e in entries for d in e["detections"]]
    assert detections
    for detection in detections:
        assert detection["class"] == ["circle", "rectangle", "triangle"][detection["class_id"]]
        x0, y0, x1, y1 = detection["box"]
        assert 0 <= x0 <= x1 <= 128 and 0 <= y0 <= y1 <= 128 and 0.05 <= detection["score"] <= 1


@pytest.mark.slow
def test_score_floor_trades_rois_for_ap(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--config-file", str(trained / "config.yaml"), "--output", str(tmp_path)]
    words += ["--num-images", "2", "--floors", "0.0", "0.05"]
    assert score_floor.main(words) == 0
    exact, floored = json.loads((tmp_path / "score_floor.json").read_text())["floors"]
    assert exact["RoIs"] > floored["RoIs"] > 0 and exact["seconds"] > 0
    assert abs(exact["AP"] - floored["AP"]) < 2
    assert score_floor.main([*words[:-1], "0.2"]) == 1
    assert "SCORE_FLOOR is 0.2; allowed: 0 to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-images", "0"], "--num-images is 0; allowed: 1 or more"),
        (["--opts", "DATASETS.TEST", "()"], "DATASETS.TEST is empty; allowed: data to score"),
        ([], "MODEL.WEIGHTS is empty; allowed: the weights of"),
        (["--opts", "MODEL.WEIGHTS", "a.pth", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"],
         "MODEL.ROI_HEADS.NAME is 'StandardROIHeads'; allowed: 'DoubleHeadROIHeads'"),
    ],
)  # fmt: skip
def test_score_floor_refuses(
    words: list[str], message: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--config-file", TINY_EXT, "--output", str(tmp_path), *words]
    assert score_floor.main(words) == 1
    assert message in capsys.readouterr().err


def test_score_floor_refuses_a_folder_that_is_a_file(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    words = ["--config-file", TINY_EXT, "--output", str(tmp_path / "file")]
    assert score_floor.main(words) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.slow
def test_quickstart_skips_what_is_done(
    trained: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_shapes, "main", lambda argv: 0)  # the session has a smaller set
    for _ in range(2):
        assert quickstart.main(["--output", str(trained)]) == 0
    out = capsys.readouterr().out
    assert out.count("not training again") == 2 and out.count("not drawing again") == 1
    assert "box AP " in out and "tools.demo --config-file" in out
    pictures = list((trained / "predictions").glob("*.png"))
    assert len(pictures) == 16
    shutil.rmtree(trained / "predictions")


def test_quickstart_ends_with_the_training(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_shapes, "main", lambda argv: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert quickstart.main(["--output", str(tmp_path / "out"), "SOLVER.MAX_ITTER", "5"]) == 1
    assert capsys.readouterr().err.startswith("error: 'SOLVER.MAX_ITTER' is no config key; did you")
    assert not (tmp_path / "out").exists()


def test_final_ap_needs_an_evaluation(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"iteration": 19, "total_loss": 1.0}\n')
    with pytest.raises(ValueError, match="records no bbox/AP"):
        quickstart.final_ap(str(tmp_path))
    (tmp_path / "metrics.json").write_text('{"bbox/AP": 1.5}\n{"bbox/AP": 61.25}\n{"lr": 0.1}\n')
    assert quickstart.final_ap(str(tmp_path)) == 61.25
    assert not quickstart.is_trained(str(tmp_path))
    (tmp_path / "model_final.pth").touch()
    assert quickstart.is_trained(str(tmp_path))
