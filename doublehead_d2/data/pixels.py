"""Images as they are trained on: by detectron2, and gray ones of 16 bits by their upper 8.

detectron2 asks Pillow to convert what it reads to RGB, and Pillow makes 255, that is white, of all
values above 255. Of colours with 16 bits, Pillow itself reads the upper 8; of gray values, they are
taken here, so that both look alike.
"""

import copy
from typing import Any

import detectron2.data.transforms as T
import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from doublehead_d2.data.image_files import DEEP, bits_of

FLOATS = "F"  # Pillow's mode that holds every 16-bit value as it is


class DeepPixelsError(ValueError):
    """Values of which nothing says what is white."""


def read_pixels(file_name: str, format: str = "BGR") -> np.ndarray:
    """Read an image as `DeepMapper` does, turned as its EXIF says.

    Args:
        file_name: of any format that Pillow reads; of several frames the first.
        format: as detectron2's `read_image` takes it.

    Returns:
        H x W x 3, uint8 0-255.

    Raises:
        DeepPixelsError: its values have 32 bits or are floats.
        Exception: whatever Pillow raises for what is no image.
    """
    if is_gray_16(file_name):
        return upper_bits(read_image(file_name, format=FLOATS))
    return read_image(file_name, format=format)


def is_gray_16(file_name: str) -> bool:
    """Whether an image is gray with 16 bits, as its header says.

    Raises:
        DeepPixelsError: its values have 32 bits or are floats.
    """
    with PathManager.open(file_name, "rb") as f, Image.open(f) as image:
        return _is_gray_16(image)


def pixels_of(image: Image.Image) -> np.ndarray:
    """What :func:`read_pixels` gives of the file that an image of Pillow is from.

    Args:
        image: of any mode; turned as its EXIF says.

    Returns:
        BGR, H x W x 3, uint8 0-255.

    Raises:
        DeepPixelsError: its values have 32 bits or are floats.
    """
    deep = _is_gray_16(image)
    image = ImageOps.exif_transpose(image)
    if deep:
        return upper_bits(np.asarray(image))
    return np.asarray(image.convert("RGB"))[:, :, ::-1]


def _is_gray_16(image: Image.Image) -> bool:
    if not image.mode.startswith(("I", "F")):
        return False
    if bits_of(image) == 32:
        raise DeepPixelsError(f"its pixels have more than 16 bits (mode '{image.mode}'): {DEEP}")
    return True


def upper_bits(image: np.ndarray) -> np.ndarray:
    """Three equal channels (H x W x 3, uint8) of 16-bit gray values (H x W)."""
    gray = (np.clip(image, 0, 65_535) // 256).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


class DeepMapper(DatasetMapper):
    """`DatasetMapper` that reads gray images of 16 bits, too."""

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """As `DatasetMapper`.

        Raises:
            DeepPixelsError: the image has values of 32 bits or floats.
        """
        if not is_gray_16(record["file_name"]):
            return super().__call__(record)
        # detectron2 reads any mode of Pillow, and what it read is the first transform's.
        mapper = copy.copy(self)
        mapper.image_format = FLOATS
        mapper.augmentations = T.AugmentationList(
            [T.ColorTransform(upper_bits), *self.augmentations.augs]
        )
        return DatasetMapper.__call__(mapper, record)
