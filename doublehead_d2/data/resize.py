"""Image sizes and resampling as the code did it that published models were trained with."""

import random
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from PIL import Image

from doublehead_d2.config.checks import RESIZE_RULES
from doublehead_d2.config.shared import check_word
from doublehead_d2.data.pixels import DeepMapper

Size = tuple[int, int]  # (height, width)


class Cv2ResizeTransform(T.ResizeTransform):
    """A resize of images with OpenCV's bilinear interpolation, all else as `ResizeTransform`.

    Where it makes an image smaller, it reads the four nearest pixels; PIL averages over the area.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize H x W (x C); `interp` as PIL names it (segmentations ask for the nearest)."""
        if interp is not None and interp != Image.Resampling.BILINEAR:
            return super().apply_image(img, interp)
        # OpenCV takes no negative strides, which flipped channels have.
        resized = cv2.resize(np.ascontiguousarray(img), (self.new_w, self.new_h))
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:])


class ResizeByRule(T.Augmentation):
    """`ResizeShortestEdge` by the rule of another code base."""

    def __init__(self, resize: T.ResizeShortestEdge, rule: str) -> None:
        """
        Args:
            resize: detectron2's, for lengths of the short edge, limit of the long one and sampling.
            rule: "mmdet" or "maskrcnn_benchmark".
        """
        super().__init__()
        self.short_edge_length = resize.short_edge_length
        self.is_range = resize.is_range
        self.max_size = resize.max_size
        self.rule = rule

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform for an image H x W (x C)."""
        height, width = image.shape[:2]
        if self.is_range:
            short_edge = random.randint(self.short_edge_length[0], self.short_edge_length[1])
        else:
            short_edge = random.choice(self.short_edge_length)
        if short_edge == 0:  # as in detectron2: leave the image as it is
            return T.NoOpTransform()
        if self.rule == "mmdet":
            size = mmdet_size(height, width, short_edge, self.max_size)
            return Cv2ResizeTransform(height, width, *size)
        size = maskrcnn_benchmark_size(height, width, short_edge, self.max_size)
        return T.ResizeTransform(height, width, *size, Image.Resampling.BILINEAR)


class KeepPixels(T.Augmentation):
    """A resize that leaves no side of an image without pixels.

    A side that is thousands of times shorter than the other is rounded to 0 where the long side is
    limited, which no resampling can do.
    """

    def __init__(self, resize: T.Augmentation, pixels: int) -> None:
        """
        Args:
            resize: gives a `ResizeTransform` or a `NoOpTransform`.
            pixels: the least length of a side.
        """
        super().__init__()
        self.resize = resize
        self.pixels = pixels

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform for an image H x W (x C)."""
        transform = self.resize.get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h = max(transform.new_h, self.pixels)
            transform.new_w = max(transform.new_w, self.pixels)
        return transform


def mmdet_size(height: int, width: int, short_edge: int, max_size: int) -> Size:
    """mmdetection's size: one factor for both sides, rounded half up."""
    factor = min(max_size / max(height, width), short_edge / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def maskrcnn_benchmark_size(height: int, width: int, short_edge: int, max_size: int) -> Size:
    """The authors' size: the long side is truncated, a short side limited by it is rounded."""
    low, high = min(height, width), max(height, width)
    if high / low * short_edge > max_size:
        short_edge = round(max_size * low / high)
    if short_edge == 0:  # theirs ends here; the other rules give the long side all that it may have
        return (max_size, 0) if width < height else (0, max_size)
    if low == short_edge:
        return height, width
    long_edge = int(short_edge * high / low)
    return (long_edge, short_edge) if width < height else (short_edge, long_edge)


def build_test_resize(cfg: CfgNode) -> T.Augmentation:
    """The resize of test images that INPUT.RESIZE_RULE asks for.

    Raises:
        ValueError: an unknown rule; names those allowed.
    """
    short_edge = cfg.INPUT.MIN_SIZE_TEST
    return _follow_rule(
        T.ResizeShortestEdge([short_edge, short_edge], cfg.INPUT.MAX_SIZE_TEST), cfg
    )


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """detectron2's mapper, which reads 16 bits, too, resizing as INPUT.RESIZE_RULE asks for.

    Raises:
        ValueError: an unknown rule; names those allowed.
    """
    mapper = DeepMapper(cfg, is_train=is_train)
    augmentations: list[Any] = mapper.augmentations.augs
    # What is flipped has negative strides, which detectron2's mapper only then gets rid of when
    # there is more than one pixel to a side.
    pixels = 2 if is_train else 1
    mapper.augmentations = T.AugmentationList(
        [
            _follow_rule(x, cfg, pixels) if isinstance(x, T.ResizeShortestEdge) else x
            for x in augmentations
        ]
    )
    return mapper


def _follow_rule(resize: T.ResizeShortestEdge, cfg: CfgNode, pixels: int = 1) -> T.Augmentation:
    rule = cfg.INPUT.RESIZE_RULE
    check_word("INPUT.RESIZE_RULE", rule, RESIZE_RULES)
    return KeepPixels(resize if rule == "detectron2" else ResizeByRule(resize, rule), pixels)
