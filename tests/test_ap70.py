"""AP at IoU 0.7 beside detectron2's numbers, which stay as they are."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from doublehead_d2.evaluation import build_evaluator
from doublehead_d2.evaluation.ap70 import with_ap70

SIZE = 200
OBJECT = (20.0, 20.0, 120.0, 120.0)  # of both images
# Boxes within the object, as wide, of 72 % and 66 % of its height: IoU 0.72 and 0.66, and the first
# has the higher score. VOC counts the last pixel, too: 73/101 and 67/101, 0.723 and 0.663.
HEIGHTS = {"000001": (72.0, 0.9), "000002": (66.0, 0.8)}
# At IoU 0.7 the first is right and the second wrong: precision is 1 up to recall 1/2. Of VOC's 11
# recalls 0, 0.1, ..., 1 six are reached, of COCO's 101 those from 0 to 0.50, 51.
VOC, COCO = 100 * 6 / 11, 100 * 51 / 101

XML = """<annotation><size><width>{0}</width><height>{0}</height><depth>3</depth></size>
<object><name>thing</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>{1}</xmin><ymin>{2}</ymin><xmax>{3}</xmax><ymax>{4}</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images with one object each, in VOC's layout."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("\n".join(HEIGHTS) + "\n")
    corners = [int(x) for x in np.array(OBJECT) + 1]  # 1-based
    for name in HEIGHTS:
        (tmp_path / f"Annotations/{name}.xml").write_text(XML.format(SIZE, *corners))
        cv2.imwrite(str(tmp_path / f"JPEGImages/{name}.jpg"), np.zeros((SIZE, SIZE, 3), np.uint8))
    return tmp_path


@pytest.fixture
def names(folder: Path, catalogs: None) -> Iterator[dict[str, str]]:
    """Both data sets, registered: by evaluator."""

    def records() -> list[dict]:
        box = {"bbox": list(OBJECT), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
        shape = {"height": SIZE, "width": SIZE}
        path = str(folder / "JPEGImages/{}.jpg")
        return [
            {"file_name": path.format(name), "image_id": name, **shape, "annotations": [box]}
            for name in HEIGHTS
        ]

    names = {kind: f"test_ap70_{kind}_{folder.name}" for kind in ("coco", "voc")}
    DatasetCatalog.register(names["coco"], records)
    MetadataCatalog.get(names["coco"]).set(thing_classes=["thing"], evaluator_type="coco")
    DatasetCatalog.register(names["voc"], lambda: [])  # the evaluator reads the folder
    MetadataCatalog.get(names["voc"]).set(
        thing_classes=["thing"],
        dirname=str(folder),
        year=2007,
        split="test",
        evaluator_type="pascal_voc",
    )
    yield names


def results_of(evaluator: DatasetEvaluator, detections: bool = True) -> dict:
    """Results of the two boxes, or of none."""
    evaluator.reset()
    for name, (height, score) in HEIGHTS.items():
        x0, y0, x1, _ = OBJECT
        boxes = torch.tensor([[x0, y0, x1, y0 + height]])[: int(detections)]
        found = Instances(
            (SIZE, SIZE),
            pred_boxes=Boxes(boxes),
            scores=torch.full((len(boxes),), score),
            pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
        )
        evaluator.process([{"image_id": name}], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_coco_by_hand(names: dict, tmp_path: Path) -> None:
    assert pytest.approx(50.495, abs=5e-4) == COCO
    found = results_of(build_evaluator(names["coco"], str(tmp_path)))
    assert found["AP70"] == pytest.approx(COCO)
    assert found["AP50"] == pytest.approx(100) and found["AP75"] == 0
    assert list(found)[:4] == ["AP", "AP50", "AP70", "AP75"]


def test_voc_by_hand(names: dict, tmp_path: Path) -> None:
    assert pytest.approx(54.545, abs=5e-4) == VOC
    found = results_of(build_evaluator(names["voc"], str(tmp_path)))
    assert found["AP70"] == pytest.approx(VOC)
    assert found["AP50"] == pytest.approx(100) and found["AP75"] == 0
    assert list(found) == ["AP", "AP50", "AP70", "AP75"]


def test_voc_2012_integrates_over_recall(names: dict, tmp_path: Path) -> None:
    MetadataCatalog.get(names["voc"]).__dict__["year"] = 2012
    found = results_of(build_evaluator(names["voc"], str(tmp_path)))
    assert found["AP70"] == pytest.approx(50)  # precision 1 up to recall 1/2


@pytest.mark.parametrize("kind", ["coco", "voc"])
@pytest.mark.parametrize("detections", [True, False])
def test_other_numbers_are_detectron2s(
    kind: str, detections: bool, names: dict, tmp_path: Path
) -> None:
    stock = {
        "coco": lambda: COCOEvaluator(names["coco"], output_dir=str(tmp_path)),
        "voc": lambda: PascalVOCDetectionEvaluator(names["voc"]),
    }
    expected = results_of(stock[kind](), detections)
    found = results_of(build_evaluator(names[kind], str(tmp_path)), detections)
    # Without any detection COCO's numbers are unknown, VOC's 0.
    ap70 = found.pop("AP70")
    assert found == pytest.approx(expected, nan_ok=True, abs=0)
    if not detections:
        assert ap70 == pytest.approx(float("nan") if kind == "coco" else 0, nan_ok=True)


def test_a_voc_class_without_objects_counts_as_in_the_other_numbers(
    names: dict, tmp_path: Path
) -> None:
    """detectron2 takes the mean over all classes: AP70 is its mean of that class, too."""
    MetadataCatalog.get(names["voc"]).__dict__["thing_classes"] = ["thing", "nothing"]
    found = results_of(build_evaluator(names["voc"], str(tmp_path)))
    assert found["AP50"] == pytest.approx(50)
    assert found["AP70"] == pytest.approx(VOC / 2)


def test_order_of_metrics() -> None:
    found = with_ap70({"AP": 1.0, "AP50": 2.0, "AP75": 3.0, "AP-a": 4.0}, 2.5)
    assert list(found.items()) == [
        *(("AP", 1.0), ("AP50", 2.0), ("AP70", 2.5), ("AP75", 3.0), ("AP-a", 4.0))
    ]
