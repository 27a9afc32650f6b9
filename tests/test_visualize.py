"""Pictures: size, colours and labels, what is drawn and what is left out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from doublehead_d2.visualize import (
    ClassVisualizer,
    class_color,
    draw_ground_truth,
    draw_predictions,
    save_picture,
    side_by_side,
)

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


def bgr(color: tuple) -> np.ndarray:
    return np.round(np.array(color[::-1]) * 255).astype(np.uint8)


def has_color(picture: np.ndarray, color: np.ndarray) -> bool:
    return bool((np.abs(picture.astype(int) - color) <= 1).all(axis=-1).sum() > 50)


@pytest.mark.parametrize("index", [0, 1])
def test_a_class_has_one_color_in_truth_and_predictions(index: int) -> None:
    annotation = {"bbox": [20, 10, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": index}
    found = detections(0.9)
    found.pred_classes[:] = index
    truth = draw_ground_truth(GRAY, {"annotations": [annotation]}, METADATA)
    for picture in (truth, draw_predictions(GRAY, found, METADATA)):
        assert has_color(picture, bgr(class_color(index)))
        assert not has_color(picture, bgr(class_color(1 - index)))


def test_colors_of_the_metadata_are_taken() -> None:
    metadata = Metadata(
        name="colored", thing_classes=["a", "b"], thing_colors=[(1, 2, 3), (9, 240, 7)]
    )
    assert has_color(draw_predictions(GRAY, detections(0.9), metadata), np.array([7, 240, 9]))


def test_colors_follow_the_boxes_when_the_largest_is_drawn_first() -> None:
    found = Instances(
        (64, 96),
        pred_boxes=Boxes(torch.tensor([[5.0, 5, 15, 15], [30, 20, 90, 60]])),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.tensor([0, 1]),
    )
    picture = draw_predictions(GRAY, found, METADATA)
    assert has_color(picture[30:90, 30:96], bgr(class_color(0)))  # 6 times the first box
    assert not has_color(picture[30:90, 30:96], bgr(class_color(1)))


def test_what_is_drawn_besides_keeps_its_colors() -> None:
    visualizer = ClassVisualizer(GRAY, METADATA, 6.0)
    visualizer.draw_instance_predictions(detections(0.9))
    boxes = Boxes(torch.tensor([[5.0, 5, 15, 15], [30, 20, 90, 60]]))
    visualizer.overlay_instances(boxes=boxes)  # random ones, of no class
    visualizer.overlay_instances(boxes=boxes, assigned_colors=[(1, 1, 1), (0, 0, 0)])
    picture = visualizer.output.get_image()
    assert has_color(picture, np.array([255, 255, 255])) and has_color(picture, np.zeros(3))


def test_colors_of_many_classes_differ() -> None:
    # Red first; then a golden section of the circle of hues on, 222 degrees, which is a blue.
    assert class_color(0) == pytest.approx((1, 0.25, 0.25))
    assert class_color(1)[2] == 1 and class_color(1)[0] == pytest.approx(0.25)
    colors = np.array([class_color(index) for index in range(80)])
    difference = np.abs(colors[:, None] - colors[None]).max(axis=-1) + np.eye(80)
    assert difference.min() > 0.02 and difference[:5, :5].min() > 0.3


def crowd(height: int, width: int, count: int, spread: float) -> Instances:
    rng = np.random.default_rng(0)
    middle = (0.5 + spread * (rng.random((count, 2)) - 0.5)) * (width, height)
    half = rng.uniform(0.02, 0.2, (count, 2)) * (width, height)
    boxes = Boxes(torch.tensor(np.hstack([middle - half, middle + half])).float())
    boxes.clip((height, width))
    return Instances(
        (height, width),
        pred_boxes=boxes,
        scores=torch.linspace(1, 0.5, count),
        pred_classes=torch.arange(count) % 2,
    )


@pytest.mark.parametrize(("height", "width", "scale"), [(128, 128, 3.0), (800, 1333, 1.0)])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_labels_of_a_hundred_detections_cover_none(
    height: int, width: int, scale: float, spread: float
) -> None:
    visualizer = ClassVisualizer(np.zeros((height, width, 3), np.uint8), METADATA, scale)
    picture = visualizer.draw_instance_predictions(crowd(height, width, 100, spread)).get_image()
    renderer = visualizer.output.canvas.get_renderer()
    texts = visualizer.output.ax.texts
    assert len(texts) == 100
    extents = [text.get_bbox_patch().get_window_extent(renderer) for text in texts]
    labels = np.array([(x.x0, x.y0, x.x1, x.y1) for x in extents])
    size = np.array(picture.shape[1::-1])
    assert (labels > -0.1).all() and (labels[:, 2:] < size + 0.1).all()
    low = np.maximum(labels[:, None, :2], labels[None, :, :2])
    high = np.minimum(labels[:, None, 2:], labels[None, :, 2:])
    overlap = (high - low).clip(min=0).prod(axis=2)
    np.fill_diagonal(overlap, 0)
    assert overlap.max() < 0.1
    # Letters are still some pixels high.
    assert (labels[:, 3] - labels[:, 1]).min() > 5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (384, 384)),
        ((500, 400), (500, 400)),
        ((1, 500), (4, 2048)),  # 4.096 times
        ((20000, 3), (20000, 3)),
        ((2, 70000), (1, 32768)),  # matplotlib would refuse 65536 and more
    ],
)
def test_sizes_of_pictures(size: tuple, expected: tuple) -> None:
    image = np.zeros((*size, 3), np.uint8)
    found = Instances(
        size,
        pred_boxes=Boxes(torch.tensor([[0.0, 0, size[1], size[0]]])),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([1]),
    )
    picture = draw_predictions(image, found, METADATA)
    truth = draw_ground_truth(image, {"annotations": []}, METADATA)
    assert picture.shape == truth.shape == (*expected, 3)


def test_nothing_to_draw_leaves_the_image() -> None:
    for picture in (
        draw_predictions(GRAY, detections(0.9)[:0], METADATA),
        draw_ground_truth(GRAY, {"annotations": []}, METADATA),
        draw_ground_truth(GRAY, {}, METADATA),
    ):
        assert not changed_rows(picture).size


def test_masks_keep_their_boxes_and_colors() -> None:
    found = detections(0.9)
    found.pred_masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    found.pred_masks[:, 10:50, 20:60] = True
    picture = draw_predictions(GRAY, found, METADATA)
    assert has_color(picture, bgr(class_color(1)))
    assert (picture[180, 240] != 128).any()  # the middle of the mask


def test_a_picture_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    save_picture(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved)[:, :, ::-1], picture)

    def half(self: object, path: str, format: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_picture(tmp_path / "b.png", picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
