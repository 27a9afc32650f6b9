"""What a look at a data set finds: faults that refuse it, notes, and what is in it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SHOWN = 5  # faults that a message spells out

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
    notes: list[str] = field(default_factory=list)


class Faults:
    """Collects what is wrong with a data set; refuses it with the first faults and the count."""

    def __init__(self, where: str) -> None:
        """
        Args:
            where: the data set and its file or folder, as messages begin.
        """
        self._where = where
        self._first: list[str] = []
        self._count = 0

    def add(self, fault: str) -> None:
        """A sentence that names the record, its value and what is allowed."""
        self._count += 1
        if self._count <= SHOWN:
            self._first.append(fault)

    def refuse(self) -> None:
        """Raise ValueError if there are any."""
        if self._count == 1:
            raise ValueError(f"{self._where}: {self._first[0]}")
        if self._count:
            rest = f", the first {SHOWN} of them" if self._count > SHOWN else ""
            lines = "".join(f"\n- {fault}" for fault in self._first)
            raise ValueError(f"{self._where}: {self._count:,} faults{rest}:{lines}")


def are_coordinates(numbers: Iterable[Any]) -> bool:
    """Whether all are finite numbers that can lie in an image."""
    try:
        # Comparisons with NaN are False.
        return all(-LARGEST_COORDINATE < x < LARGEST_COORDINATE for x in numbers)
    except (TypeError, ValueError):  # words, nested lists; arrays of rows
        return False
