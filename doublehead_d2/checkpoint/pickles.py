"""Pickles of numpy arrays, as detectron2's zoo has them, told from pickles that do something else.

Nothing of numpy is called here. Some of what it offers to pickles, such as arrays over foreign
memory or arrays of objects, is as good as code.
"""

import collections
import math
import pickle
import re
from typing import Any


class ForbiddenPickleError(Exception):
    """Names what a pickle wanted beside plain arrays."""


def check_array_pickle(path: str) -> Any:
    """Read a pickle without making what it describes.

    Args:
        path: a file whose strings may be Python 2's.

    Returns:
        its containers and plain values; something else stands in for its arrays.

    Raises:
        ForbiddenPickleError: it is made of more than numpy arrays, containers and plain values.
        Exception: whatever `pickle` raises for damaged files.
    """
    with open(path, "rb") as f:
        return _Checker(f, encoding="latin1").load()


class _Marker:
    """Stands for `numpy.ndarray`, which a pickle may name but not call."""


_NDARRAY = _Marker()


class _DType:
    """A numeric type; `size` bytes each."""

    def __init__(self, code: Any, *flags: Any) -> None:
        text = code if isinstance(code, str) else ""
        if not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", text) or not set(flags) <= {0, 1}:
            raise ForbiddenPickleError(f"numpy.dtype({code!r})")
        self.size = int(text[-1])

    def __setstate__(self, state: tuple) -> None:
        # version, byte order; no subtypes, names or fields; sizes as the code says
        if state[1] not in ("<", ">", "|", "=") or state[2:] != (None, None, None, -1, -1, 0):
            raise ForbiddenPickleError(f"numpy.dtype with state {state!r}")


class _Array:
    """An array that `numpy` would allocate and then fill from its state."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _NDARRAY or shape != (0,) or code not in (b"b", "b"):
            raise ForbiddenPickleError(f"an array made as {shape!r}, {code!r}")

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, data = state
        _check_size(data, shape, dtype)


def _check_size(data: Any, shape: Any, dtype: Any) -> None:
    """The bytes of an array must be as many as its shape and type say."""
    if not isinstance(dtype, _DType):
        raise ForbiddenPickleError(f"an array of {dtype!r}")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(isinstance(n, int) and n >= 0 for n in sizes):
        raise ForbiddenPickleError(f"an array of shape {shape!r}")
    if not isinstance(data, (bytes, bytearray, str)) or len(data) != math.prod(sizes) * dtype.size:
        raise ForbiddenPickleError(f"an array of shape {shape!r} whose data are of another size")


# Functions, since a pickle may make an object of a class without calling its constructor.


def _dtype(*args: Any) -> _DType:
    return _DType(*args)


def _reconstruct(*args: Any) -> _Array:
    return _Array(*args)


def _scalar(dtype: Any, data: Any) -> None:
    _check_size(data, (), dtype)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> None:
    _check_size(data, shape, dtype)


def _encode(text: Any, encoding: Any) -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ForbiddenPickleError(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes()` stands for empty data; with a number it would ask for memory."""
    return b""


def _box_mode(value: Any) -> None:
    """detectron2's `BoxMode`, which files of proposals may state."""
    if not isinstance(value, int):
        raise ForbiddenPickleError(f"BoxMode({value!r})")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("detectron2.structures.boxes", "BoxMode"): _box_mode,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _NDARRAY,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _Checker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ForbiddenPickleError(f"{module}.{name}")
        return _ALLOWED[module, name]
