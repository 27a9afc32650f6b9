"""Places of labels, by hand and by what must hold of them."""

import numpy as np
import pytest

from doublehead_d2.labels import Box, place_label

PICTURE = (200.0, 100.0)
SIZE = (30.0, 10.0)


@pytest.mark.parametrize(
    ("box", "taken", "expected"),
    [
        ((50, 40, 100, 80), [], (50, 30)),  # above
        ((50, 40, 100, 80), [(60, 20, 70, 31)], (50, 80)),  # taken above: below
        ((50, 40, 100, 80), [(0, 20, 200, 30)], (50, 30)),  # touching is not covering
        ((50, 5, 100, 80), [], (50, 80)),  # no room above: below
        ((150, 40, 190, 80), [], (150, 30)),
        ((180, 40, 200, 80), [], (170, 30)),  # flush right, within the picture
        # All corners above and below taken: inside
        ((50, 40, 100, 80), [(0, 0, 200, 40), (0, 80, 200, 100)], (50, 40)),
        ((0, 0, 200, 100), [], (0, 0)),  # the whole picture: inside
    ],
)
def test_places_by_hand(box: Box, taken: list[Box], expected: tuple) -> None:
    x, y = expected
    assert place_label(SIZE, box, taken, PICTURE) == (x, y, x + 30, y + 10)


def test_the_nearest_free_place_where_all_corners_are_taken() -> None:
    # Rows are free at y = 70, 80 and 90 alone; the label's middle is nearest at 70.
    place = place_label(SIZE, (90, 40, 110, 50), [(0, 0, 200, 70)], PICTURE)
    assert place[1] == 70 and place[0] <= 100 <= place[2]


def test_the_place_that_covers_least_where_all_is_taken() -> None:
    # Everything is taken twice but for the rows from 90 on, taken once.
    taken = [(0.0, 0.0, 200.0, 100.0), (0.0, 0.0, 200.0, 90.0)]
    assert place_label(SIZE, (0, 0, 20, 20), taken, PICTURE)[1] == 90


def test_a_label_larger_than_the_picture_begins_within_it() -> None:
    assert place_label((300, 10), (50, 2, 60, 4), [], (200, 8))[:2] == (0, 0)


@pytest.mark.parametrize("picture", [(384.0, 384.0), (1333.0, 800.0)])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_hundred_labels_cover_none(picture: tuple, spread: float) -> None:
    rng = np.random.default_rng(0)
    taken: list[Box] = []
    for middle in np.array(picture) * (0.5 + spread * (rng.random((100, 2)) - 0.5)):
        half = rng.uniform(5, 80, 2)
        size = (rng.uniform(40, 70), rng.uniform(8, 12))  # at most half of the smaller picture
        taken.append(place_label(size, (*(middle - half), *(middle + half)), taken, picture))
    labels = np.array(taken)
    assert (labels >= 0).all() and (labels[:, 2:] <= np.array(picture) + 1e-9).all()
    low = np.maximum(labels[:, None, :2], labels[None, :, :2])
    high = np.minimum(labels[:, None, 2:], labels[None, :, 2:])
    overlap = (high - low).clip(min=0).prod(axis=2)
    np.fill_diagonal(overlap, 0)
    assert overlap.max() == 0
