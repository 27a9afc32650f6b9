"""Images as the model is trained on them, or a reason why not."""

import glob
import mimetypes
import os
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from doublehead_d2.data.pixels import DeepPixelsError, pixels_of, read_pixels

Source = str | np.ndarray | Image.Image  # a file, BGR pixels, an image of Pillow


def bgr_of(source: Source) -> np.ndarray:
    """The pixels of a file, of an array (which are its own) or of an image of Pillow.

    Returns:
        BGR, H x W x 3 uint8 0-255.

    Raises:
        ValueError: there are none, and why.
    """
    if isinstance(source, np.ndarray):
        return checked(source, "the array")
    if isinstance(source, str):
        return read_bgr(source)
    name = getattr(source, "filename", "") or "the image of Pillow"
    try:
        return np.ascontiguousarray(pixels_of(source))
    except Exception as error:  # it may be read from its file only now
        raise ValueError(f"{name}: {_reason(name, error)}") from error


def checked(image: np.ndarray, name: str) -> np.ndarray:
    """An array, if a model can be run on it.

    Raises:
        ValueError: what is wrong with the array `name`.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"{name} has shape {image.shape} and type {image.dtype}; "
            "allowed: H x W x 3 (BGR), uint8"
        )
    return image


def read_bgr(file_name: str) -> np.ndarray:
    """Read an image as for training: by Pillow, turned as its EXIF says.

    Args:
        file_name: of any format that Pillow reads; of several frames the first.

    Returns:
        BGR, H x W x 3 uint8 0-255.

    Raises:
        ValueError: it is no image that can be read; names the file and says why.
    """
    try:
        with warnings.catch_warnings():
            # Of large images and odd metadata; what cannot be read is an error, and named.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return np.ascontiguousarray(read_pixels(file_name))
    # Decoders meet damage with whatever comes: SyntaxError, struct.error.
    except Exception as error:
        raise ValueError(f"{file_name}: {_reason(file_name, error)}") from error


def _reason(file_name: str, error: Exception) -> str:
    """What is wrong with a file that could not be read, and what to do."""
    if os.path.isdir(file_name):
        return f"a folder; give its images: {os.path.join(file_name, '*.jpg')}"
    if isinstance(error, FileNotFoundError):
        if glob.has_magic(file_name):
            matches = len(glob.glob(file_name))
            if matches:
                return f"a pattern of {matches} files in quotes; give it without, as the shell does"
            return "a pattern that no file matches"
        return "there is no such file"
    if (mimetypes.guess_type(file_name)[0] or "").startswith("video/"):
        return "a video; make images of its frames first: ffmpeg -i VIDEO frame_%05d.png"
    if isinstance(error, DeepPixelsError):
        return str(error)
    if os.path.isfile(file_name) and not os.path.getsize(file_name):
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not read"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, OSError) and error.strerror:  # of the system, not of a decoder
        return f"cannot be read: {error.strerror}"
    return f"damaged: {error or type(error).__name__}"
