"""Counting objects, and what is odd about a box."""

import pytest

from doublehead_d2.data import kinds
from doublehead_d2.data.census import Census, judge_box


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((5, 5, 9, 9), None),
        ((0, 0, 100, 50), None),
        ((-0.005, 0, 100.005, 50), None),  # rounding
        ((5, 5, 5, 9), kinds.ZERO_AREA),
        ((5, 9, 9, 9), kinds.ZERO_AREA),
        ((200, 5, 200, 9), kinds.ZERO_AREA),  # of no width, wherever it is
        ((-9, 5, 0, 9), kinds.OUTSIDE),
        ((5, -9, 9, 0), kinds.OUTSIDE),
        ((100, 5, 109, 9), kinds.OUTSIDE),
        ((5, 50, 9, 59), kinds.OUTSIDE),
        ((9, 5, 5, 9), kinds.INVERTED),
        ((5, 9, 9, 5), kinds.INVERTED),
        ((109, 9, 101, 5), kinds.OUTSIDE),  # mirrored it is still outside
        ((-1, 5, 9, 9), kinds.CLIPPED),
        ((5, -1, 9, 9), kinds.CLIPPED),
        ((95, 5, 101, 9), kinds.CLIPPED),
        ((5, 45, 9, 51), kinds.CLIPPED),
    ],
)
def test_boxes_in_an_image_of_100_by_50(box: tuple, kind: kinds.Kind | None) -> None:
    assert judge_box(box, 100, 50) == kind


def test_counts() -> None:
    """Squares of 31, 32, 95 and 96 pixels: COCO's limits are areas of 32 and 96 squared."""
    census = Census()
    for key, size in enumerate([(40, 10), (10, 10), (20, 10), (30, 10)]):
        census.count_image(key, f"{key}.jpg", *size)
    for index, side in enumerate([31, 32, 95, 96]):
        assert census.count(index // 2, index % 2, (1, 2, 1 + side, 2 + side)) is None
    assert census.count(2, 1, (0, 0, 4, 9), is_crowd=True) is None
    assert census.by_size == {"small": 2, "medium": 2, "large": 1}
    assert census.by_class == {0: 2, 1: 3}
    assert (census.images, census.objects, census.crowds) == (4, 5, 1)
    assert census.without_objects() == ["2.jpg", "3.jpg"]  # a crowd is none that is trained on
    assert census.sides() == [6, 32, 96]  # of 6, 31, 32, 95, 96
    assert census.image_sizes() == [(10, 10), (20, 10), (40, 10)]  # the lower median of four


def test_repeated_boxes_are_of_one_image_class_and_place() -> None:
    census = Census()
    box = (1, 2, 30, 40)
    assert census.count(1, 0, box) is None
    assert census.count(2, 0, box) is None
    assert census.count(1, 1, box) is None
    assert census.count(1, 0, (1, 2, 30, 41)) is None
    assert census.count(1, 0, box) is kinds.REPEATED_BOX


def test_nothing_counted() -> None:
    census = Census()
    assert (census.images, census.objects, census.sides(), census.image_sizes()) == (0, 0, [], [])
