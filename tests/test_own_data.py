"""Own data in each layout: trained, evaluated and drawn by commands alone, without Python."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import REPOSITORY, TINY_EXT
from own_data import write_coco, write_voc, write_yolo

SHORT = [
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "0", "SOLVER.MAX_ITER", "2"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"),  # the third image has no object
]


def run(*words: str) -> str:
    """What a command prints, in the current folder."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write(folder: Path, layout: str) -> list[str]:
    """The data in a layout, below `folder`; the texts of a training and of a test set."""
    if layout == "coco":
        write_coco(folder / "mine")
        return ["coco:mine/labels.json:mine/images"] * 2
    if layout == "voc":
        write_voc(folder / "mine/train", "images", "annotations", ".png")
        write_voc(folder / "mine/val")
        return ["voc:mine:train", "voc:mine:val"]
    write_yolo(folder / "mine")
    return ["yolo:mine/data.yaml:train", "yolo:mine/data.yaml:val"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_train_evaluate_and_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    train, test = write(tmp_path, layout)
    # Several processes register for themselves.
    several = ["--num-gpus", "2"] if layout == "voc" and not torch.cuda.is_available() else []
    script = str(REPOSITORY / "train_net.py")
    given = ["--dataset", f"my_train={train}", "--dataset", f"my_val={test}", *several]
    sets = ["DATASETS.TRAIN", "my_train", "DATASETS.TEST", "my_val"]
    printed = run(script, "--config-file", TINY_EXT, *given, *sets, "OUTPUT_DIR", "out", *SHORT)
    assert re.search(r"NUM_CLASSES 0 is 2, the number of classes of DATASETS.TRAIN: ", printed)

    # From here on nothing but the output folder says what the data is.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = ["--config-file", "../out/config.yaml"]
    weights = ["MODEL.WEIGHTS", "../out/model_final.pth"]
    printed = run(script, *config, "--eval-only", *weights, "OUTPUT_DIR", "evaluation")
    assert re.search(r"copypaste: AP,AP50,AP70,AP75", printed)
    draw = ["-m", "doublehead_d2.tools.demo", *config, "--dataset", "my_val", "--opts", *weights]
    assert "3 pictures and" in run(*draw)
    found = json.loads(Path("predictions/detections.json").read_text())
    assert [Path(x["file_name"]).stem for x in found] == ["a", "b", "c"]
    assert {x["class"] for image in found for x in image["detections"]} <= {"dog", "cat"}
