"""The same image twice, in one data set or in two that should have nothing in common."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence

from detectron2.utils.file_io import PathManager

from doublehead_d2.data.image_files import Progress, no_progress

CHUNK = 1 << 20  # bytes that are read at a time


def hash_suspects(paths: Sequence[str], progress: Progress = no_progress) -> dict[str, bytes]:
    """Hash the content of all files that may be the same as another one.

    Files of a size that no other has are not read. What cannot be read is left out.

    Args:
        paths: of files, as often as they are used.
        progress: shows how far it is.

    Returns:
        the hash of a file's content by its path.
    """
    sizes = {path: _size(path) for path in dict.fromkeys(paths)}
    count = Counter(sizes[path] for path in paths)
    suspects = [path for path, size in sizes.items() if size is not None and count[size] > 1]
    found = {path: _hash(path) for path in progress(suspects, len(suspects), "equal sizes")}
    return {path: content for path, content in found.items() if content is not None}


def same_within(paths: Sequence[str], hashes: dict[str, bytes]) -> list[tuple[str, str]]:
    """(A path, the first one before it with its content) for each that repeats another.

    Args:
        paths: of a data set, as often as they are used.
        hashes: what :func:`hash_suspects` gave of them, and perhaps of more.
    """
    first: dict[bytes, str] = {}
    pairs = []
    for path in paths:
        if path in hashes:
            if hashes[path] in first:
                pairs.append((path, first[hashes[path]]))
            else:
                first[hashes[path]] = path
    return pairs


def same_in_both(
    ours: Sequence[str], theirs: Sequence[str], hashes: dict[str, bytes]
) -> list[tuple[str, str]]:
    """(A path of ours, one of theirs with its content) for each of ours that they have, too.

    Args:
        ours, theirs: paths of two data sets.
        hashes: what :func:`hash_suspects` gave of both together.
    """
    known = {hashes[path]: path for path in reversed(theirs) if path in hashes}
    mine = [path for path in dict.fromkeys(ours) if path in hashes and hashes[path] in known]
    return [(path, known[hashes[path]]) for path in mine]


def _size(path: str) -> int | None:
    try:
        return os.stat(PathManager.get_local_path(path)).st_size
    except (OSError, ValueError):  # ValueError: of an address that no handler knows
        return None


def _hash(path: str) -> bytes | None:
    found = hashlib.blake2b(digest_size=16)
    try:
        with PathManager.open(path, "rb") as f:
            while chunk := f.read(CHUNK):
                found.update(chunk)
    except OSError:
        return None
    return found.digest()
