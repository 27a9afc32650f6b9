"""Pictures of predictions and of ground truth."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

# Labels are unreadable below this many pixels on the shorter side, so small images are enlarged.
MIN_PICTURE_SIZE = 384


def draw_predictions(
    image: np.ndarray, instances: Instances, metadata: Metadata, score_threshold: float = 0.5
) -> np.ndarray:
    """Draw detections with class names and scores.

    Args:
        image: BGR, H x W x 3 uint8.
        instances: detections in pixels of `image`.
        metadata: its `thing_classes` are the names; without them indices are drawn.
        score_threshold: detections below it are left out.

    Returns:
        BGR picture, uint8; small images come back enlarged.
    """
    instances = instances[instances.scores >= score_threshold].to("cpu")
    return _finish(_visualizer(image, metadata).draw_instance_predictions(instances))


def draw_ground_truth(image: np.ndarray, record: dict[str, Any], metadata: Metadata) -> np.ndarray:
    """Draw the annotations of a data set's record, in detectron2's standard format.

    Args:
        image: BGR, H x W x 3 uint8.
        record: a dict with "annotations".
        metadata: its `thing_classes` are the names.

    Returns:
        BGR picture, uint8, of the size that `draw_predictions` gives.
    """
    return _finish(_visualizer(image, metadata).draw_dataset_dict(record))


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Join pictures of one height from left to right, each under its title.

    Args:
        pictures: BGR, all of the same height.
        titles: one a picture.

    Returns:
        BGR picture, uint8.
    """
    columns = []
    for picture, title in zip(pictures, titles, strict=True):
        bar = np.full((28, picture.shape[1], 3), 255, dtype=np.uint8)
        cv2.putText(bar, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.concatenate([bar, picture]))
    gap = np.full((columns[0].shape[0], 6, 3), 255, dtype=np.uint8)
    joined = [part for column in columns for part in (column, gap)][:-1]
    return np.concatenate(joined, axis=1)


def _visualizer(image: np.ndarray, metadata: Metadata) -> Visualizer:
    scale = max(1.0, MIN_PICTURE_SIZE / min(image.shape[:2]))
    return Visualizer(image[:, :, ::-1], metadata=metadata, scale=scale)


def _finish(output: Any) -> np.ndarray:
    return np.ascontiguousarray(output.get_image()[:, :, ::-1])
