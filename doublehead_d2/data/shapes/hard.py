"""Images of the harder shapes data set, on which detection heads can differ.

What `easy.py` avoids is here on purpose: classes that resemble one another in pairs, objects of
12 to 96 pixels, cut off by the image's edge or hidden by others, little contrast, and clutter that
resembles parts of objects. Coordinates are those of `easy.py`.
"""

import cv2
import numpy as np

from doublehead_d2.data.shapes.easy import (
    IMAGE_SIZE,
    Shape,
    box_overlap,
    coverage,
    draw_background,
    render,
    rotate,
    sample_color,
)

# The members of a pair differ by their proportions alone, and a part of one may be the other.
HARD_SHAPES_CLASSES = ("circle", "ellipse", "square", "rectangle")

OBJECTS = (3, 9)  # at least and at most; those that find no place are left out
SIZE_RANGE = (12.0, 96.0)  # pixels, the longer side of a whole object's box, log-uniform
ELONGATION = (1.35, 2.0)  # longer over shorter axis of ellipses and rectangles
MIN_CONTRAST = 45.0  # Euclidean distance of BGR colours to the mean background, 0-255 each
MIN_INSIDE = 0.5  # share of an object's area inside the image
MIN_SIDE = 4.0  # pixels, of the box inside the image
MIN_VISIBLE = 0.5  # share of an object's pixels that later objects leave visible
MAX_BOX_OVERLAP = 0.7  # of two boxes: intersection over the area of the smaller
CLUTTER = (3, 8)  # pieces behind the objects, and half as many lines before them
NOISE = 5.0  # standard deviation of every pixel and channel, before clutter and objects
PLACEMENT_TRIES = 30
ROUND_VERTICES = 40


def draw_hard_image(
    rng: np.random.Generator, size: int = IMAGE_SIZE
) -> tuple[np.ndarray, tuple[Shape, ...]]:
    """Draw one image with 1 to 9 objects of `HARD_SHAPES_CLASSES`.

    A box encloses what of its object lies inside the image, also where another object hides it.

    Args:
        rng: the only source of randomness.
        size: height and width of the image, in pixels.

    Returns:
        The image, size x size x 3, BGR uint8, and its objects, those in front last.
    """
    background, mean_color = draw_background(rng, size)
    background += rng.normal(0.0, NOISE, size=background.shape).astype(np.float32)
    for _ in range(rng.integers(CLUTTER[0], CLUTTER[1] + 1)):
        _draw_clutter(rng, background)
    shapes = _sample_shapes(rng, mean_color, size)
    image = render(background, shapes)
    for _ in range(rng.integers(CLUTTER[0] // 2, CLUTTER[1] // 2 + 1)):
        _draw_line(rng, image)
    return image, shapes


def _sample_shapes(
    rng: np.random.Generator, background_color: np.ndarray, size: int
) -> tuple[Shape, ...]:
    """Choose classes, outlines, places and colours from back to front."""
    shapes: list[Shape] = []
    visible: list[np.ndarray] = []  # the pixels of each shape that are still seen
    whole: list[int] = []
    for _ in range(rng.integers(OBJECTS[0], OBJECTS[1] + 1)):
        category = int(rng.integers(len(HARD_SHAPES_CLASSES)))
        color = sample_color(rng, background_color, MIN_CONTRAST)
        outline = _OUTLINES[HARD_SHAPES_CLASSES[category]](rng)
        longer_side = np.exp(rng.uniform(*np.log(SIZE_RANGE)))
        outline = outline * (longer_side / np.ptp(outline, axis=0).max())
        for _ in range(PLACEMENT_TRIES):
            shape = _place(rng, category, outline, color, size)
            if shape is None or any(
                box_overlap(shape.box, other.box) > MAX_BOX_OVERLAP for other in shapes
            ):
                continue
            pixels = coverage(shape.outline, size) > 0.5
            left = [seen & ~pixels for seen in visible]
            hides = any(
                seen.sum() < MIN_VISIBLE * count for seen, count in zip(left, whole, strict=True)
            )
            if not hides and pixels.any():
                shapes.append(shape)
                visible = [*left, pixels]
                whole.append(int(pixels.sum()))
                break
    return tuple(shapes)


def _place(
    rng: np.random.Generator,
    category: int,
    outline: np.ndarray,
    color: tuple[float, float, float],
    size: int,
) -> Shape | None:
    """Move an outline to a random place, cut off at the image's edge; None if too little stays."""
    center = rng.uniform(0.0, size, size=2)
    moved = outline - (outline.min(axis=0) + outline.max(axis=0)) / 2.0 + center
    frame = np.array([[0, 0], [size, 0], [size, size], [0, size]], dtype=np.float32)
    inside_area, inside = cv2.intersectConvexConvex(moved.astype(np.float32), frame)
    whole_area = cv2.contourArea(moved.astype(np.float32))
    if inside is None or inside_area < MIN_INSIDE * whole_area:
        return None
    # Two decimals are what the annotation files hold; rounding here keeps them exact.
    cut = np.round(inside.reshape(-1, 2).astype(np.float64), 2)
    if np.ptp(cut, axis=0).min() < MIN_SIDE:
        return None
    return Shape(category, cut, color, truncated=bool(inside_area < 0.99 * whole_area))


# -- clutter -----------------------------------------------------------------------------------


def _draw_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Paint an arc, a corner or a blob: parts of objects, but none of the classes."""
    size = len(image)
    x, y = (int(v) for v in rng.integers(0, size, size=2))
    color = rng.uniform(0.0, 255.0, size=3).tolist()
    radius = int(rng.integers(3, size // 4))
    thickness = int(rng.integers(1, 4))
    kind = rng.integers(3)
    if kind == 0:
        start = float(rng.uniform(0.0, 360.0))
        arc = start + float(rng.uniform(60.0, 200.0))
        cv2.ellipse(image, (x, y), (radius, radius), 0.0, start, arc, color, thickness, cv2.LINE_AA)
    elif kind == 1:
        ends = np.rint([x, y] + rng.uniform(-radius, radius, size=(2, 2))).astype(np.int32)
        corner = np.stack([ends[0], np.array([x, y], dtype=np.int32), ends[1]])
        cv2.polylines(image, [corner], False, color, thickness, cv2.LINE_AA)
    else:
        blob: np.ndarray = np.zeros(image.shape[:2], dtype=np.float32)
        axes = (radius, max(2, radius // 2))
        cv2.ellipse(blob, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        blob = cv2.GaussianBlur(blob, (0, 0), max(1.0, radius / 3))[:, :, None]
        image += blob * 0.6 * (np.asarray(color, dtype=np.float32) - image)


def _draw_line(rng: np.random.Generator, image: np.ndarray) -> None:
    """Paint a thin line across the objects."""
    ends = rng.integers(0, len(image), size=4)
    color = rng.uniform(0.0, 255.0, size=3).tolist()
    start, end = (int(ends[0]), int(ends[1])), (int(ends[2]), int(ends[3]))
    cv2.line(image, start, end, color, 1, cv2.LINE_AA)


# -- outlines: convex, M x 2, of any size and at any place -------------------------------------


def _ellipse(rng: np.random.Generator, elongation: float) -> np.ndarray:
    angles = 2.0 * np.pi * np.arange(ROUND_VERTICES) / ROUND_VERTICES
    return rotate(rng, np.stack([elongation * np.cos(angles), np.sin(angles)], axis=1), 90.0)


def _rectangle(rng: np.random.Generator, elongation: float) -> np.ndarray:
    corners = np.array([[0.0, 0.0], [elongation, 0.0], [elongation, 1.0], [0.0, 1.0]])
    return rotate(rng, corners, 90.0)


_OUTLINES = {
    "circle": lambda rng: _ellipse(rng, 1.0),
    "ellipse": lambda rng: _ellipse(rng, rng.uniform(*ELONGATION)),
    "square": lambda rng: _rectangle(rng, 1.0),
    "rectangle": lambda rng: _rectangle(rng, rng.uniform(*ELONGATION)),
}
