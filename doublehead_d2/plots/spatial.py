"""How alike the places of a head's map are: Figure 4 of Double-Head R-CNN.

Source: https://arxiv.org/abs/1904.06493, Section 3.4; issue 22.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from doublehead_d2.plots.style import COLUMN, KIND_NAMES, MODE_NAMES, PAGE, PRINT, plt, save

MAPS = {"output": "output map", "weights": "first weights"}
MOST_COLUMNS = 3


def plot_spatial(content: Mapping[str, Any], stem: str) -> list[str]:
    """Draw the spatial correlations of heads' maps as PNG and SVG.

    Args:
        content: as :func:`draw_spatial`.
        stem: path without the ending.

    Returns:
        the files.
    """
    with plt.rc_context(PRINT):
        return save(draw_spatial(content), stem)


def draw_spatial(content: Mapping[str, Any]) -> Figure:
    """A panel a map: a tile for each position, in it the cosine with every position.

    Its title has the mean over pairs of different positions.

    All panels have the same colours, from -1 to 1, whatever is in them, so that figures can be
    compared: what is not alike is white.

    Args:
        content: of spatial.json: "maps" with "model", "head", "kind", "of", "side",
            "mean_off_diagonal" and "correlation", side² x side², positions row by row; None is
            left empty.
    """
    maps = content["maps"]
    columns = min(MOST_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    width = COLUMN if columns == 1 else PAGE
    side = (width - 1.0) / columns
    figure, plots = plt.subplots(
        rows, columns, figsize=(width, rows * (side + 0.6)), squeeze=False, layout="compressed"
    )
    for plot in plots.flat[len(maps) :]:
        plot.set_axis_off()
    for plot, entry in zip(plots.flat, maps, strict=False):
        image = _draw(plot, np.array(entry["correlation"], float), entry["side"])
        plot.set_title(f"{_name(entry, maps)}, mean {_mean(entry)}")
    figure.colorbar(image, ax=plots, label="cosine of two positions", aspect=25)
    return figure


def tiled(correlation: np.ndarray, side: int) -> np.ndarray:
    """Positions' maps of similarity as one picture.

    Args:
        correlation: side² x side², positions row by row.
        side: positions in a row.

    Returns:
        side² x side²: in row `a·side + c` and column `b·side + d` the similarity of positions
        (row a, column b) and (row c, column d).
    """
    cells = correlation.reshape(side, side, side, side)
    return cells.transpose(0, 2, 1, 3).reshape(side**2, side**2)


def _draw(plot: Axes, correlation: np.ndarray, side: int) -> AxesImage:
    """Tiles with lines between them; in each its own position has a frame."""
    image = plot.imshow(tiled(correlation, side), cmap="RdBu_r", vmin=-1, vmax=1)
    for line in np.arange(1, side) * side - 0.5:
        plot.axhline(line, color="white", linewidth=1.5)
        plot.axvline(line, color="white", linewidth=1.5)
    for row, column in np.ndindex(side, side):
        corner = (column * (side + 1) - 0.5, row * (side + 1) - 0.5)
        plot.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=0.6))
    middles = np.arange(side) * side + (side - 1) / 2
    numbers = [str(i + 1) for i in range(side)]
    plot.set_xticks(middles, numbers)
    plot.set_yticks(middles, numbers)
    plot.tick_params(length=0)
    plot.set(xlabel="column of a position", ylabel="row of a position")
    return image


def _name(entry: Mapping[str, Any], maps: Sequence[Mapping[str, Any]]) -> str:
    """Model, head and map; heads of one kind are named by their task."""
    alike = {x["head"] for x in maps if (x["model"], x["kind"]) == (entry["model"], entry["kind"])}
    role = "reg_head" if entry["head"] == "reg_head" else "cls_head"
    head = MODE_NAMES[role] if len(alike) > 1 else KIND_NAMES.get(entry["kind"], "head")
    return f"{entry['model']}, {head}\n{MAPS[entry['of']]}"


def _mean(entry: Mapping[str, Any]) -> str:
    mean = entry["mean_off_diagonal"]
    return "–" if mean is None else f"{mean:.2f}"
