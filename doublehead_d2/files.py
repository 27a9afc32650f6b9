"""Files that are written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """A path to write to that becomes `path` at the end, and vanishes if that is not reached."""
    temporary = f"{path}.{os.getpid()}.part"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file that people can read, whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "w") as f:
        json.dump(content, f, indent=1)
        f.write("\n")


def prepare_output(path: str) -> None:
    """Make the folder of a file that is to be written later.

    Raises:
        ValueError: `path` is empty or a folder, or its folder is a file.
        OSError: the folder cannot be made, or not be written to.
    """
    if not path:
        raise ValueError("the name of a file to write is empty")
    if os.path.isdir(path):
        raise ValueError(f"'{path}' is a folder; allowed: a file to write")
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"'{path}' lies below a file; allowed: below a folder") from None
    with tempfile.TemporaryFile(dir=folder):
        pass
