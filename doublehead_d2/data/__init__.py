"""Data sets: the built-in shapes, registered on import, and the check that files are there."""

from doublehead_d2.data.check import check_datasets
from doublehead_d2.data.shapes.builtin import register_shapes
from doublehead_d2.data.shapes.colors import COLORS_SHAPES_CLASSES
from doublehead_d2.data.shapes.easy import SHAPES_CLASSES
from doublehead_d2.data.shapes.hard import HARD_SHAPES_CLASSES
from doublehead_d2.data.shapes.layouts import write_shapes

__all__ = [
    "COLORS_SHAPES_CLASSES",
    "HARD_SHAPES_CLASSES",
    "SHAPES_CLASSES",
    "check_datasets",
    "register_shapes",
    "write_shapes",
]
