"""Files of detections: what is in them, image by image."""

import csv
import json
from pathlib import Path

import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances

from doublehead_d2.inference.answers import AnswerFiles
from doublehead_d2.inference.results import Result


def result() -> Result:
    instances = Instances((64, 96))
    instances.pred_boxes = Boxes(torch.tensor([[20.0, 10, 60, 50], [0, 0, 5, 7]]))
    instances.scores = torch.tensor([0.9, 0.25])
    instances.pred_classes = torch.tensor([1, 0])
    return Result("a,b.jpg", 64, 96, instances, Metadata(thing_classes=["circle", "rectangle"]))


def test_files_are_whole_after_each_image(tmp_path: Path) -> None:
    coco, table = tmp_path / "coco.json", tmp_path / "table.csv"
    found = result()
    with AnswerFiles(str(tmp_path / "out"), str(coco), str(table)) as files:
        assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []
        assert json.loads(coco.read_text()) == []
        files.add(found, found.instances[:1], 17, "a.png")
        (entry,) = json.loads((tmp_path / "out" / "detections.json").read_text())
        assert entry == {
            "file_name": "a,b.jpg",
            "picture": "a.png",
            "image_id": 17,
            "height": 64,
            "width": 96,
            "detections": [
                {"box": [20, 10, 60, 50], "score": 0.9, "class_id": 1, "class": "rectangle"}
            ],
        }
        # All detections, not only those that are shown
        assert [(x["image_id"], x["bbox"]) for x in json.loads(coco.read_text())] == [
            (17, [20, 10, 40, 40]),
            (17, [0, 0, 5, 7]),
        ]
        with table.open(newline="") as f:
            (row,) = csv.DictReader(f)
        assert row["source"] == "a,b.jpg" and row["frame"] == "" and row["class"] == "rectangle"
        assert [float(row[x]) for x in ("score", "x0", "y0", "x1", "y1")] == [0.9, 20, 10, 60, 50]
        files.add(found, found.instances[1:], 18, "a.mp4", 0)
    with table.open(newline="") as f:
        assert [row["frame"] for row in csv.DictReader(f)] == ["", "0"]
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [x.get("frame") for x in entries] == [None, 0]


def test_without_coco_there_are_no_numbers(tmp_path: Path) -> None:
    with AnswerFiles(str(tmp_path)) as files:
        files.add(result(), result().instances, 17, "a.png")
    (entry,) = json.loads((tmp_path / "detections.json").read_text())
    assert "image_id" not in entry
    assert [path.name for path in tmp_path.iterdir()] == ["detections.json"]
