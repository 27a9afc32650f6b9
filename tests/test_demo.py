"""The demo with odd files, options and interruptions, on a model that knows nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from conftest import REPOSITORY, TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.inference.video import Video, VideoFile
from doublehead_d2.tools import demo, quickstart


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.manual_seed(0)
    torch.save({"model": model_zoo.get(TINY_EXT).state_dict()}, path)
    return str(path)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Seven files in the working directory, four of them images that a model can be run on."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, size in [("a", (60, 80)), ("row", (1, 500)), ("long", (3, 20000)), ("b", (80, 60))]:
        cv2.imwrite(f"{name}.jpg", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    data = Path("a.jpg").read_bytes()
    Path("half.jpg").write_bytes(data[: len(data) // 2])
    Path("text.jpg").write_text("not an image")
    return ["a.jpg", "half.jpg", "row.jpg", "absent.jpg", "long.jpg", "text.jpg", "b.jpg"]


def words(weights: str, *more: str) -> list[str]:
    return ["--config-file", TINY_EXT, *more, "--opts", "MODEL.WEIGHTS", weights]


def entries(folder: str = "predictions") -> list[dict]:
    return json.loads((Path(folder) / "detections.json").read_text())


@pytest.mark.slow
def test_odd_files_are_named_and_the_rest_is_done(weights: str, images: list[str]) -> None:
    command = [sys.executable, "-m", "doublehead_d2.tools.demo"]
    command += words(weights, "--batch-size", "2", "--score-threshold", "0", "--input", *images)
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    named = [line for line in result.stderr.splitlines() if ".jpg" in line]
    assert [line.split(": ")[:2] for line in named] == [
        ["not readable as an image", name] for name in ("half.jpg", "absent.jpg", "text.jpg")
    ]
    # Decoders and torch say nothing of their own.
    for word in ("imread", "Premature", "meshgrid", "Traceback"):
        assert word not in result.stderr
    assert "not readable: 3 files" in result.stderr and "4 pictures" in result.stdout
    found = entries()
    assert [e["file_name"] for e in found] == ["a.jpg", "row.jpg", "long.jpg", "b.jpg"]
    assert [(e["height"], e["width"]) for e in found] == [(60, 80), (1, 500), (3, 20000), (80, 60)]
    assert all(e["detections"] for e in found)
    for entry in found:
        assert cv2.imread(f"predictions/{entry['picture']}") is not None


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError("disk full"), RuntimeError("memory")]
)
def test_what_is_done_stays(
    error: BaseException,
    weights: str,
    images: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    save, saved = demo.save_picture, []

    def stop_at_the_third(path: str, picture: np.ndarray) -> None:
        saved.append(path)
        if len(saved) == 3:
            assert len(entries()) == 2  # written as they come
            raise error
        save(path, picture)

    monkeypatch.setattr(demo, "save_picture", stop_at_the_third)
    with pytest.raises(type(error)):
        demo.main(words(weights, "--input", *images))
    assert [e["file_name"] for e in entries()] == ["a.jpg", "row.jpg"]
    assert "2 pictures and" in capsys.readouterr().out


def test_no_readable_image_leaves_an_empty_list(weights: str, images: list[str]) -> None:
    Path("empty").mkdir()
    assert demo.main(words(weights, "--input", "text.jpg", "empty")) == 1
    assert entries() == []


@pytest.mark.slow
def test_what_is_not_shown_is_counted(
    weights: str, images: list[str], capsys: pytest.CaptureFixture
) -> None:
    def boxes(*more: str) -> tuple[int, str]:
        assert demo.main(words(weights, *more, "--input", "a.jpg")) == 0
        return len(entries()[0]["detections"]), capsys.readouterr().out

    number, out = boxes("--score-threshold", "0", "--all-labels")
    everything = number
    assert "not shown: 0 boxes of scores below 0 (--score-threshold), 0 second labels" in out
    number, out = boxes("--score-threshold", "0")
    assert 0 < number < everything
    assert f", {everything - number} second labels of an object (--all-labels)" in out
    number, out = boxes("--score-threshold", "1")
    assert number == 0 and f"not shown: {everything} boxes of scores below 1 " in out
    # The config's fusion is complementary: 1 - (1 - 0.5)^2.
    assert "scores below 0.75 (--score-threshold)" in boxes()[1]
    # A threshold given by hand is taken as it is.
    assert "scores below 0.5 (--score-threshold)" in boxes("--score-threshold", "0.5")[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--score-threshold", "50"], "--score-threshold is 50.0; allowed: 0 to 1"),
        (["--score-threshold", "nan"], "--score-threshold is nan; allowed: 0 to 1"),
        (["--batch-size", "0"], "--batch-size is 0; allowed: 1 or more"),
        (["--num-images", "-1"], "--num-images is -1; allowed: 1 or more"),
        (["--coco", ""], "the name of a file to write is empty"),
    ],
)
def test_options_are_checked(more: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.main(words("a.pth", *more, "--input", "a.jpg"))


def test_coco_takes_one_data_set() -> None:
    given = ["--dataset", "shapes_val", "--dataset", "shapes_train", "--coco", "coco.json"]
    with pytest.raises(ValueError, match=r"--coco coco.json with 2 data sets; allowed: one"):
        demo.main(words("a.pth", *given))


def test_classes_are_checked_before_anything_is_written(weights: str, images: list[str]) -> None:
    with pytest.raises(ValueError, match="classes has 'cat'; allowed: names such as"):
        demo.main(words(weights, "--classes", "cat", "--input", "a.jpg"))
    assert not Path("predictions").exists()


def test_pictures_replace_no_image(weights: str, images: list[str], tmp_path: Path) -> None:
    shutil.copy("a.jpg", "c.png")
    before = Path("c.png").read_bytes()
    with pytest.raises(ValueError, match=r"--output \. would replace the image \./c.png"):
        demo.main(words(weights, "--output", ".", "--input", "a.jpg", str(tmp_path / "c.png")))
    assert Path("c.png").read_bytes() == before and not Path("detections.json").exists()


def write_clip(path: str, frames: int) -> None:
    with VideoFile(path, 5) as clip:
        for value in range(frames):
            clip.append(np.full((48, 64, 3), 50 * value, np.uint8))


def test_folders_patterns_and_videos(
    weights: str, images: list[str], capsys: pytest.CaptureFixture
) -> None:
    for name in ("in/c.jpg", "in/below/d.jpg"):
        Path(name).parent.mkdir()
        shutil.copy("b.jpg", name)
    write_clip("clip.mp4", 3)
    Path("broken.mp4").write_text("no video")
    given = ["in", "clip.mp4", "broken.mp4", "*a.jpg", "*.gif", "text.jpg"]
    more = ["--coco", "coco.json", "--csv", "table.csv", "--input", *given]
    assert demo.main(words(weights, *more)) == 1
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if "not readable" in line] == [
        "not readable as a video: broken.mp4: OpenCV cannot open it",
        "not readable as an image: *.gif: a pattern that no file matches",
        "not readable as an image: text.jpg: not an image, or of a format that Pillow does not "
        "read",
        "not readable: 3 files",
    ]
    assert "image/s" not in captured.err  # no bar without a terminal
    found = entries()
    assert [(e["file_name"], e["picture"], e.get("frame"), e["image_id"]) for e in found] == [
        ("in/c.jpg", "c.png", None, 1),
        ("in/below/d.jpg", "d.png", None, 2),
        ("clip.mp4", "clip.mp4", 0, 3),
        ("clip.mp4", "clip.mp4", 1, 4),
        ("clip.mp4", "clip.mp4", 2, 5),
        ("a.jpg", "a.png", None, 6),
    ]
    assert (found[2]["height"], found[2]["width"]) == (48, 64)
    frames = list(Video("predictions/clip.mp4").frames())
    assert len(frames) == 3 and min(frames[0].shape[:2]) == 384
    coco = json.loads(Path("coco.json").read_text())
    assert {x["image_id"] for x in coco} == {1, 2, 3, 4, 5, 6}
    assert Path("table.csv").read_text().startswith("source,frame,class_id,class,score,x0,")


def test_a_camera_is_recorded_until_ctrl_c(
    weights: str, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Camera(Video):
        def __init__(self, path: str) -> None:
            self.camera, self.fps, self.length = path == "0", 25, None

        def frames(self) -> Iterator[np.ndarray]:
            yield from [np.zeros((48, 64, 3), np.uint8)] * 3
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "Video", Camera)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert demo.main(words(weights, "--webcam")) == 0
    # The third was ahead of the model.
    assert [(e["file_name"], e["frame"]) for e in entries()] == [("0", 0), ("0", 1)]
    assert len(list(Video("predictions/camera_0.mp4").frames())) == 2


def test_heads_are_drawn_side_by_side(weights: str, images: list[str]) -> None:
    assert demo.main(words(weights, "--heads", "--score-threshold", "1", "--input", "a.jpg")) == 0
    # 60 x 80 is enlarged to 384 x 512; three of them, two gaps and a title.
    assert cv2.imread("predictions/a.png").shape == (384 + 28, 3 * 512 + 2 * 6, 3)
    assert len(entries()) == 1


def test_a_score_threshold_holds_for_coco_too(weights: str, images: list[str]) -> None:
    more = ["--coco", "coco.json", "--classes", "1", "--precision", "bfloat16", "--input", "a.jpg"]
    lowest = []
    for threshold in ("0", "0.9"):
        assert demo.main(words(weights, "--score-threshold", threshold, *more)) == 0
        coco = json.loads(Path("coco.json").read_text())
        assert {x["category_id"] for x in coco} <= {2}  # those of shapes_val count from 1
        lowest.append(min(x["score"] for x in coco) if coco else 1)
    assert lowest[0] < 0.9 <= lowest[1]


def test_thousands_of_one_name_get_names_at_once() -> None:
    records = [{"file_name": f"{number}/image.jpg"} for number in range(20_000)]
    names = demo._picture_names(records)
    assert len(set(names)) == 20_000 and names[-1] == "image_20000.png"


@pytest.mark.parametrize(
    ("text", "drawn"),
    [(None, False), ("[", False), ("[]", False), (str([0] * 15), False), (str([0] * 16), True)],
)
def test_quickstart_draws_what_an_interrupted_demo_left(
    text: str | None, drawn: bool, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "detections.json").write_text(text)
    assert quickstart.is_drawn(str(tmp_path)) == drawn
