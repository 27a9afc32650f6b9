"""Look for data sets before a run, so that a missing one costs seconds and the message helps."""

import difflib
import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.file_io import PathManager

from doublehead_d2.data.registration import own_dataset
from doublehead_d2.data.shapes.builtin import datasets_root


def check_datasets(names: Sequence[str]) -> None:
    """Refuse a data set that is not registered, or whose files are not there.

    Data sets registered with a function of the user's own, without the metadata of the COCO or
    VOC layout, are taken as they are.

    Args:
        names: as in `cfg.DATASETS.TRAIN`; a single name is accepted, as detectron2 does.

    Raises:
        ValueError: a name is not registered; the message lists similar ones.
        FileNotFoundError: a file or folder is missing; the message says what is expected where.
    """
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog:
            raise ValueError(_unknown(name))
        metadata, own = MetadataCatalog.get(name), own_dataset(name)
        for path, is_folder in own.required() if own else _required(metadata):
            exists = PathManager.isdir if is_folder else PathManager.isfile
            if not exists(path):
                kind = "folder" if is_folder else "file"
                places = own.looked_at.get(path, [path]) if own else []
                raise FileNotFoundError(
                    _missing_own(name, kind, places)
                    if own
                    else _missing(name, kind, path, metadata)
                )


def _unknown(name: str) -> str:
    known = DatasetCatalog.list()
    similar = difflib.get_close_matches(name, known, n=5)
    if similar:
        return f"Data set {name!r} is not registered. Similar names: {', '.join(similar)}."
    return (
        f"Data set {name!r} is not registered, nor is any similar name; "
        f"{len(known)} data sets are, see detectron2.data.DatasetCatalog.list()."
    )


def _required(metadata: Metadata) -> list[tuple[str, bool]]:
    """What detectron2 will read, as (path, is a folder)."""
    if json_file := metadata.get("json_file", None):
        # Without an image root the annotation file itself holds complete paths.
        image_root = metadata.get("image_root", None)
        return [(json_file, False)] + ([(image_root, True)] if image_root else [])
    dirname, split = metadata.get("dirname", None), metadata.get("split", None)
    if dirname and split:
        lists = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
        folders = [os.path.join(dirname, folder) for folder in ("Annotations", "JPEGImages")]
        return [(lists, False)] + [(folder, True) for folder in folders]
    return []


def _missing(name: str, kind: str, path: str, metadata: Metadata) -> str:
    lines = [f"Data set {name!r}: there is no {kind} {os.path.abspath(path)}."]
    root = os.path.abspath(datasets_root())
    value = os.getenv("DETECTRON2_DATASETS")
    if value is None:
        lines.append(f"DETECTRON2_DATASETS is not set, which means ./datasets, here {root}.")
    else:
        lines.append(f"DETECTRON2_DATASETS is {value!r}, here {root}.")
    lines.append(f"Expected layout: {_tree(metadata, root)}.")
    if command := metadata.get("written_by", None):
        lines.append(f"This command writes it: {command}")
    return "\n".join(lines)


def _missing_own(name: str, kind: str, places: Sequence[str]) -> str:
    value = os.getenv("DETECTRON2_DATASETS")
    root = (
        f"is {value!r}"
        if value
        else f"is not set, which means ./datasets, here {os.path.abspath(datasets_root())}"
    )
    return (
        f"Data set {name!r}: there is no {kind} {' or '.join(places)}. These places were looked "
        "at: relative paths start from the config file, on a command line from the working "
        f"directory, and then from DETECTRON2_DATASETS, which {root}."
    )


def _tree(metadata: Metadata, root: str) -> str:
    """Say in one line what belongs where, relative to the root if it is below that."""

    def short(path: str) -> str:
        path = os.path.abspath(path)
        return os.path.relpath(path, root) if path.startswith(root + os.sep) else path

    if json_file := metadata.get("json_file", None):
        image_root = metadata.get("image_root", None)
        return short(json_file) + (f" and {short(image_root)}/" if image_root else "")
    return f"{short(metadata.dirname)}/{{Annotations,ImageSets,JPEGImages}}"
