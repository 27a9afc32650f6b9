"""Images of the built-in shapes data set: coloured circles, rectangles and triangles.

Everything here is a function of a random generator, so an image can be drawn again from its seed.
Coordinates are continuous: x runs right, y runs down, in pixels from the top left corner of the
image, so that pixel (0, 0) covers [0, 1) x [0, 1) and a box spans the edges of what it encloses.
"""

from dataclasses import dataclass

import cv2
import numpy as np

SHAPES_CLASSES = ("circle", "rectangle", "triangle")

IMAGE_SIZE = 128  # pixels, height and width
MAX_OBJECTS = 5
SIZE_RANGE = (16.0, 64.0)  # pixels, the longer side of an object's box
MAX_ROTATION = 30.0  # degrees to either side
MAX_OVERLAP = 0.1  # of two boxes: intersection over the area of the smaller
MIN_CONTRAST = 90.0  # Euclidean distance of BGR colours, 0-255 each
PLACEMENT_TRIES = 30
SUPERSAMPLING = 8
CIRCLE_VERTICES = 32  # at a diameter of 64 px its sides stay within 0.16 px of the circle


@dataclass(frozen=True)
class Shape:
    """One drawn object. Its outline is the ground truth: box, area and pixels all follow from it.

    Args:
        category: index into the classes of its kind, here `SHAPES_CLASSES`.
        outline: M x 2, the vertices (x, y) of a simple polygon, in pixels.
        color: BGR, 0-255.
        truncated: whether the image's edge cuts it off; the outline is what lies inside.
    """

    category: int
    outline: np.ndarray
    color: tuple[float, float, float]
    truncated: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The tight box, XYXY absolute."""
        x0, y0 = self.outline.min(axis=0)
        x1, y1 = self.outline.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def area(self) -> float:
        """Area inside the outline, in square pixels."""
        x, y = self.outline.T
        return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def draw_image(
    rng: np.random.Generator, size: int = IMAGE_SIZE
) -> tuple[np.ndarray, tuple[Shape, ...]]:
    """Draw one image with 1 to `MAX_OBJECTS` objects.

    No object hides a pixel of another, so the ground truth is what is seen.

    Args:
        rng: the only source of randomness.
        size: height and width of the image, in pixels.

    Returns:
        The image, size x size x 3, BGR uint8, and its objects.
    """
    background, mean_color = draw_background(rng, size)
    shapes = sample_shapes(rng, mean_color, size)
    return render(background, shapes), shapes


def draw_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a colour with a gentle gradient and noise.

    Returns:
        size x size x 3, BGR float32 in 0-255, and its mean colour, 3.
    """
    color = rng.uniform(40.0, 215.0, size=3)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    ramp = (np.arange(size) + 0.5) / size - 0.5
    slope = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]  # size x size
    image = color + slope[:, :, None] * rng.uniform(-40.0, 40.0, size=3)
    image += rng.normal(0.0, 3.0, size=(size, size, 1))
    return np.clip(image, 0.0, 255.0).astype(np.float32), color


def sample_shapes(
    rng: np.random.Generator, background_color: np.ndarray, size: int
) -> tuple[Shape, ...]:
    """Choose classes, outlines, places and colours. An object that finds no place is left out."""
    shapes: list[Shape] = []
    taken = np.zeros((size, size), dtype=bool)
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        category = int(rng.integers(len(SHAPES_CLASSES)))
        color = sample_color(rng, background_color, MIN_CONTRAST)
        outline = _OUTLINES[SHAPES_CLASSES[category]](rng)
        outline = outline * (rng.uniform(*SIZE_RANGE) / np.ptp(outline, axis=0).max())
        for _ in range(PLACEMENT_TRIES):
            shape = Shape(category, _place(rng, outline, size), color)
            if any(box_overlap(shape.box, other.box) > MAX_OVERLAP for other in shapes):
                continue
            pixels = coverage(shape.outline, size) > 0.0
            if not np.any(pixels & taken):
                taken |= pixels
                shapes.append(shape)
                break
    return tuple(shapes)


def render(background: np.ndarray, shapes: tuple[Shape, ...]) -> np.ndarray:
    """Paint the shapes in order, with smooth edges.

    Args:
        background: size x size x 3, BGR float in 0-255; is not changed.

    Returns:
        size x size x 3, BGR uint8.
    """
    image = background.astype(np.float32)
    for shape in shapes:
        alpha = coverage(shape.outline, len(image))[:, :, None]
        image = image + alpha * (np.asarray(shape.color, dtype=np.float32) - image)
    return np.clip(np.rint(image), 0.0, 255.0).astype(np.uint8)


def coverage(outline: np.ndarray, size: int) -> np.ndarray:
    """The share of every pixel that lies inside the outline: size x size, float32, 0-1.

    OpenCV's own smooth edges reach about a pixel too far outside. Filling a finer grid and
    averaging keeps edges within 1 / SUPERSAMPLING pixels, so that boxes are tight.
    """
    # Pixel i of the fine grid has its centre at (i + 0.5) / SUPERSAMPLING.
    points = np.rint(outline * SUPERSAMPLING - 0.5).astype(np.int32)
    fine = np.zeros((size * SUPERSAMPLING, size * SUPERSAMPLING), dtype=np.uint8)
    cv2.fillPoly(fine, [points], (255,))
    coarse = cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
    return coarse.astype(np.float32) / np.float32(255.0)


def box_overlap(
    box: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    """Intersection over the area of the smaller box, boxes XYXY.

    Unlike IoU it is 1 for a box inside another, however large the other is.
    """
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0.0) * max(height, 0.0) / smaller


def _place(rng: np.random.Generator, outline: np.ndarray, size: int) -> np.ndarray:
    """Move an outline to a random place wholly inside the image."""
    low = outline.min(axis=0)
    room = size - np.ptp(outline, axis=0)
    # Two decimals are what the annotation files hold; rounding here keeps them exact.
    return np.round(outline - low + rng.uniform(0.0, 1.0, size=2) * room, 2)


def sample_color(
    rng: np.random.Generator, background_color: np.ndarray, min_contrast: float
) -> tuple[float, float, float]:
    """A BGR colour at least `min_contrast` away from the background's."""
    while True:
        color = rng.uniform(0.0, 255.0, size=3)
        if np.linalg.norm(color - background_color) >= min_contrast:
            blue, green, red = color.tolist()
            return blue, green, red


# -- outlines: M x 2, of any size and at any place --------------------------------------------


def _circle(rng: np.random.Generator) -> np.ndarray:
    # Vertices on both axes make the polygon's box the box of the circle.
    angles = 2.0 * np.pi * np.arange(CIRCLE_VERTICES) / CIRCLE_VERTICES
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rectangle(rng: np.random.Generator) -> np.ndarray:
    width = 1.6 ** rng.uniform(-1.0, 1.0)  # over a height of 1
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, 1.0], [0.0, 1.0]])
    return rotate(rng, corners, MAX_ROTATION)


def _triangle(rng: np.random.Generator) -> np.ndarray:
    width = rng.uniform(0.9, 1.4)
    apex = rng.uniform(0.25, 0.75) * width
    return rotate(rng, np.array([[0.0, 1.0], [width, 1.0], [apex, 0.0]]), MAX_ROTATION)


def rotate(rng: np.random.Generator, outline: np.ndarray, max_degrees: float) -> np.ndarray:
    """Turn an outline by a random angle, at most `max_degrees` to either side."""
    angle = np.deg2rad(rng.uniform(-max_degrees, max_degrees))
    cos, sin = np.cos(angle), np.sin(angle)
    return outline @ np.array([[cos, sin], [-sin, cos]])


_OUTLINES = {"circle": _circle, "rectangle": _rectangle, "triangle": _triangle}
