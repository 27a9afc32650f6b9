"""How many objects of which classes and sizes are in a data set."""

from array import array
from collections import Counter
from collections.abc import Sequence
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
    """Counts images and objects, and finds objects that are there twice."""

    def __init__(self) -> None:
        self.by_class: Counter[int] = Counter()  # objects by index, crowds too
        self.by_size: Counter[str] = Counter()  # by the area of the box
        self.crowds = 0
        self._images: dict[Any, tuple[str, float, float]] = {}  # name, width, height
        self._with_objects: set[Any] = set()
        self._sides = array("d")  # square roots of the areas of boxes
        self._seen: set[tuple[Any, ...]] = set()

    def count_image(self, image: Any, name: str, width: float, height: float) -> None:
        """Count an image.

        Args:
            image: what tells it from others.
            name: as people know it.
            width, height: in pixels.
        """
        self._images[image] = (name, width, height)

    def count(
        self, image: Any, class_index: int, box: Box, *, is_crowd: bool = False
    ) -> Kind | None:
        """Count an object.

        Args:
            image: what tells its image from others.
            class_index: of its class.
            box: finite.
            is_crowd: it is not trained on.

        Returns:
            `REPEATED_BOX` if it was counted before.
        """
        self.by_class[class_index] += 1
        self.crowds += is_crowd
        if not is_crowd:
            self._with_objects.add(image)
        area = abs((box[2] - box[0]) * (box[3] - box[1]))
        self._sides.append(area**0.5)
        self.by_size[next(name for name, limit in SIZES.items() if area < limit)] += 1
        key = (image, class_index, *box)
        if key in self._seen:
            return REPEATED_BOX
        self._seen.add(key)
        return None

    @property
    def images(self) -> int:
        """All images, those without objects, too."""
        return len(self._images)

    @property
    def objects(self) -> int:
        """All objects, crowds too."""
        return sum(self.by_class.values())

    def without_objects(self) -> list[str]:
        """Names of images without an object that is no crowd."""
        return [x[0] for key, x in self._images.items() if key not in self._with_objects]

    def sides(self) -> list[float]:
        """Least, median and greatest square root of the area of a box; none without boxes."""
        ordered = sorted(self._sides)
        return [ordered[i] for i in _ends_and_middle(len(ordered))]

    def image_sizes(self) -> list[tuple[float, float]]:
        """The least, the median and the greatest image by area, as (width, height)."""
        ordered = sorted((x[1:] for x in self._images.values()), key=lambda size: size[0] * size[1])
        return [ordered[i] for i in _ends_and_middle(len(ordered))]


def _ends_and_middle(count: int) -> list[int]:
    """Indices of the first, the median (of an even number the lower) and the last."""
    return [0, (count - 1) // 2, count - 1] if count else []
