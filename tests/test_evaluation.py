"""The evaluator is the one that the metadata names, and never scores against stale boxes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from doublehead_d2.evaluation import build_evaluator

BOX = [10.0, 10.0, 50.0, 60.0]


def register(name: str, image: Path, box: list[float]) -> None:
    """A data set that is not in COCO format, so that COCOEvaluator has to convert it."""
    annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    record = {"file_name": str(image), "image_id": 0, "height": 100, "width": 100}
    DatasetCatalog.register(name, lambda: [{**record, "annotations": [annotation]}])
    MetadataCatalog.get(name).set(thing_classes=["thing"], evaluator_type="coco")


def average_precision(name: str, folder: Path) -> float:
    evaluator = build_evaluator(name, str(folder))
    detection = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor([BOX])),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([0]),
    )
    evaluator.reset()
    evaluator.process([{"image_id": 0}], [{"instances": detection}])
    return evaluator.evaluate()["bbox"]["AP"]


@pytest.fixture
def name() -> str:
    name = "test_evaluation_converted"
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_changed_data_is_not_scored_against_its_old_boxes(name: str, tmp_path: Path) -> None:
    image = tmp_path / "image.jpg"
    cv2.imwrite(str(image), np.zeros((100, 100, 3), np.uint8))
    register(name, image, box=[70.0, 70.0, 90.0, 90.0])
    assert average_precision(name, tmp_path) == 0
    converted = tmp_path / f"{name}_coco_format.json"
    assert json.loads(converted.read_text())["annotations"][0]["bbox"][:2] == [70, 70]

    # A later run with the same name and OUTPUT_DIR, and other boxes
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    register(name, image, box=BOX)
    assert average_precision(name, tmp_path) == pytest.approx(100)


def test_evaluator_by_metadata(shapes: Path, tmp_path: Path) -> None:
    coco = build_evaluator("shapes_val", str(tmp_path))
    voc = build_evaluator("shapes_voc_test", str(tmp_path))
    assert isinstance(coco, COCOEvaluator) and isinstance(voc, PascalVOCDetectionEvaluator)


def test_unknown_evaluator_is_refused(tmp_path: Path) -> None:
    MetadataCatalog.get("test_evaluation_lvis").evaluator_type = "lvis"
    with pytest.raises(
        ValueError, match="has evaluator_type 'lvis'; allowed: 'coco', 'pascal_voc'"
    ):
        build_evaluator("test_evaluation_lvis", str(tmp_path))
    with pytest.raises(ValueError, match="evaluator_type None.*MetadataCatalog.get"):
        build_evaluator("test_evaluation_no_type", str(tmp_path))
