"""Results as rows, COCO's, supervision's and pictures, of detections written by hand."""

import sys

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as masks

from doublehead_d2.inference.results import Result

NAMES = ["circle", "rectangle"]
GRAY = np.full((64, 96, 3), 128, dtype=np.uint8)


def result(source: object = "a.jpg", metadata: Metadata | None = None, **fields: object) -> Result:
    instances = Instances((64, 96))
    instances.pred_boxes = Boxes(torch.tensor([[20.0, 10, 60.126, 50], [0, 0, 5, 7]]))
    instances.scores = torch.tensor([0.912345, 0.25])
    instances.pred_classes = torch.tensor([1, 0])
    for name, value in fields.items():
        instances.set(name, value)
    metadata = metadata or Metadata(thing_classes=NAMES)
    return Result(source, 64, 96, instances, metadata)


def test_rows_are_of_a_table() -> None:
    assert result().rows() == [
        {"source": "a.jpg", "class_id": 1, "class": "rectangle", "score": 0.9123,
         "x0": 20.0, "y0": 10.0, "x1": 60.13, "y1": 50.0},
        {"source": "a.jpg", "class_id": 0, "class": "circle", "score": 0.25,
         "x0": 0.0, "y0": 0.0, "x1": 5.0, "y1": 7.0},
    ]  # fmt: skip
    unnamed = result(GRAY, Metadata())
    assert [row["class"] for row in unnamed.rows()] == ["1", "0"]
    assert unnamed.rows()[0]["source"] == "" and unnamed.class_names is None
    assert len(unnamed) == 2 and result().class_names == NAMES


def test_coco_has_width_height_and_the_ids_of_the_data_set() -> None:
    metadata = Metadata(thing_classes=NAMES, thing_dataset_id_to_contiguous_id={7: 0, 90: 1})
    first, second = result(metadata=metadata).to_coco(139)
    assert (first["image_id"], first["category_id"], second["category_id"]) == (139, 90, 7)
    assert second["bbox"] == [0, 0, 5, 7]
    # 60.126 - 20 and 50 - 10
    np.testing.assert_allclose(first["bbox"], [20, 10, 40.126, 40], atol=1e-4)
    assert abs(first["score"] - 0.912345) < 1e-6
    assert [x["category_id"] for x in result().to_coco("a")] == [1, 0]  # nobody knows others


def test_coco_has_masks_and_leaves_keypoints_in_their_place() -> None:
    pred_masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    pred_masks[0, 10:20, 30:60] = True
    points = torch.full((2, 3, 3), 8.0)
    found = result(pred_masks=pred_masks, pred_keypoints=points)
    for _ in range(2):
        first, _ = found.to_coco(1)
        assert masks.area(first["segmentation"]) == 300
        assert first["keypoints"][:3] == [7.5, 7.5, 8.0]  # COCO counts pixels from their corners
    assert (points == 8).all()


@pytest.mark.slow  # to import
def test_supervision_takes_them() -> None:
    pytest.importorskip("supervision")
    detections = result().to_supervision()
    assert detections.data["class_name"].tolist() == ["rectangle", "circle"]
    assert detections.class_id.tolist() == [1, 0] and detections.xyxy.shape == (2, 4)
    nothing = Result.unreadable("a.jpg", "gone", Metadata(thing_classes=NAMES))
    assert len(nothing.to_supervision()) == 0


def test_without_supervision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="needs supervision: pip install supervision"):
        result().to_supervision()


def test_pictures_have_the_boxes() -> None:
    found = result(GRAY)
    picture = found.draw()
    assert picture.shape == (384, 576, 3) and (picture != 128).any()
    assert (picture[:40, :40] != 128).any()  # the box in the corner
    assert (found.draw(score_threshold=0.5)[:40, :40] == 128).all()
    shown = found.show(0.5)
    assert isinstance(shown, Image.Image)
    np.testing.assert_array_equal(np.asarray(shown)[:, :, ::-1], found.draw(0.5))


def test_what_could_not_be_read_is_empty_and_says_why() -> None:
    nothing = Result.unreadable("a.jpg", "a.jpg: gone", Metadata())
    assert nothing.error == "a.jpg: gone" and len(nothing) == 0
    assert nothing.rows() == [] and nothing.to_coco(1) == []
    assert (nothing.height, nothing.width) == (0, 0)
    with pytest.raises(ValueError, match=r"a\.jpg: there is no such file"):
        nothing.draw()
