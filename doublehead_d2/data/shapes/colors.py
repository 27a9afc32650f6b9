"""The images of `easy.py` with more classes: a class is a shape and the colour it has most of."""

from dataclasses import replace

import numpy as np

from doublehead_d2.data.shapes.easy import SHAPES_CLASSES, Shape, draw_image

CHANNELS = ("blue", "green", "red")  # in the order of `Shape.color`
COLORS_SHAPES_CLASSES = tuple(f"{color} {shape}" for shape in SHAPES_CLASSES for color in CHANNELS)


def draw_colors_image(rng: np.random.Generator) -> tuple[np.ndarray, tuple[Shape, ...]]:
    """Draw the image that `draw_image` draws, its objects in classes of `COLORS_SHAPES_CLASSES`.

    Colours are drawn as in `easy.py`, so that some lie close to the border of two classes.

    Args:
        rng: the only source of randomness.

    Returns:
        The image, H x W x 3, BGR uint8, and its objects.
    """
    image, shapes = draw_image(rng)
    return image, tuple(
        replace(
            shape, category=shape.category * len(CHANNELS) + shape.color.index(max(shape.color))
        )
        for shape in shapes
    )
