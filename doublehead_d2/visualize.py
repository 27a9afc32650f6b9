"""Pictures of predictions and of ground truth."""

import colorsys
import math
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from PIL import Image

from doublehead_d2.files import whole_file
from doublehead_d2.labels import Box, place_label

# Labels are unreadable below this many pixels on the shorter side, so small images are enlarged,
MIN_PICTURE_SIZE = 384
# but not to more than this on the longer side: a row of pixels cannot be made readable.
MAX_ENLARGED_SIZE = 2048
# What matplotlib draws has less than 65536 pixels a side; larger images come back reduced.
MAX_PICTURE_SIZE = 32768
# Labels that take more than this share of a picture become smaller, so that there is a place for
# each.
MAX_FILLED = 0.5


def draw_predictions(
    image: np.ndarray, instances: Instances, metadata: Metadata, score_threshold: float = 0.5
) -> np.ndarray:
    """Draw detections with class names and scores, a colour a class.

    Args:
        image: BGR, H x W x 3 uint8.
        instances: detections in pixels of `image`.
        metadata: its `thing_classes` are the names; without them indices are drawn. Its
            `thing_colors`, if there are any, are the colours (RGB, 0-255).
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
        metadata: its `thing_classes` are the names, its `thing_colors` the colours.

    Returns:
        BGR picture, uint8, of the size and in the colours that `draw_predictions` gives.
    """
    return _finish(_visualizer(image, metadata).draw_dataset_dict(record))


def draw_sampling(
    image: np.ndarray,
    proposal: Sequence[float],
    bins: Sequence[Sequence[float]],
    moved_bins: Sequence[Sequence[float]],
    moved_proposal: Sequence[float],
) -> np.ndarray:
    """Draw where two tasks look for one object (TSD, Section 3.2).

    Args:
        image: BGR, H x W x 3 uint8.
        proposal: XYXY in pixels of `image`; drawn white.
        bins, moved_bins: centres (x, y) of the bins, regular and as classification pools them; the
            latter dots in orange, each joined to its regular place.
        moved_proposal: XYXY, what localisation pools; drawn blue.

    Returns:
        BGR picture, uint8; small images come back enlarged.
    """
    visualizer = _visualizer(image, Metadata())
    visualizer.draw_box(proposal, edge_color="white")
    for (x0, y0), (x1, y1) in zip(bins, moved_bins, strict=True):
        visualizer.draw_line([x0, x1], [y0, y1], color="orange", linewidth=1)
        # A line of one place: dots of detectron2 grow with the picture's scale.
        visualizer.draw_line([x1, x1], [y1, y1], color="orange", linewidth=1)
        line = visualizer.output.ax.lines[-1]
        line.set_marker("o")
        line.set_markersize(4)
    visualizer.draw_box(moved_proposal, edge_color="deepskyblue")
    return _finish(visualizer.output)


def draw_map(image: np.ndarray, activity: np.ndarray, stride: int) -> np.ndarray:
    """Lay a feature map over an image, cell by cell: its grid shows its stride.

    Args:
        image: BGR, H x W x 3 uint8.
        activity: h x w, any scale; the lowest is drawn black, the highest pale yellow. What of its
            cells lies beyond the image is cut off; where they end before it, the last go on.
        stride: pixels a cell.

    Returns:
        BGR picture, uint8; small images come back enlarged.
    """
    height, width = image.shape[:2]
    low, high = float(activity.min()), float(activity.max())
    scaled = np.round(255 * (activity - low) / max(high - low, 1e-12)).astype(np.uint8)
    colors = cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)
    colors = colors.repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
    rows, columns = height - colors.shape[0], width - colors.shape[1]
    colors = np.pad(colors, [(0, rows), (0, columns), (0, 0)], mode="edge")
    return _finish(_visualizer(cv2.addWeighted(image, 0.4, colors, 0.6, 0), Metadata()).output)


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


def save_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write a BGR picture (uint8) as PNG, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary:
        Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1])).save(temporary, format="PNG")


class ClassVisualizer(Visualizer):
    """detectron2's, with one colour a class and labels that keep clear of one another."""

    def __init__(self, img_rgb: np.ndarray, metadata: Metadata, scale: float) -> None:
        """
        Args:
            img_rgb: RGB, H x W x 3 uint8.
            metadata: of names and colours.
            scale: size of the picture relative to that of the image.
        """
        super().__init__(img_rgb, metadata=metadata, scale=scale)
        self._classes: list[int] | None = None  # of what is drawn next
        # Drawn last, in pixels of the picture; the next text is its label.
        self._box: Box | None = None
        self._box_color: Any = None
        self._labels: list[tuple[Any, Box | None]] = []  # matplotlib's texts and their boxes

    def draw_instance_predictions(self, predictions: Instances, **kwargs: Any) -> VisImage:
        """As detectron2, a colour a class."""
        self._classes = predictions.pred_classes.tolist()
        return super().draw_instance_predictions(predictions, **kwargs)

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """As detectron2, a colour a class."""
        if annotations := dic.get("annotations"):
            self._classes = [annotation["category_id"] for annotation in annotations]
        return super().draw_dataset_dict(dic)

    def overlay_instances(self, **kwargs: Any) -> VisImage:
        """As detectron2, labels where they cover none; colours are those given or of classes."""
        classes, self._classes, self._labels = self._classes, None, []
        if kwargs.get("assigned_colors") is None and classes is not None:
            kwargs["assigned_colors"] = [self._color(index) for index in classes]
        output = super().overlay_instances(**kwargs)
        self._arrange()
        return output

    def draw_box(
        self,
        box_coord: Sequence[float],
        alpha: float = 0.5,
        edge_color: Any = "g",
        line_style: str = "-",
    ) -> VisImage:
        """As detectron2, but opaque; the text drawn next is taken for the label of this box."""
        x0, y0, x1, y1 = (float(x) * self.output.scale for x in box_coord)
        self._box, self._box_color = (x0, y0, x1, y1), edge_color
        return super().draw_box(box_coord, 1.0, edge_color, line_style)

    def draw_text(self, text: str, position: Sequence[float], **kwargs: Any) -> VisImage:
        """As detectron2; the label of a box in its colour."""
        if self._box is not None:
            kwargs["color"] = self._box_color
        output = super().draw_text(text, position, **kwargs)
        self._labels.append((output.ax.texts[-1], self._box))
        self._box = None
        return output

    def _arrange(self) -> None:
        """Move labels to where they cover no other, smaller ones if they would fill the picture."""
        width, height = self.output.canvas.get_width_height()
        extents = [self._extent(label) for label, _ in self._labels]
        filled = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in extents) / (width * height)
        if filled > MAX_FILLED:
            for label, _ in self._labels:
                label.set_size(label.get_size() * (MAX_FILLED / filled) ** 0.5)
            extents = [self._extent(label) for label, _ in self._labels]
        taken: list[Box] = []
        for (label, box), (x0, y0, x1, y1) in zip(self._labels, extents, strict=True):
            box = box or (x0, y0, x0, y0)
            place = place_label((x1 - x0, y1 - y0), box, taken, (width, height))
            taken.append(place)
            (x, y), scale = label.get_position(), self.output.scale
            label.set_position((x + (place[0] - x0) / scale, y + (place[1] - y0) / scale))
            self._join(place, box, label.get_color())

    def _extent(self, label: Any) -> Box:
        """Where a text with its background stands, in pixels of the picture."""
        renderer = self.output.canvas.get_renderer()
        label.update_bbox_position_size(renderer)
        extent = label.get_bbox_patch().get_window_extent(renderer)
        height = self.output.canvas.get_width_height()[1]  # matplotlib counts from below
        return extent.x0, height - extent.y1, extent.x1, height - extent.y0

    def _join(self, label: Box, box: Box, color: Any) -> None:
        """Draw a line between a label and a box that do not touch."""
        low, high = np.maximum(label[:2], box[:2]), np.minimum(label[2:], box[2:])
        if (low <= high + 1).all():  # in pixels
            return
        middle = (np.array(label[:2]) + label[2:]) / 2
        ends = np.stack([middle, np.clip(middle, box[:2], box[2:])]) / self.output.scale
        self.draw_line(ends[:, 0], ends[:, 1], color)
        self.output.ax.lines[-1].set_linewidth(1)  # whatever the scale

    def _color(self, index: int) -> tuple[float, ...]:
        known = self.metadata.get("thing_colors")
        return tuple(x / 255 for x in known[index]) if known else class_color(index)


def class_color(index: int) -> tuple[float, float, float]:
    """A bright colour for a class, RGB from 0 to 1.

    Hues a golden section apart: however many classes there are, none is near that of the few
    before it.
    """
    return colorsys.hsv_to_rgb(index * (5**0.5 - 1) / 2 % 1, 0.75, 1.0)


def _visualizer(image: np.ndarray, metadata: Metadata) -> ClassVisualizer:
    short, long = sorted(image.shape[:2])
    scale = max(1.0, min(MIN_PICTURE_SIZE / short, MAX_ENLARGED_SIZE / long))
    scale = min(scale, MAX_PICTURE_SIZE / long)
    least = math.ceil(1 / scale)  # pixels of which one of the picture is left
    missing = [(0, max(least - side, 0)) for side in image.shape[:2]]
    image = np.pad(image, [*missing, (0, 0)], mode="edge")
    return ClassVisualizer(image[:, :, ::-1], metadata=metadata, scale=scale)


def _finish(output: VisImage) -> np.ndarray:
    return np.ascontiguousarray(output.get_image()[:, :, ::-1])
