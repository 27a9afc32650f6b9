"""Curves and figures of what the other modules count; the only room that draws them."""

from doublehead_d2.plots.argument import plot_all_correlations, plot_all_windows
from doublehead_d2.plots.correlations import plot_correlations
from doublehead_d2.plots.errors import plot_errors
from doublehead_d2.plots.lambda_grid import plot_lambda_grid
from doublehead_d2.plots.rule import plot_rule
from doublehead_d2.plots.scaling import curves, plot_scaling
from doublehead_d2.plots.spatial import plot_spatial
from doublehead_d2.plots.style import DIFFICULTIES, HEAD_COLOURS, SIZES, check_picture
from doublehead_d2.plots.windows import plot_windows

__all__ = [
    "DIFFICULTIES",
    "HEAD_COLOURS",
    "SIZES",
    "check_picture",
    "curves",
    "plot_all_correlations",
    "plot_all_windows",
    "plot_correlations",
    "plot_errors",
    "plot_lambda_grid",
    "plot_rule",
    "plot_scaling",
    "plot_spatial",
    "plot_windows",
]
