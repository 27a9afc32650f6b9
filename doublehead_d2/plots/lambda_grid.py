"""AP over the balance weights of Double-Head-Ext: Figure 8 of Double-Head R-CNN.

Source: https://arxiv.org/abs/1904.06493, Section 5.2; issue 22.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from doublehead_d2.plots.style import PAGE, PRINT, plt, save

MOST_COLUMNS = 5  # of a grid of which four stand in a row
# Light ones, on which numbers and frames are seen
COLOURS = LinearSegmentedColormap.from_list("AP", plt.get_cmap("OrRd")(np.linspace(0, 0.6, 256)))
BEST, VANILLA = "blue", "green"  # frames: of the best fused model, and of the plain Double-Head


class Panel(NamedTuple):
    """A way of scoring, and at which λ a head cannot do its part."""

    mode: str
    title: str
    needs: tuple[tuple[str, float, str], ...]  # coordinate, its value, what is missing there


FC, CONV = r"$\lambda^\mathrm{fc}$", r"$\lambda^\mathrm{conv}$"
NO_CONV_SCORES = ("lambda_conv", 1, f"conv-head has no\nclasses at {CONV} = 1")
NO_CONV_BOXES = ("lambda_conv", 0, f"conv-head has no\nboxes at {CONV} = 0")
NO_FC_BOXES = ("lambda_fc", 1, f"fc-head has no\nboxes at {FC} = 1")
NO_FC_SCORES = ("lambda_fc", 0, f"fc-head has no\nclasses at {FC} = 0")
PANELS = (
    Panel("reg_head", "(a) conv-head alone", (NO_CONV_SCORES, NO_CONV_BOXES)),
    Panel("cls_head", "(b) fc-head alone", (NO_FC_BOXES, NO_FC_SCORES)),
    Panel("unfused", "(c) both, not fused", (NO_FC_SCORES, NO_CONV_BOXES)),
    Panel("fused", "(d) both, scores fused", (NO_CONV_SCORES, NO_FC_SCORES, NO_CONV_BOXES)),
)


class Grid(NamedTuple):
    """AP of a mode over pairs of λ."""

    lambda_fc: list[float]  # columns, ascending
    lambda_conv: list[float]  # rows, descending, so that 1 is on top as in the paper
    values: np.ndarray  # NaN where there is none
    trained: np.ndarray  # whether there is a model


def plot_lambda_grid(content: Mapping[str, Any], stem: str) -> list[str]:
    """Draw AP over pairs of λ as PNG and SVG.

    Args:
        content: as :func:`draw_lambda_grid`.
        stem: path without the ending.

    Returns:
        the files.
    """
    with plt.rc_context(PRINT):
        return save(draw_lambda_grid(content), stem)


def draw_lambda_grid(content: Mapping[str, Any]) -> Figure:
    """Four panels, one a way of scoring, with the same colours.

    The best of (d) has a blue frame, and in (c) the model with λ = 1 of both heads, the plain
    Double-Head, a green one. Cells without a number are hatched; below stands why.

    Args:
        content: of lambda_grid.json: "metric", and "points" with "lambda_fc", "lambda_conv" and
            "AP" by mode, in percent, None where there is none. Any set of pairs will do.
    """
    grids = [grid_of(content["points"], panel.mode) for panel in PANELS]
    rows = 1 if len(grids[0].lambda_fc) <= MOST_COLUMNS else 2
    columns = 4 // rows
    cell = (PAGE - 1.2) / columns / len(grids[0].lambda_fc)
    height = rows * (min(cell, 0.45) * len(grids[0].lambda_conv) + 1.0)
    figure, plots = plt.subplots(
        rows, columns, figsize=(PAGE, height), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    found = np.concatenate([grid.values[np.isfinite(grid.values)] for grid in grids])
    limits = (found.min(), found.max()) if len(found) else (0.0, 100.0)
    for plot, panel, grid in zip(plots.flat, PANELS, grids, strict=True):
        image = _draw(plot, grid, limits)
        plot.set_title(panel.title)
        plot.set_xlabel("\n".join([FC, *reasons(panel, grid)]), size=7)
    for plot in plots[:, 0]:
        plot.set_ylabel(CONV)
    unfused, fused = grids[2:]
    if 1 in unfused.lambda_fc and 1 in unfused.lambda_conv:
        _frame(plots.flat[2], unfused.lambda_conv.index(1), unfused.lambda_fc.index(1), VANILLA)
    if np.isfinite(fused.values).any():
        best = np.unravel_index(np.nanargmax(fused.values), fused.values.shape)
        _frame(plots.flat[3], int(best[0]), int(best[1]), BEST)
    figure.colorbar(image, ax=plots, label=f"{content['metric']} (%)", aspect=25)
    return figure


def grid_of(points: Sequence[Mapping[str, Any]], mode: str) -> Grid:
    """AP of a mode as a grid of all λ that there are.

    Args:
        points: as in lambda_grid.json.
        mode: a key of "AP".
    """
    columns = sorted({point["lambda_fc"] for point in points})
    rows = sorted({point["lambda_conv"] for point in points}, reverse=True)
    values = np.full((len(rows), len(columns)), np.nan)
    trained = np.zeros(values.shape, bool)
    for point in points:
        cell = rows.index(point["lambda_conv"]), columns.index(point["lambda_fc"])
        trained[cell] = True
        if (value := point["AP"].get(mode)) is not None:
            values[cell] = value
    return Grid(columns, rows, values, trained)


def reasons(panel: Panel, grid: Grid) -> list[str]:
    """Why cells have no number."""
    open_cells = np.isnan(grid.values) & grid.trained
    found = []
    for coordinate, value, words in panel.needs:
        numbers = np.array(getattr(grid, coordinate))
        hit = (numbers == value)[None] if coordinate == "lambda_fc" else (numbers == value)[:, None]
        if (open_cells & hit).any():
            found.append(words)
        open_cells = open_cells & ~hit
    if open_cells.any():
        found.append("not measured")
    if not grid.trained.all():
        found.append("pairs without a model")
    return [f"hatched: {found[0]}", *found[1:]] if found else []


def _draw(plot: Axes, grid: Grid, limits: tuple[float, float]) -> AxesImage:
    image = plot.imshow(grid.values, cmap=COLOURS, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(grid.values):
        if np.isnan(value):
            hatching: dict[str, Any] = {"hatch": "////", "edgecolor": "0.7", "linewidth": 0}
            corner = (column - 0.5, row - 0.5)
            plot.add_patch(Rectangle(corner, 1, 1, facecolor="white", **hatching))
            continue
        plot.text(column, row, f"{value:.1f}", ha="center", va="center", size=7)
    plot.set_xticks(range(len(grid.lambda_fc)), [f"{x:g}" for x in grid.lambda_fc])
    plot.set_yticks(range(len(grid.lambda_conv)), [f"{x:g}" for x in grid.lambda_conv])
    return image


def _frame(plot: Axes, row: int, column: int, colour: str) -> None:
    corner = (column - 0.47, row - 0.47)
    plot.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=colour, linewidth=2))
