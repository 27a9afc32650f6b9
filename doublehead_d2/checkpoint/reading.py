"""Checkpoint files: read without running code, converted, with a record of where they came from."""

import hashlib
import logging
import os
import re
import zipfile
from typing import Any, BinaryIO

import torch

from doublehead_d2.checkpoint.convert import ForeignModel, read_foreign
from doublehead_d2.checkpoint.pickles import ForbiddenPickleError, check_array_pickle
from doublehead_d2.checkpoint.sources.source import Published
from doublehead_d2.files import whole_file

logger = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes read at a time


def load_tensors(path: str) -> Any:
    """A file of `torch.save`, on the CPU, if it holds nothing but tensors and plain values.

    Raises:
        ValueError: the file would run code, is truncated or damaged, or is no checkpoint; says
            which.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as f:
        damaged = _damaged_part(f)
        if damaged:
            raise ValueError(f"'{path}' is damaged: the checksum of {damaged} in it does not fit")
        f.seek(0)
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch reports damage in half a dozen types, OSError among them, and its advice is to
            # load the file unsafely.
            raise ValueError(f"'{path}' {_unreadable(f, str(error))}") from None


def refuse_code_in_pickle(path: str) -> Any:
    """Stop before detectron2 unpickles a .pkl file that holds more than numpy arrays.

    Returns:
        as :func:`check_array_pickle`.

    Raises:
        ValueError: the file would run code, or is no pickle.
    """
    try:
        return check_array_pickle(path)
    except OSError:
        raise
    except ForbiddenPickleError as error:
        raise ValueError(
            f"'{path}' is refused: it holds more than plain arrays, {error}, and loading it may "
            "run code. If you trust the file, load it yourself and save its arrays alone"
        ) from None
    except Exception as error:
        raise ValueError(f"'{path}' is truncated or no pickle of arrays: {error}") from None


def convert_file(
    path: str, out: str, source: str = "auto", expected: Published | None = None
) -> dict[str, Any]:
    """Convert the file of a published model to one that detectron2's checkpointer loads.

    Args:
        path: the original file.
        out: file to write; it appears when it is complete.
        source: as :func:`convert_checkpoint`.
        expected: refuse a model of another depth, and one with a mask head for one without.

    Returns:
        a record, which `out` holds, too: "file", "sha256" and "bytes" of the original, and
        the fields of `ForeignModel`.

    Raises:
        ValueError: the file is not readable without running code, not convertible, or another
            model than `expected`.
    """
    checkpoint = load_tensors(path)
    try:
        state, model = read_foreign(checkpoint, source)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    if expected is not None:
        found, wanted = _kind(model), _kind(expected)
        if found != wanted:
            raise ValueError(f"'{path}' holds a model with {found}; expected is {wanted}")
    record = {
        "file": os.path.basename(path),
        **model._asdict(),
        "sha256": sha256_of(path),
        "bytes": os.path.getsize(path),
    }
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with whole_file(out) as temporary:
        torch.save({"model": state, "converted_from": record}, temporary)
    logger.info("Converted %s (sha256 %s) to %s", path, record["sha256"], out)
    return record


def _kind(model: ForeignModel | Published) -> str:
    return f"a ResNet-{model.depth}" + (" and a mask head" if model.masks else "")


def sha256_of(path: str) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(BLOCK), b""):
            sha256.update(block)
    return sha256.hexdigest()


def _damaged_part(f: BinaryIO) -> str | None:
    """What of a zip archive has other bytes than were written; torch does not look at checksums."""
    if not zipfile.is_zipfile(f):
        return None  # a file of before torch 1.6, or one of which torch says what it is
    try:
        with zipfile.ZipFile(f) as archive:
            return archive.testzip()
    except Exception as error:  # by whichever of its bytes are others
        return f"its directory ({error})"


def _unreadable(f: BinaryIO, error: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", error)
    if wanted:
        return _needs_code(wanted[1])
    f.seek(0)
    head = f.read(256).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return "is a web page, not a checkpoint: the download gave a page to click through"
    reason = error.strip().splitlines()[0] if error.strip() else "it ends too early"
    if "weights_only" in reason:
        reason = "its bytes are no pickle of torch"
    return f"is truncated or no checkpoint of torch.save: {reason}"


def _needs_code(name: str) -> str:
    return (
        f"is refused: it holds more than tensors, loading it would run {name}. If you trust the "
        "file, load it yourself and save its state dict alone with torch.save"
    )
