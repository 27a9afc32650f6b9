"""Checkpoint files: read without running code, converted, with a record of where they came from."""

import hashlib
import logging
import os
import pickle
import re
import tempfile
from typing import Any, BinaryIO

import torch

from doublehead_d2.checkpoint.convert import convert_checkpoint, find_foreign

logger = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes read at a time

# What pickles of detectron2's zoo hold: numpy arrays in plain containers.
_HARMLESS = {
    ("__builtin__", "bytes"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


def load_tensors(path: str) -> Any:
    """A file of `torch.save`, on the CPU, if it holds nothing but tensors and plain values.

    Raises:
        ValueError: the file would run code, is truncated, or is no checkpoint; says which.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as f:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch reports damage in half a dozen types, OSError among them, and its advice is to
            # load the file unsafely.
            raise ValueError(f"'{path}' {_unreadable(f, str(error))}") from None


def refuse_code_in_pickle(path: str) -> None:
    """Stop before detectron2 unpickles a .pkl file that holds more than numpy arrays.

    Raises:
        ValueError: the file would run code, or is no pickle.
    """
    with open(path, "rb") as f:
        try:
            _ArrayUnpickler(f, encoding="latin1").load()
        except _ForbiddenGlobal as error:
            raise ValueError(f"'{path}' {_needs_code(str(error))}") from None
        except Exception as error:
            raise ValueError(f"'{path}' is truncated or no pickle: {error}") from None


def convert_file(path: str, out: str, source: str = "auto") -> dict[str, Any]:
    """Convert the file of a published model to one that detectron2's checkpointer loads.

    Args:
        path: the original file.
        out: file to write; it appears when it is complete.
        source: as :func:`convert_checkpoint`.

    Returns:
        a record, which `out` holds, too: "file", "source", "sha256" and "bytes" of the original.

    Raises:
        ValueError: the file is not readable without running code, or not convertible.
    """
    checkpoint = load_tensors(path)
    try:
        model = convert_checkpoint(checkpoint, source)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    record = {
        "file": os.path.basename(path),
        "source": find_foreign(checkpoint),
        "sha256": sha256_of(path),
        "bytes": os.path.getsize(path),
    }
    folder = os.path.dirname(os.path.abspath(out))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    try:
        torch.save({"model": model, "converted_from": record}, temporary)
        os.chmod(temporary, 0o644)  # as other files; mkstemp's are their owner's alone
        os.replace(temporary, out)
    except BaseException:
        os.remove(temporary)
        raise
    logger.info("Converted %s (sha256 %s) to %s", path, record["sha256"], out)
    return record


def sha256_of(path: str) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(BLOCK), b""):
            sha256.update(block)
    return sha256.hexdigest()


class _ForbiddenGlobal(Exception):
    """Names what a pickle wanted to import."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise _ForbiddenGlobal(f"{module}.{name}")
        return super().find_class(module, name)


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
