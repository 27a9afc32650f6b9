"""All that can be found in data sets, for a report; nothing stops at the first fault."""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from doublehead_d2.data import kinds
from doublehead_d2.data.contents import inspect_annotations, where_is
from doublehead_d2.data.findings import Contents, FaultError, Findings, Use
from doublehead_d2.data.image_files import Header, Progress, inspect_images, no_progress
from doublehead_d2.data.kinds import Kind
from doublehead_d2.data.pixels import read_pixels
from doublehead_d2.data.same_images import hash_suspects, same_in_both, same_within


@dataclass
class DatasetReport:
    """What was found in a data set."""

    name: str
    findings: Findings
    contents: Contents
    paths: list[str]  # of images that can be read
    is_whole: bool  # False: a fault kept from looking at all of it


class Side(NamedTuple):
    """Data sets that are compared with others."""

    title: str
    names: Sequence[str]


def report_on(
    uses: Mapping[str, Use], *, decode: bool = False, progress: Progress = no_progress
) -> dict[str, DatasetReport]:
    """Look at data sets.

    Args:
        uses: what is done with each, by its name; their files are there.
        decode: all images are read, as training reads them; otherwise their headers.
        progress: shows how far it is.
    """
    return {name: _look(name, use, decode, progress) for name, use in uses.items()}


def compare(
    reports: Mapping[str, DatasetReport],
    sides: Sequence[tuple[Side, Side]],
    progress: Progress = no_progress,
) -> list[Findings]:
    """Look for images that are there twice, and for classes that only one side has.

    Args:
        reports: what :func:`report_on` gave; images that a data set has twice are added to them.
        sides: pairs of what is compared.
        progress: shows how far it is.

    Returns:
        what was found in each pair.
    """
    paths = {name: one.paths for name, one in reports.items()}
    hashes = hash_suspects([path for those in paths.values() for path in those], progress)
    for name, one in reports.items():
        for path, other in same_within(paths[name], hashes):
            one.findings.add(kinds.SAME_IMAGE, f"'{path}', as '{other}'")
    found = []
    for ours, theirs in sides:
        between = Findings(f"{ours.title} and {theirs.title}", reports=True)
        mine = [path for name in ours.names for path in paths[name]]
        yours = [path for name in theirs.names for path in paths[name]]
        for path, other in same_in_both(mine, yours, hashes):
            between.add(kinds.SAME_IN_BOTH, f"'{path}', as '{other}'")
        _compare_classes(ours, theirs, reports, between)
        _compare_classes(theirs, ours, reports, between)
        found.append(between)
    return found


def _look(name: str, use: Use, decode: bool, progress: Progress) -> DatasetReport:
    findings = Findings(where_is(name), reports=True)
    contents, is_whole = Contents(objects=None), True
    try:
        contents = inspect_annotations(name, use, findings)
    except ValueError as error:
        is_whole = False
        if not findings.refuses:  # what it says is not noted yet
            kind = error.kind if isinstance(error, FaultError) else kinds.NOT_THE_LAYOUT
            findings.add(kind, str(error).removeprefix(f"{findings.where}: "))
    for path in contents.census.without_objects():
        findings.add(kinds.IMAGE_WITHOUT_OBJECTS, f"'{path}'")
    if contents.census.objects:
        for index, class_name in enumerate(contents.classes):
            if not contents.census.by_class[index]:
                findings.add(kinds.CLASS_WITHOUT_OBJECTS, repr(class_name))
    headers = inspect_images(contents.images, findings, progress=progress)
    pairs = zip(contents.images, headers, strict=True)
    readable = [(image.path, header) for image, header in pairs if not header.error]
    if decode:
        _decode_all(readable, findings, progress)
    return DatasetReport(name, findings, contents, [path for path, _ in readable], is_whole)


def _decode_all(
    readable: Sequence[tuple[str, Header]], findings: Findings, progress: Progress
) -> None:
    """Read all pixels of what has a sound header, in threads, as decoders release Python's lock."""
    with ThreadPoolExecutor(_cores()) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata
        answers = pool.map(_decode, readable)
        for found in progress(answers, len(readable), "images"):
            if found:
                findings.add(*found)


def _decode(file: tuple[str, Header]) -> tuple[Kind, str] | None:
    """What is wrong with an image's pixels."""
    path, header = file
    if header.is_gray and header.bits == 32:
        return None  # refused by its header
    kind = kinds.DAMAGED_IMAGE
    try:
        pixels = read_pixels(path)
        kind = kinds.DAMAGED_PNG
        if header.format == "PNG":
            with PathManager.open(path, "rb") as f, Image.open(f) as image:
                image.load()
    except Exception as error:  # decoders meet damage with whatever comes
        return kind, f"'{path}' cannot be read: {type(error).__name__}: {error}"
    is_dark = header.is_gray and header.bits == 16 and 0 < np.max(pixels) < 16
    return (kinds.DARK_16, f"'{path}'") if is_dark else None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _compare_classes(
    ours: Side, theirs: Side, reports: Mapping[str, DatasetReport], between: Findings
) -> None:
    mine, yours = (_class_counts(side, reports) for side in (ours, theirs))
    if mine and yours:
        for name, count in mine.items():
            if name not in yours:
                between.add(
                    kinds.CLASS_OF_ONE_SIDE,
                    f"{name!r} has {count:,} objects in {ours.title} and none in {theirs.title}",
                )


def _class_counts(side: Side, reports: Mapping[str, DatasetReport]) -> dict[str, int]:
    """Objects by the name of their class, of classes that have any."""
    counts: dict[str, int] = {}
    for name in side.names:
        contents = reports[name].contents
        for index, count in sorted(contents.census.by_class.items()):
            if index < len(contents.classes) and count:
                class_name = contents.classes[index]
                counts[class_name] = counts.get(class_name, 0) + count
    return counts
