"""The evaluator is the one that the metadata names, and never scores against stale boxes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
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


# -- what exports leave out ------------------------------------------------------------------------


def exported(folder: Path, **changes: object) -> str:
    """A COCO file of one image and one object at `BOX`; a change to None takes a field away."""
    annotation = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 10, 40, 50], **changes}
    annotation = {key: value for key, value in annotation.items() if value is not None}
    data = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [annotation],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    name = f"test_evaluation_{folder.name}"
    register_coco_instances(name, {"thing_classes": ["thing"]}, str(path), str(folder))
    DatasetCatalog.get(name)  # which numbers the categories, as every run does before it evaluates
    return name


SQUARE = [10, 10, 40, 10, 40, 40, 10, 40]  # 30 x 30 pixels
UPPER = {"size": [100, 100], "counts": [0, 900, 9100]}  # 900 pixels
MEDIUM, SMALL = 40 * 50, 30 * 30  # COCO's small objects have less than 32 x 32 pixels


@pytest.mark.parametrize(
    ("changes", "area"),
    [
        ({}, MEDIUM),
        ({"segmentation": []}, MEDIUM),
        ({"segmentation": [[0, 0, 1, 1]]}, MEDIUM),  # no polygon
        ({"segmentation": [SQUARE]}, SMALL),
        ({"segmentation": UPPER}, SMALL),
        ({"segmentation": [SQUARE], "area": 7.5}, 7.5),
    ],
)
def test_iscrowd_and_area_are_filled_in(
    catalogs: None, tmp_path: Path, changes: dict, area: float
) -> None:
    name = exported(tmp_path, **changes)
    annotation = build_evaluator(name, str(tmp_path))._coco_api.anns[1]
    assert (annotation["iscrowd"], annotation["area"]) == (0, area)
    assert average_precision(name, tmp_path) == pytest.approx(100)


def test_what_is_there_is_kept(catalogs: None, tmp_path: Path) -> None:
    name = exported(tmp_path, iscrowd=1, area=5)
    annotation = build_evaluator(name, str(tmp_path))._coco_api.anns[1]
    assert (annotation["id"], annotation["iscrowd"], annotation["area"]) == (1, 1, 5)


@pytest.mark.parametrize("id_", [0, "a7", "0"])
def test_an_object_counts_whatever_its_id(catalogs: None, tmp_path: Path, id_: object) -> None:
    # pycocotools writes 0 where nothing was matched: AP was 0, or there was a ValueError.
    name = exported(tmp_path, id=id_, iscrowd=0, area=MEDIUM)
    assert average_precision(name, tmp_path) == pytest.approx(100)


def test_keypoints_are_counted(catalogs: None, tmp_path: Path) -> None:
    name = exported(tmp_path, keypoints=[1, 1, 2, 0, 0, 0, 5, 5, 1])
    coco = build_evaluator(name, str(tmp_path))._coco_api
    assert coco.anns[1]["num_keypoints"] == 2


def test_filling_in_is_said_once(
    catalogs: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = exported(tmp_path, area=5)
    for _ in range(2):
        build_evaluator(name, str(tmp_path))
    expected = f"Data set '{name}': for the evaluation, of 1 annotations: 'iscrowd' is missing in 1"
    said = [r.getMessage() for r in caplog.records if r.name == "doublehead_d2.evaluation.build"]
    assert [message.startswith(expected) for message in said] == [True]


def test_a_file_for_a_server_stays_without_annotations(catalogs: None, tmp_path: Path) -> None:
    name = exported(tmp_path)
    path = tmp_path / "annotations.json"
    data = json.loads(path.read_text())
    del data["annotations"]
    path.write_text(json.dumps(data))
    assert not build_evaluator(name, str(tmp_path))._do_evaluation
