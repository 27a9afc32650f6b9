"""The demo with odd files, options and interruptions, on a model that knows nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from conftest import REPOSITORY, TINY_EXT
from doublehead_d2 import model_zoo
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
    assert demo.main(words(weights, "--input", "text.jpg", ".")) == 1
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
    ],
)
def test_options_are_checked(more: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.main(words("a.pth", *more, "--input", "a.jpg"))


def test_pictures_replace_no_image(weights: str, images: list[str], tmp_path: Path) -> None:
    shutil.copy("a.jpg", "c.png")
    before = Path("c.png").read_bytes()
    with pytest.raises(ValueError, match=r"--output \. would replace the image \./c.png"):
        demo.main(words(weights, "--output", ".", "--input", "a.jpg", str(tmp_path / "c.png")))
    assert Path("c.png").read_bytes() == before and not Path("detections.json").exists()


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
