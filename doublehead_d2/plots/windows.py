"""What heads say of windows around objects: Figures 2, 6, 7, A.1 and A.3 of Double-Head R-CNN.

Source: https://arxiv.org/abs/1904.06493, Section 3.1; issue 22.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from doublehead_d2.plots.style import (
    COLUMN,
    GROUP_NAMES,
    PAGE,
    PRINT,
    SIZES,
    Run,
    RunStyle,
    add_legend,
    plt,
    run_styles,
    save,
)

Lines = Sequence[tuple[RunStyle, Mapping[str, Any]]]  # a curve of windows.json and its style


class Quantity(NamedTuple):
    """What is drawn over the IoU of windows."""

    key: str  # of "<key>_mean" and "<key>_deviation"
    name: str


SCORE = Quantity("score", "score (probability)")
IOU = Quantity("iou", "IoU of regressed box")
WINDOW_IOU = "IoU of window"
MARKED = 3  # every so many bins have a marker, so that lines are seen between them


def plot_windows(content: Mapping[str, Any], stem: str, **options: Any) -> list[str]:
    """Draw what heads say of windows as PNG and SVG.

    Args:
        content: as :func:`draw_windows`.
        stem: path without the ending.
        options: as :func:`draw_windows`.

    Returns:
        the files.
    """
    with plt.rc_context(PRINT):
        return save(draw_windows(content, **options), stem)


def draw_windows(
    content: Mapping[str, Any],
    *,
    groups: Sequence[str] = SIZES,
    runs: Sequence[Run] | None = None,
    models: Sequence[str] | None = None,
    bands: bool = True,
    zoom: tuple[float, float] | None = None,
) -> Figure:
    """Scores, and IoUs of regressed boxes with the object, over IoUs of windows with the object.

    Several groups have a column each, scores above and IoUs below (Fig. 2, A.1). One group has both
    side by side (Fig. 6, A.3), or with `zoom` one above the other, each with a part of it enlarged
    (Fig. 7).

    Args:
        content: of windows.json: "curves" with "model", "mode", "kind", "group" and, for each of
            equal bins from 0 to 1, "score_mean", "score_deviation", "iou_mean" and "iou_deviation",
            None where a bin is empty.
        groups: to draw.
        runs: models and modes to draw; None: all.
        models: all models in their order, as :func:`style.run_styles`.
        bands: whether means have bands of one standard deviation to either side.
        zoom: IoUs of windows between which means are enlarged; for one group.

    Raises:
        ValueError: a run has no curve of a group, or `zoom` is given for several groups.
    """
    if zoom is not None and len(groups) != 1:
        raise ValueError(f"zoom is {zoom} and groups are {list(groups)}; allowed: one group")
    styles = run_styles(content["curves"], models)
    curves = {(x["model"], x["mode"], x["group"]): x for x in content["curves"]}
    lines: dict[str, Lines] = {}
    for group in groups:
        keys = [(*run, group) for run in (styles if runs is None else runs)]
        if missing := [key for key in keys if key not in curves]:
            raise ValueError(f"there is no curve of {missing[0]}; there are {list(curves)}")
        lines[group] = [(styles[key[:2]], curves[key]) for key in keys]
    if zoom is not None:
        figure, last = _enlarged(lines[groups[0]], bands, zoom)
    elif len(groups) == 1:
        figure, last = _side_by_side(lines[groups[0]], bands)
    else:
        figure, last = _columns(lines, bands)
    add_legend(figure, last)
    return figure


def _columns(lines: Mapping[str, Lines], bands: bool) -> tuple[Figure, Axes]:
    figure, plots = plt.subplots(
        2, len(lines), figsize=(PAGE, 3.8), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, (group, drawn) in zip(plots.T, lines.items(), strict=True):
        for plot, quantity in zip(column, (SCORE, IOU), strict=True):
            _draw(plot, drawn, quantity, bands)
        column[0].set_title(GROUP_NAMES.get(group, group))
        column[-1].set_xlabel(WINDOW_IOU)
    for plot, quantity in zip(plots[:, 0], (SCORE, IOU), strict=True):
        plot.set_ylabel(quantity.name)
    return figure, plots[-1, -1]


def _side_by_side(lines: Lines, bands: bool) -> tuple[Figure, Axes]:
    figure, plots = plt.subplots(1, 2, figsize=(COLUMN, 1.8), layout="constrained")
    for plot, quantity in zip(plots, (SCORE, IOU), strict=True):
        _draw(plot, lines, quantity, bands)
        plot.set(xlabel=WINDOW_IOU, ylabel=quantity.name)
    return figure, plots[-1]


def _enlarged(lines: Lines, bands: bool, zoom: tuple[float, float]) -> tuple[Figure, Axes]:
    figure, plots = plt.subplots(2, 2, figsize=(COLUMN, 3.4), layout="constrained")
    letters = iter("abcd")
    for (whole, part), quantity in zip(plots, (SCORE, IOU), strict=True):
        _draw(whole, lines, quantity, bands)
        _draw(part, lines, quantity, bands=False, markers=1)
        letter = next(letters)
        whole.set_title(f"({letter})")
        part.set_title(f"({next(letters)}) box in ({letter})")
        low, high = _range(lines, quantity, zoom)
        part.set(xlim=zoom, ylim=(low, high))
        box = Rectangle((zoom[0], low), zoom[1] - zoom[0], high - low, fill=False, edgecolor="0.2")
        whole.add_patch(box)
        whole.set_ylabel(quantity.name)
    for plot in plots[-1]:
        plot.set_xlabel(WINDOW_IOU)
    return figure, plots[-1, 0]


def _range(lines: Lines, quantity: Quantity, zoom: tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest mean of the enlarged part, and a little more."""
    means = [_series(curve, quantity, "mean") for _, curve in lines]
    inside = [y[(x >= zoom[0]) & (x <= zoom[1])] for x, y in means]
    found = np.concatenate(inside)
    found = found[np.isfinite(found)]
    low, high = (found.min(), found.max()) if len(found) else (0.0, 1.0)
    margin = 0.1 * (high - low) + 0.005
    return float(low - margin), float(high + margin)


def _draw(plot: Axes, lines: Lines, quantity: Quantity, bands: bool, markers: int = MARKED) -> None:
    """Curves with a marker at every so many bins, each curve's at others."""
    for number, (style, curve) in enumerate(lines):
        x, mean = _series(curve, quantity, "mean")
        plot.plot(x, mean, **style.curve, markevery=(number % markers, markers))
        if bands:
            _, deviation = _series(curve, quantity, "deviation")
            plot.fill_between(
                x, mean - deviation, mean + deviation, color=style.colour, alpha=0.12, linewidth=0
            )
            edge = {"color": style.colour, "linestyle": style.model.line, "linewidth": 0.5}
            for end in (mean - deviation, mean + deviation):
                plot.plot(x, end, **edge, alpha=0.6)
    if quantity is IOU:
        plot.plot([0, 1], [0, 1], color="0.6", linewidth=0.6, label="no regression")
    plot.set(xlim=(0, 1), ylim=(0, 1))
    plot.grid(alpha=0.3, linewidth=0.4)


def _series(
    curve: Mapping[str, Any], quantity: Quantity, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Middles of the bins, and their values; NaN, which is not drawn, where a bin is empty."""
    values = np.array(curve[f"{quantity.key}_{what}"], float)
    return (np.arange(len(values)) + 0.5) / len(values), values
