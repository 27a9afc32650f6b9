"""Where the labels of boxes stand in a picture. Boxes are XYXY in pixels."""

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]


def place_label(
    size: tuple[float, float],
    box: Box,
    taken: Sequence[Box],
    picture: tuple[float, float],
) -> Box:
    """A place for the label of a box that covers no other label, if there is one.

    In this order: at the corners of the box (above, below, inside, beside; first those within the
    picture), the nearest free place of the picture, and where all is taken the place where it
    covers least. A label lies within the picture, unless it is larger: then its beginning does.

    Args:
        size: (width, height) of the label.
        box: the box it belongs to.
        taken: labels placed before.
        picture: (width, height) of the picture.

    Returns:
        the label's box.
    """
    limits = np.maximum(np.array(picture) - size, 0)
    corners = _at_corners(size, box)
    places = np.clip(corners, 0, limits)  # P x 2, the upper left ends of the label
    # One that has to be moved into the picture may hide the object.
    places = places[np.argsort((places != corners).any(axis=1), kind="stable")]
    place, covered = _best(places, size, taken)
    if covered > 0:
        places = _everywhere(size, limits)
        order = np.argsort(_distance(places, size, box), kind="stable")
        place, _ = _best(places[order], size, taken)
    x, y = (float(value) for value in place)
    return x, y, x + size[0], y + size[1]


def _best(
    places: np.ndarray, size: tuple[float, float], taken: Sequence[Box]
) -> tuple[np.ndarray, float]:
    """The first of the places P x 2 that covers least of the labels, and how much."""
    found = []
    for start in range(0, len(places), 256):  # a free place is mostly among the first
        block = places[start : start + 256]
        covered = _covered(block, size, taken)
        first = int(np.argmin(covered))
        found.append((block[first], float(covered[first])))
        if found[-1][1] == 0:
            return found[-1]
    return min(found, key=lambda x: x[1])


def _at_corners(size: tuple[float, float], box: Box) -> np.ndarray:
    (width, height), (x0, y0, x1, y1) = size, box
    left, right = x0, x1 - width  # flush with a side of the box
    return np.array(
        [
            (left, y0 - height),
            (left, y1),
            (right, y0 - height),
            (right, y1),
            (left, y0),
            (left, y1 - height),
            (right, y0),
            (right, y1 - height),
            (x1, y0),
            (x1, y1 - height),
            (x0 - width, y0),
            (x0 - width, y1 - height),
        ]
    )


def _everywhere(size: tuple[float, float], limits: np.ndarray) -> np.ndarray:
    """Places all over the picture, a label's height apart."""
    xs, ys = (np.append(np.arange(0, limit, size[1]), limit) for limit in limits)
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def _covered(places: np.ndarray, size: tuple[float, float], taken: Sequence[Box]) -> np.ndarray:
    """Area of labels that a label would cover at each of the places: P x 2 to P."""
    labels = np.array(taken, dtype=float).reshape(1, -1, 4)
    low = np.maximum(places[:, None], labels[..., :2])
    high = np.minimum(places[:, None] + size, labels[..., 2:])
    return (high - low).clip(min=0).prod(axis=2).sum(axis=1)


def _distance(places: np.ndarray, size: tuple[float, float], box: Box) -> np.ndarray:
    """From the middle of a label at each of the places to the box, 0 inside it."""
    middle = places + np.array(size) / 2
    nearest = np.clip(middle, box[:2], box[2:])
    return np.linalg.norm(middle - nearest, axis=1)
