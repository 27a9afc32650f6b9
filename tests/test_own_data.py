"""Own data in each layout: trained, evaluated and drawn by commands alone, without Python."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from conftest import TINY_EXT
from doublehead_d2.engine import argument_parser, main, run
from doublehead_d2.tools import demo
from own_data import write_coco, write_voc, write_yolo

SHORT = [
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "0", "SOLVER.MAX_ITER", "2"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"),  # the third image has no object
]


def forget() -> None:
    """As in a process that has registered nothing."""
    for name in ("my_train", "my_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


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
@pytest.mark.usefixtures("catalogs")
@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_train_evaluate_and_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    train, test = write(tmp_path, layout)
    # Several processes register for themselves.
    several = ["--num-gpus", "2"] if layout == "voc" and not torch.cuda.is_available() else []
    given = ["--dataset", f"my_train={train}", "--dataset", f"my_val={test}", *several]
    sets = ["DATASETS.TRAIN", "my_train", "DATASETS.TEST", "my_val"]
    words = ["--config-file", TINY_EXT, *given, *sets, "OUTPUT_DIR", "out", *SHORT]
    assert run(argument_parser().parse_args(words)) == 0
    written = yaml.safe_load(Path("out/config.yaml").read_text())
    assert written["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 2
    assert set(written["DATASETS"]["CLASS_NAMES"]) == {"cat", "dog"}
    assert '"bbox/AP70"' in Path("out/metrics.json").read_text()

    # From here on nothing but the output folder says what the data is.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = ["--config-file", str(tmp_path / "out/config.yaml")]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth")]
    forget()
    words = [*config, "--eval-only", *weights, "OUTPUT_DIR", "evaluation"]
    assert "AP70" in main(argument_parser().parse_args(words))["bbox"]
    forget()
    assert demo.main([*config, "--dataset", "my_val", "--opts", *weights]) == 0
    found = json.loads(Path("predictions/detections.json").read_text())
    assert [Path(x["file_name"]).stem for x in found] == ["a", "b", "c"]
    assert {x["class"] for image in found for x in image["detections"]} <= {"dog", "cat"}
