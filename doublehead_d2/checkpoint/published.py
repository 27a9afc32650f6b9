"""The published checkpoints by name, for MODEL.WEIGHTS: doublehead://<name>."""

import json
import logging
import os
from typing import IO, Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir

from doublehead_d2.checkpoint.download import check_hash, download
from doublehead_d2.checkpoint.reading import convert_file
from doublehead_d2.checkpoint.sources import SOURCES
from doublehead_d2.checkpoint.sources.source import PREFIX
from doublehead_d2.files import write_json

logger = logging.getLogger(__name__)

# Part of the names of converted files: raise it when a conversion changes its result.
CONVERSION = 1


PUBLISHED = {name: entry for source in SOURCES.values() for name, entry in source.published.items()}
assert len(PUBLISHED) == sum(len(s.published) for s in SOURCES.values()), "a name stands twice"


def cache_folder(writable: bool = True) -> str:
    """Where originals and converted files are kept: below $FVCORE_CACHE, as detectron2's.

    Args:
        writable: take another folder where that one cannot be written to.
    """
    folder = os.path.expanduser(os.getenv("FVCORE_CACHE", "~/.torch/iopath_cache"))
    return os.path.abspath(os.path.join(get_cache_dir() if writable else folder, "doublehead_d2"))


def local_path(name: str, force: bool = False) -> str:
    """The converted file of a published checkpoint, made where it is not there yet.

    Args:
        name: key of `PUBLISHED`.
        force: convert again.

    Returns:
        path of a .pth file that any detectron2 checkpointer loads.

    Raises:
        ValueError: no such name, or a file that is not what it should be.
        FileNotFoundError: the file has to be fetched by hand; says from where and to where.
        OSError: the download failed.
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"there are no published weights '{PREFIX}{name}'; allowed: "
            + ", ".join(f"'{PREFIX}{known}'" for known in PUBLISHED)
        )
    original, converted = _paths(name, cache_folder(writable=False))
    if not force and _is_current(converted, original):  # of a shared cache, too
        return converted
    original, converted = _paths(name, cache_folder())
    with file_lock(converted):
        if force or not _is_current(converted, original):
            _fetch(name, original)
            _convert(name, original, converted)
    return converted


class PublishedWeightsHandler(PathHandler):
    """Lets detectron2's `PathManager`, and so its checkpointer, read doublehead:// names."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return local_path(path.removeprefix(PREFIX), force)

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> IO[str] | IO[bytes]:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise ValueError(f"mode is '{mode}'; published weights can be read alone: 'r', 'rb'")
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(PublishedWeightsHandler())


def _paths(name: str, folder: str) -> tuple[str, str]:
    """Paths of the original and of the converted file."""
    original = os.path.join(folder, os.path.dirname(name), PUBLISHED[name].file)
    return original, f"{original.removesuffix('.pth')}.detectron2-{CONVERSION}.pth"


def _fetch(name: str, original: str) -> None:
    """See that the original file is there and is the right one."""
    published = PUBLISHED[name]
    if os.path.isfile(original):
        check_hash(original)
    elif published.direct:
        download(published.address, original)
    else:
        raise FileNotFoundError(
            f"'{PREFIX}{name}' is on a file-sharing site that has no direct address. Download\n"
            f"  {published.address}\nand save it as\n  {original}"
        )


def _convert(name: str, original: str, converted: str) -> None:
    """Convert a file that must be the named one, and record which it was."""
    published = PUBLISHED[name]
    (source,) = (source.name for source in SOURCES.values() if name in source.published)
    record = convert_file(original, converted, source, published)
    if record["num_classes"] != published.num_classes:
        logger.warning(
            "'%s' has %d classes; '%s%s' as published has %d",
            *(original, record["num_classes"], PREFIX, name, published.num_classes),
        )
    record["modified"] = os.stat(original).st_mtime_ns
    write_json(_record_path(converted), record)


def _is_current(converted: str, original: str) -> bool:
    """Whether the converted file exists and the original, if still there, has not changed since."""
    if not (os.path.isfile(converted) and os.path.isfile(_record_path(converted))):
        return False
    if not os.path.isfile(original):
        return True
    with open(_record_path(converted)) as f:
        try:
            record = json.load(f)
        except ValueError:
            return False
    stat = os.stat(original)
    now = {"bytes": stat.st_size, "modified": stat.st_mtime_ns}
    return isinstance(record, dict) and {key: record.get(key) for key in now} == now


def _record_path(converted: str) -> str:
    return converted.removesuffix(".pth") + ".json"
