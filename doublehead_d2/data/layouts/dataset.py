"""What the data sets of all layouts have in common."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog

from doublehead_d2.data import kinds
from doublehead_d2.data.entries import Entry
from doublehead_d2.data.findings import Contents, FaultError, Findings, Use

Record = dict[str, Any]


class OwnDataset(ABC):
    """A data set of DATASETS.REGISTER; called, it gives detectron2's records."""

    def __init__(self, name: str, entry: Entry, looked_at: dict[str, list[str]]) -> None:
        """
        Args:
            name: in detectron2's catalogs.
            entry: with absolute paths.
            looked_at: the places where each path was looked for.
        """
        self.name = name
        self.entry = entry
        self.looked_at = looked_at

    @property
    def where(self) -> str:
        """How messages begin."""
        return f"Data set '{self.name}' ({self.entry.place})"

    @abstractmethod
    def __call__(self) -> list[Record]:
        """Load it.

        Raises:
            ValueError: says what is wrong with which file.
        """

    @abstractmethod
    def inspect(self, use: Use, findings: Findings) -> Contents:
        """Look at all annotations, once.

        Args:
            use: what a run does with it.
            findings: what is found is added to them.

        Raises:
            ValueError: names the first faults.
        """

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What detectron2's metadata say of it before it is read."""

    @abstractmethod
    def required(self) -> list[tuple[str, bool]]:
        """What must be there, as (path, is a folder)."""

    def is_there(self) -> bool:
        """Whether the file or folder that it is named by is there."""
        return os.path.exists(self.entry.place)

    def keep_classes(self, names: Sequence[str]) -> None:
        """Say in the metadata which classes it has.

        Raises:
            ValueError: others are registered for it already.
        """
        metadata = MetadataCatalog.get(self.name)
        known = list(metadata.get("thing_classes") or names)
        if known != list(names):
            raise FaultError(
                kinds.OTHER_CLASSES,
                f"{self.where}: its classes are {list(names)}, and it is registered with {known} "
                "(a config registers its DATASETS.CLASS_NAMES, too); allowed: the same, as "
                f"`classes: {known}` in its entry of DATASETS.REGISTER states them",
            )
        metadata.thing_classes = list(names)

    def number_classes(self, theirs: Sequence[str]) -> tuple[list[str], dict[str, int]]:
        """Our classes in their order, and the place in it of each name in the data.

        Args:
            theirs: the names in the data, in its order.

        Raises:
            ValueError: `classes` or `rename` of the entry do not suit these names.
        """
        entry = self.entry
        if unknown := [name for name in entry.rename if name not in theirs]:
            raise FaultError(
                kinds.OTHER_CLASSES,
                f"{self.where}: `rename` of its entry has {unknown[0]!r}; allowed: the classes of "
                f"the data, {list(theirs)}",
            )
        ours = {name: entry.rename.get(name, name) for name in theirs}
        names = list(entry.classes) or list(dict.fromkeys(ours.values()))
        if missing := [name for name in ours.values() if name not in names]:
            raise FaultError(
                kinds.OTHER_CLASSES,
                f"{self.where}: it has the class {missing[0]!r}, which `classes` of its entry, "
                f"{names}, lacks; allowed: all classes of the data, or `rename` for those that "
                "have another name here",
            )
        return names, {name: names.index(our) for name, our in ours.items()}
