"""How many objects of which classes and sizes are in a data set."""

from array import array
from collections import Counter
from collections.abc import Sequence
from statistics import median_low
from typing import Any

from doublehead_d2.data.kinds import CLIPPED, INVERTED, OUTSIDE, REPEATED_BOX, ZERO_AREA, Kind

Box = Sequence[float]  # XYXY, absolute

TOLERANCE = 0.01  # pixels; by less, boxes leave their image through rounding
SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}  # COCO's, up to which area


def judge_box(box: Box, width: float, height: float) -> Kind | None:
    """What is odd about a box in an image of some size, if anything.

    Args:
        box: finite.
        width, height: of its image.
    """
    x0, y0, x1, y1 = box
    if x0 == x1 or y0 == y1:
        return ZERO_AREA
    left, right, top, bottom = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return OUTSIDE
    if x1 < x0 or y1 < y0:
        return INVERTED
    if min(left, top) < -TOLERANCE or right > width + TOLERANCE or bottom > height + TOLERANCE:
        return CLIPPED
    return None


class Census:
    """Counts objects, and finds those that are there twice."""

    def __init__(self) -> None:
        self.by_class: Counter[int] = Counter()  # by index
        self.by_size: Counter[str] = Counter()
        self.crowds = 0  # and difficult objects, which are counted by class, too
        self.image_sizes: list[tuple[float, float]] = []  # (width, height), of all images
        self.with_objects = 0  # images with an object that is no crowd
        self._sides = array("d")  # square roots of the areas of boxes
        self._seen: set[tuple[Any, ...]] = set()

    def count(self, image: object, class_index: int, box: Box, *, is_crowd: bool) -> Kind | None:
        """Count an object.

        Args:
            image: what tells its image from others.
            class_index: of its class.
            box: finite.
            is_crowd: it is a crowd, or difficult.

        Returns:
            `REPEATED_BOX` if it was counted before.
        """
        self.by_class[class_index] += 1
        self.crowds += is_crowd
        area = abs((box[2] - box[0]) * (box[3] - box[1]))
        self._sides.append(area**0.5)
        self.by_size[next(name for name, limit in SIZES.items() if area < limit)] += 1
        key = (image, class_index, *box)
        if key in self._seen:
            return REPEATED_BOX
        self._seen.add(key)
        return None

    @property
    def objects(self) -> int:
        """All objects, crowds too."""
        return self.by_class.total()

    def sides(self) -> tuple[float, float, float] | None:
        """Least, median and greatest square root of the area of a box."""
        if not self._sides:
            return None
        return min(self._sides), median_low(self._sides), max(self._sides)

    def images(self) -> list[tuple[float, float]]:
        """The smallest, the median and the largest image, as (width, height), by their area."""
        if not self.image_sizes:
            return []
        ordered = sorted(self.image_sizes, key=lambda size: size[0] * size[1])
        return [ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]]
