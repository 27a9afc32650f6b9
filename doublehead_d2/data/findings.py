"""What a look at a data set finds: faults that refuse it, notes, and what is in it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from doublehead_d2.data.census import Census
from doublehead_d2.data.kinds import NO_BOX, NOT_FINITE, WHOLE, Kind

SHOWN = 5  # faults that a message spells out, and examples of a kind that are kept

# No image has a side of a million pixels: what lies beyond is no coordinate.
LARGEST_COORDINATE = 1e6
COORDINATES = "finite numbers below 1,000,000 pixels"


@dataclass(frozen=True)
class Use:
    """What a run does with a data set."""

    training: bool = False
    evaluation: str = ""  # the data set's evaluator_type; "" where it is not evaluated
    mask_format: str = ""  # INPUT.MASK_FORMAT of a model with masks, else ""
    keypoints: bool = False
    skips_empty: bool = True  # training leaves out images without objects


class ImageFile(NamedTuple):
    """An image that a run will read, and its size in pixels as the annotations state it."""

    path: str
    width: float | None
    height: float | None


@dataclass
class Contents:
    """What is in a data set."""

    classes: list[str] = field(default_factory=list)  # by index; none: not known
    images: list[ImageFile] = field(default_factory=list)  # that the run will read
    objects: int | None = 0  # that train or are scored; None: it is not annotated
    notes: list[str] = field(default_factory=list)  # what the log of a run says of it
    census: Census = field(default_factory=Census)  # filled where all is reported


@dataclass
class Group:
    """All findings of a kind: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)


class FaultError(ValueError):
    """A fault beyond which nothing can be looked at."""

    def __init__(self, kind: Kind, message: str) -> None:
        """
        Args:
            kind: what it is.
            message: names the file, the value and what is allowed.
        """
        super().__init__(message)
        self.kind = kind


class Findings:
    """Collects what is found in a data set, by kind.

    One inspection serves two readers. A run wants to be refused at once, with the first faults and
    their number; the report wants all of it, and so goes on wherever that is possible.
    """

    def __init__(self, where: str, *, reports: bool = False) -> None:
        """
        Args:
            where: the data set and its file or folder, as messages begin.
            reports: all is collected: :meth:`refuse` does nothing.
        """
        self.where = where
        self.reports = reports
        self.groups: dict[Kind, Group] = {}  # in the order in which kinds were found
        self._first: list[str] = []
        self._count = 0

    def add(self, kind: Kind, example: str, count: int = 1) -> None:
        """Note something found.

        Args:
            kind: what it is.
            example: of a fault a sentence that names the record, its value and what is allowed; of
                anything else as the kind's `log` takes it, mostly the record.
            count: how many the example stands for.
        """
        group = self.groups.setdefault(kind, Group())
        group.count += count
        if len(group.first) < SHOWN:
            group.first.append(example)
        if kind.refuses:
            self._count += count
            if len(self._first) < SHOWN:
                self._first.append(example)

    def refuse(self) -> None:
        """Raise ValueError if there are faults and not all is reported."""
        if not self.reports:
            self.stop()

    def stop(self) -> None:
        """Raise ValueError if there are faults: nothing can be looked at beyond them."""
        if self._count == 1:
            raise ValueError(f"{self.where}: {self._first[0]}")
        if self._count:
            rest = f", the first {SHOWN} of them" if self._count > SHOWN else ""
            lines = "".join(f"\n- {fault}" for fault in self._first)
            raise ValueError(f"{self.where}: {self._count:,} faults{rest}:{lines}")

    def notes(self) -> list[str]:
        """What the log of a run says of what is no fault, a sentence without its end each."""
        told: dict[str, Group] = {}
        for kind, group in self.groups.items():
            if kind.log == WHOLE:
                told |= {text: Group(1, [text]) for text in group.first}
            elif kind.log:
                one = told.setdefault(kind.log, Group())
                one.count += group.count
                one.first += group.first
        return [_fill(log, x) for log, x in told.items()]

    @property
    def refuses(self) -> bool:
        """Whether there are faults."""
        return self._count > 0


def _fill(log: str, group: Group) -> str:
    return log.replace("{count}", f"{group.count:,}").replace("{first}", group.first[0])


def are_coordinates(numbers: Iterable[Any]) -> bool:
    """Whether all are finite numbers that can lie in an image."""
    try:
        # Comparisons with NaN are False.
        return all(-LARGEST_COORDINATE < x < LARGEST_COORDINATE for x in numbers)
    except (TypeError, ValueError):  # words, nested lists; arrays of rows
        return False


def kind_of_box(box: Any) -> Kind:
    """Why something is no box: a number is not finite, or it is another thing."""
    try:
        return NO_BOX if all(math.isfinite(x) for x in box) else NOT_FINITE
    except (TypeError, ValueError, OverflowError):
        return NO_BOX
