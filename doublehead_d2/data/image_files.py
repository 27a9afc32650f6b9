"""Headers of images: whether sizes are those of the annotations, and what reading changes."""

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from detectron2.utils.file_io import PathManager
from PIL import Image

from doublehead_d2.data.findings import Faults, ImageFile

MOST = 5000  # headers that are read of a data set: seconds also where files are far
THREADS = 16

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
SWAPPING = (5, 6, 7, 8)  # its values that make width and height change places
TURNING = range(2, 9)


class Header(NamedTuple):
    """What detectron2 makes of a file, judged by its first bytes."""

    size: tuple[int, int] = (0, 0)  # (width, height) in the file
    orientation: int = 1
    clipped: bool = False  # values above 255 become 255
    halved: bool = False  # the upper 8 of 16 bits are taken
    error: str = ""

    @property
    def size_read(self) -> tuple[int, int]:
        """(width, height) as detectron2 reads the image: turned as EXIF says."""
        width, height = self.size
        return (height, width) if self.orientation in SWAPPING else (width, height)


def inspect_images(images: Sequence[ImageFile], faults: Faults) -> list[str]:
    """Look for images that are not there, not readable, or of another size than annotated.

    Of more than `MOST` images, headers are read of that many, evenly spread; that the files are
    there is looked up for all.

    Args:
        images: as the annotations have them.
        faults: where what is wrong is added.

    Returns:
        notes: what detectron2 does to these images that may not be expected.
    """
    chosen, notes = list(images), []
    if len(images) > MOST:
        chosen = [images[i * len(images) // MOST] for i in range(MOST)]
        _find_missing(images, faults)
        notes.append(f"of {len(images):,} images, the sizes of {MOST:,} were looked at")
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(read_header, (image.path for image in chosen)))
    for image, header in zip(chosen, headers, strict=True):
        if fault := _fault(image, header):
            faults.add(f"'{image.path}' {fault}")
    return notes + _notes(chosen, headers)


def read_header(path: str) -> Header:
    """What the first bytes of an image tell."""
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as image:
            try:
                # Not image.getexif(), with which a PNG reads all of itself.
                orientation = Image.Image.getexif(image).get(ORIENTATION, 1)
            except Exception:  # damaged EXIF counts as none in detectron2, too
                orientation = 1
            clipped = image.mode == "F" or image.mode.startswith("I")
            halved = not clipped and any(";16" in str(tile[3]) for tile in image.tile)
            return Header(image.size, orientation, clipped, halved)
    except FileNotFoundError:
        return Header(error="is not there")
    except Exception as error:  # Pillow's plugins raise what they like
        return Header(error=f"cannot be read: {type(error).__name__}: {error}")


def _find_missing(images: Sequence[ImageFile], faults: Faults) -> None:
    """Look up all files by listing their folders, each once."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for image in images:
        folder, name = os.path.split(image.path)
        by_folder[folder].append(name)
    for folder, names in by_folder.items():
        if "://" in folder:  # not every kind of address can be listed
            continue
        there = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        for name in names:
            if name not in there:
                faults.add(f"'{os.path.join(folder, name)}' is not there")


def _fault(image: ImageFile, header: Header) -> str:
    if header.error:
        return header.error
    annotated = (image.width, image.height)
    if None in annotated or annotated == header.size_read:
        return ""
    size = _pixels(header.size)
    if header.size == annotated:
        return (
            f"has {size}, as annotated, and its EXIF orientation {header.orientation} turns it to "
            f"{_pixels(header.size_read)}, which is how detectron2 reads it; allowed: size and "
            "boxes of the turned image, or a file without the orientation"
        )
    return f"has {_pixels(header.size_read)}, annotated are {_pixels(annotated)}; allowed: the same"


def _notes(images: Sequence[ImageFile], headers: Sequence[Header]) -> list[str]:
    kinds = {
        "images that their EXIF orientation turns as they are read (boxes must be those of the "
        "turned image)": [x.orientation in TURNING for x in headers],
        "images with more than 8 bits a pixel, whose values above 255 become 255, that is white, "
        "as they are read (convert them to 8 bits)": [x.clipped for x in headers],
        "images with 16 bits a colour, of which the upper 8 are read": [x.halved for x in headers],
    }
    notes = []
    for words, those in kinds.items():
        found = [image.path for image, is_one in zip(images, those, strict=True) if is_one]
        if found:
            notes.append(f"{words}: {len(found):,}, the first is '{found[0]}'")
    return notes


def _pixels(size: tuple[float | None, float | None]) -> str:
    return f"{size[0]} x {size[1]} pixels"
