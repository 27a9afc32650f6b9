"""Weights that others published, in the keys of this package."""

from doublehead_d2.checkpoint.checkpointer import DoubleHeadCheckpointer
from doublehead_d2.checkpoint.convert import convert_checkpoint

__all__ = ["DoubleHeadCheckpointer", "convert_checkpoint"]
