"""Images of COCO files: found where they are, and of the size that they have."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from doublehead_d2.data.image_files import THREADS, read_header

Record = dict[str, Any]


def complete_images(images: list[Record], folder: str) -> list[str]:
    """Give the images of a file names that lead to them, and the sizes that they lack, in place.

    Args:
        images: records, perhaps malformed.
        folder: that names are relative to.

    Returns:
        what was done.
    """
    named = [x for x in images if isinstance(x.get("file_name"), str)]
    return _find(named, folder) + _measure(named, folder)


def _find(images: list[Record], folder: str) -> list[str]:
    """Names that lead nowhere are those of another machine, or of a folder in between."""
    if "://" in folder:
        return []
    lost = [x for x in images if not os.path.isfile(os.path.join(folder, x["file_name"]))]
    if not lost:
        return []
    by_name: dict[str, list[str]] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            by_name.setdefault(name, []).append(os.path.join(root, name))
    closest = {x["file_name"]: _closest(x["file_name"], by_name, folder) for x in lost}
    # One file for several names: they were in folders that are gone, and which is which is too.
    taken = Counter(closest.values())
    taken.update(os.path.join(folder, x["file_name"]) for x in images)
    found = []
    for image in lost:
        path = closest[image["file_name"]]
        if path and taken[path] == 1:
            found.append((image["file_name"], path))
            image["file_name"] = path
    if not found:
        return []
    name, path = found[0]
    return [
        f"file names that are not in '{folder}' as they stand, and were found elsewhere in it: "
        f"{len(found):,}, the first is '{name}', read as '{os.path.relpath(path, folder)}'"
    ]


def _closest(name: str, by_name: dict[str, list[str]], folder: str) -> str | None:
    """The one image of that name; of several the one whose folders are named as well."""
    parts = name.replace("\\", "/").split("/")
    known = by_name.get(parts[-1], [])
    for start in range(len(parts)):
        tail = os.path.join(folder, *(x for x in parts[start:] if x))
        if tail in known:
            return tail
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    for end in ends:
        matching = [path for path in known if path.replace(os.sep, "/").endswith("/" + end)]
        if matching:
            return matching[0] if len(matching) == 1 else None
    return None


def _measure(images: list[Record], folder: str) -> list[str]:
    """Read missing sizes from the files, as detectron2 will see them: turned as EXIF says."""
    # A size that makes no sense is one, too: who checks the file refuses it.
    unknown = [x for x in images if x.get("width") is None or x.get("height") is None]
    if not unknown:
        return []
    with ThreadPoolExecutor(THREADS) as pool:
        paths = [os.path.join(folder, x["file_name"]) for x in unknown]
        headers = list(pool.map(read_header, paths))
    measured = 0
    for image, header in zip(unknown, headers, strict=True):
        if not header.error:
            image["width"], image["height"] = header.size_read
            measured += 1
    if not measured:
        return []
    return [
        f"images without 'width' and 'height', read from the files: {measured:,}, the first is "
        f"'{unknown[0]['file_name']}'"
    ]
