"""What people point at: files, patterns, folders and pixels, one image after the other."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from doublehead_d2.inference.images import Source

# What cameras, phones and scanners write; other files of a folder are passed over.
IMAGE_TYPES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def expand(sources: Any) -> Iterator[Source]:
    """One image after the other, in the order given.

    Args:
        sources: one of these, or any iterable of them: a file; a pattern (`*`, `?`, `[...]`, and
            `**` for folders below), its files by name; a folder, its images and those of the
            folders in it, by name; an array (BGR, H x W x 3 uint8); an image of Pillow.

    Yields:
        files, arrays and images. A pattern without files and a folder without images are passed
        on as they are, so that whoever reads them says so.

    Raises:
        TypeError: something else, when it is its turn.
    """
    if isinstance(sources, str | os.PathLike | np.ndarray | Image.Image):
        sources = [sources]
    for index, source in enumerate(sources):
        if isinstance(source, str | os.PathLike):
            path = os.fspath(source)
            yield from _files(path) or [path]
        elif isinstance(source, np.ndarray | Image.Image):
            yield source
        else:
            raise TypeError(
                f"source {index} is {type(source).__name__}; allowed: a path, numpy.ndarray, "
                "PIL.Image.Image"
            )


def is_url(path: str) -> bool:
    """Whether a path is one of iopath's, which its handlers open."""
    return "://" in path


def _files(path: str) -> list[str]:
    if os.path.isdir(path):
        return _images_below(path)
    if os.path.exists(path) or is_url(path) or not glob.has_magic(path):
        return [path]
    return [file for match in sorted(glob.glob(path, recursive=True)) for file in _of_match(match)]


def _of_match(path: str) -> list[str]:
    return _images_below(path) if os.path.isdir(path) else [path]


def _images_below(folder: str) -> list[str]:
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        # What begins with a dot is of the system: thumbnails, forks of macOS.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            if name.lower().endswith(IMAGE_TYPES) and not name.startswith("."):
                found.append(os.path.join(root, name))
    return found


def ahead(
    function: Callable[[Item], Outcome], items: Iterable[Item], depth: int
) -> Iterator[Outcome]:
    """`map`, by a thread that is at most `depth` items ahead of who takes them."""
    waiting: deque[Future[Outcome]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # of who does not want them any more
                future.cancel()
