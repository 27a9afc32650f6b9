"""Files that are written whole or not at all, and a list that is whole at any time."""

import contextlib
import json
import os
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

PART = ".part"  # how the names of unfinished files end


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, synced: bool = False) -> Iterator[str]:
    """A path to write to that becomes `path` at the end, and vanishes if that is not reached.

    Args:
        path: a file that is there already is replaced.
        synced: it is on the disk before it is `path`, and stays whole if the machine stops, too.
    """
    temporary = f"{path}.{os.getpid()}{PART}"
    try:
        yield temporary
        if synced:
            _sync(temporary)
        os.replace(temporary, path)
        if synced:
            _sync(os.path.dirname(os.path.abspath(path)))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _sync(path: str) -> None:
    """Have a file, or the names in a folder, written to the disk."""
    if os.name == "nt" and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file that people can read, whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "w") as f:
        json.dump(content, f, indent=1)
        f.write("\n")


@contextlib.contextmanager
def growing_json(path: str | os.PathLike[str]) -> Iterator[Callable[[Any], None]]:
    """Write a JSON list value by value, at the cost of the value alone.

    After each value, and if a value cannot be written, the file is what `write_json` makes of the
    list so far.

    Args:
        path: a file that is there already is replaced.

    Yields:
        a function that appends a value to the list.
    """
    write_json(path, [])
    with open(path, "r+b", buffering=0) as file:
        end = len("[")

        def append(value: Any) -> None:
            nonlocal end
            text = textwrap.indent(json.dumps(value, indent=1), " ")
            text = f"\n{text}" if end == len("[") else f",\n{text}"
            try:
                _write_at(file, end, f"{text}\n]\n")
            except BaseException:  # a full disk, Ctrl-C
                _write_at(file, end, "]\n" if end == len("[") else "\n]\n")
                file.truncate()
                raise
            end += len(text)

        yield append


def _write_at(file: BinaryIO, position: int, text: str) -> None:
    """Write all of ASCII `text` to a file without a buffer, of which one call may write a part."""
    file.seek(position)
    rest = text.encode("ascii")
    while rest:
        rest = rest[file.write(rest) :]


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
