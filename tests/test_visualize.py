"""Pictures: size, what is drawn and what is left out."""

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances

from doublehead_d2.visualize import draw_ground_truth, draw_predictions, side_by_side

METADATA = Metadata(name="test_visualize", thing_classes=["circle", "rectangle"])
GRAY = np.full((64, 96, 3), 128, dtype=np.uint8)


def detections(score: float) -> Instances:
    return Instances(
        (64, 96),
        pred_boxes=Boxes(torch.tensor([[20.0, 10, 60, 50]])),
        scores=torch.tensor([score]),
        pred_classes=torch.tensor([1]),
    )


def changed_rows(picture: np.ndarray) -> np.ndarray:
    return np.flatnonzero((picture != 128).any(axis=(1, 2)))


def test_small_images_are_enlarged_and_the_box_is_where_it_belongs() -> None:
    picture = draw_predictions(GRAY, detections(0.9), METADATA)
    assert picture.shape == (384, 576, 3)
    rows = changed_rows(picture)
    # y = 10 and 50 at six times the size, give or take the width of the line and the label
    assert 20 < rows.min() < 10 * 6 + 12 and 50 * 6 - 12 < rows.max() < 50 * 6 + 12


def test_detections_below_the_threshold_are_left_out() -> None:
    assert not changed_rows(draw_predictions(GRAY, detections(0.4), METADATA)).size
    assert changed_rows(draw_predictions(GRAY, detections(0.4), METADATA, 0.3)).size


def test_ground_truth_beside_predictions() -> None:
    annotation = {"bbox": [20, 10, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    truth = draw_ground_truth(GRAY, {"annotations": [annotation]}, METADATA)
    picture = draw_predictions(GRAY, detections(0.9), METADATA)
    assert changed_rows(truth).size and truth.shape == picture.shape
    joined = side_by_side([truth, picture], ["ground truth", "predictions"])
    assert joined.shape == (384 + 28, 2 * 576 + 6, 3)
    np.testing.assert_array_equal(joined[28:, :576], truth)
    np.testing.assert_array_equal(joined[28:, 582:], picture)
