"""Curves and figures of what the other modules count; the only room that draws them."""

from doublehead_d2.plots.errors import plot_errors
from doublehead_d2.plots.scaling import curves, plot_scaling
from doublehead_d2.plots.style import HEAD_COLOURS, check_picture

__all__ = ["HEAD_COLOURS", "check_picture", "curves", "plot_errors", "plot_scaling"]
