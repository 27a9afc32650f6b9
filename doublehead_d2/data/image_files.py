"""Headers of images: whether sizes are those of the annotations, and what reading changes."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager
from PIL import Image

from doublehead_d2.data import kinds
from doublehead_d2.data.findings import Findings, ImageFile
from doublehead_d2.data.kinds import Kind

MOST = 5000  # headers that are read of a data set before a run: seconds also where files are far
THREADS = 16

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
SWAPPING = (5, 6, 7, 8)  # its values that make width and height change places
TURNING = range(2, 9)

# What reading makes of modes of Pillow other than RGB.
BY_MODE = {
    "1": kinds.BLACK_AND_WHITE,
    "L": kinds.GRAY,
    "P": kinds.PALETTE,
    "CMYK": kinds.CMYK,
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), kinds.TRANSPARENT),
}

# Gives what it is given, and shows how far it is: of how many, and what is done
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_progress(things: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """Shows nothing."""
    return things


class Header(NamedTuple):
    """What detectron2 makes of a file, judged by its first bytes."""

    size: tuple[int, int] = (0, 0)  # (width, height) in the file
    orientation: int = 1
    mode: str = "RGB"  # Pillow's
    bits: int = 8  # of a value
    format: str = ""  # Pillow's
    error: str = ""

    @property
    def size_read(self) -> tuple[int, int]:
        """(width, height) as detectron2 reads the image: turned as EXIF says."""
        width, height = self.size
        return (height, width) if self.orientation in SWAPPING else (width, height)

    @property
    def is_gray(self) -> bool:
        """Values of one channel that is no palette, of any depth."""
        return self.mode == "L" or self.mode.startswith(("I", "F"))


def inspect_images(
    images: Sequence[ImageFile],
    findings: Findings,
    *,
    most: int | None = None,
    progress: Progress = no_progress,
) -> list[Header]:
    """Look for images that are not there, not readable, or of another size than annotated.

    Args:
        images: as the annotations have them.
        findings: what is found is added to them.
        most: of more images, headers are read of that many, evenly spread; that the files are
            there is looked up for all.
        progress: shows how far it is.

    Returns:
        the headers that were read.
    """
    chosen = list(images)
    if most is not None and len(images) > most:
        chosen = [images[i * len(images) // most] for i in range(most)]
        _find_missing(images, findings)
        findings.add(
            kinds.SOME_LOOKED_AT,
            f"of {len(images):,} images, the sizes of {most:,} were looked at",
        )
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(read_header, (image.path for image in chosen))
        headers = list(progress(found, len(chosen), "headers"))
    for image, header in zip(chosen, headers, strict=True):
        for kind, what in _judge(image, header):
            findings.add(kind, f"'{image.path}' {what}".rstrip())
    return headers


def read_header(path: str) -> Header:
    """What the first bytes of an image tell."""
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as image:
            try:
                # Not image.getexif(), with which a PNG reads all of itself.
                orientation = Image.Image.getexif(image).get(ORIENTATION, 1)
            except Exception:  # damaged EXIF counts as none in detectron2, too
                orientation = 1
            return Header(image.size, orientation, image.mode, bits_of(image), image.format or "")
    except FileNotFoundError:
        return Header(error="is not there")
    except Exception as error:  # Pillow's plugins raise what they like
        return Header(error=f"cannot be read: {type(error).__name__}: {error}")


def bits_of(image: Image.Image) -> int:
    """How many bits a value has in the file: 8 (or less), 16, or 32, which floats have, too."""
    # Some formats say it in the mode, the others in what the decoder is told.
    is_16 = ";16" in image.mode or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode.startswith(("I", "F")) and not is_16:
        # Gray maps of any range, which Pillow stretches to 16 bits
        return 16 if image.format == "PPM" and image.mode == "I" else 32
    return 16 if is_16 else 8


def _find_missing(images: Sequence[ImageFile], findings: Findings) -> None:
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
                findings.add(kinds.MISSING_IMAGE, f"'{os.path.join(folder, name)}' is not there")


def _judge(image: ImageFile, header: Header) -> list[tuple[Kind, str]]:
    """Kinds of what is found, each with the end of a sentence that the path begins."""
    if header.error:
        is_missing = header.error == "is not there"
        return [(kinds.MISSING_IMAGE if is_missing else kinds.UNREADABLE_IMAGE, header.error)]
    found: list[tuple[Kind, str]] = []
    annotated = (image.width, image.height)
    if None not in annotated and annotated != header.size_read:
        found.append(_other_size(annotated, header))
    if header.is_gray and header.bits == 32:
        found.append((kinds.DEEP_IMAGE, f"has values of {DEEP}"))
    elif header.bits == 16:
        found.append((kinds.GRAY_16 if header.is_gray else kinds.COLOUR_16, ""))
    elif header.mode in BY_MODE:
        found.append((BY_MODE[header.mode], ""))
    if header.orientation in TURNING:
        found.append((kinds.TURNED, ""))
    return found


DEEP = (
    "32 bits or floats, of which nothing says what is white; allowed: 8 or 16 bits a value (for "
    "values up to 255: python -c \"from PIL import Image; Image.open('a.tif').convert('L')"
    ".save('a.png')\")"
)


def _other_size(annotated: tuple[float | None, float | None], header: Header) -> tuple[Kind, str]:
    size = _pixels(header.size)
    if header.size == annotated:
        return kinds.TURNED_SIZE, (
            f"has {size}, as annotated, and its EXIF orientation {header.orientation} turns it to "
            f"{_pixels(header.size_read)}, which is how detectron2 reads it; allowed: size and "
            "boxes of the turned image, or a file without the orientation"
        )
    return kinds.OTHER_SIZE, (
        f"has {_pixels(header.size_read)}, annotated are {_pixels(annotated)}; allowed: the same"
    )


def _pixels(size: tuple[float | None, float | None]) -> str:
    return f"{size[0]} x {size[1]} pixels"
