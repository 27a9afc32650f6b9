"""Images in folders, by the names that annotations have for them."""

import os
from collections.abc import Iterable

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_images(folders: Iterable[str]) -> dict[str, list[str]]:
    """All images in some folders: paths by file name without extension, in the folders' order."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            stem, extension = os.path.splitext(name)
            if extension.lower() in IMAGE_TYPES:
                found.setdefault(stem, []).append(os.path.join(folder, name))
    return found


def find_image(known: dict[str, list[str]], stem: str, name: str) -> str | None:
    """The image of an annotation file.

    Args:
        known: what :func:`list_images` gave.
        stem: of the annotation file.
        name: that it has for the image; "" for none.
    """
    named = os.path.splitext(name)[0]
    # Of x.jpg and x.png the one that is named; of a file that was renamed that of its own name.
    for path in known.get(stem, []):
        if os.path.basename(path) == name:
            return path
    return next(iter(known.get(stem, []) or known.get(named, [])), None)
