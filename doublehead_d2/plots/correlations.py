"""How scores follow IoUs: Figures 3 and A.2 of Double-Head R-CNN.

Source: https://arxiv.org/abs/1904.06493, Section 3.2; issue 22.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from doublehead_d2.plots.style import (
    COLUMN,
    DIFFICULTIES,
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

PROPOSALS = {"rpn": "RPN", "detections": "detections"}
FOUND = ("rpn", "detections")  # proposals that are the model's own
SHORT = {"all": "all objects", "medium difficulty": "medium"}
MOST_BARS = 10  # of a figure as wide as a column

Bar = tuple[str, str]  # proposals and group


def plot_correlations(content: Mapping[str, Any], stem: str, **options: Any) -> list[str]:
    """Draw the correlations of scores with IoUs as PNG and SVG.

    Args:
        content: as :func:`draw_correlations`.
        stem: path without the ending.
        options: as :func:`draw_correlations`.

    Returns:
        the files.
    """
    with plt.rc_context(PRINT):
        return save(draw_correlations(content, **options), stem)


def draw_correlations(
    content: Mapping[str, Any],
    *,
    groups: Sequence[str] = SIZES,
    found: Sequence[str] = FOUND,
    runs: Sequence[Run] | None = None,
    models: Sequence[str] | None = None,
) -> Figure:
    """Pearson correlations as bars with their intervals.

    To the left those of windows by group, to the right those of proposals of the model's own, of
    all objects. Without the latter there is one panel (Fig. A.2).

    Args:
        content: of correlation.json: "correlations" with "model", "mode", "kind", "proposals",
            "group", "pearson", "low" and "high", None where it is not defined, and "confidence".
        groups: of the windows.
        found: which of `FOUND` to draw.
        runs: models and modes to draw; None: all.
        models: all models in their order, as :func:`style.run_styles`.

    Raises:
        ValueError: a run has no correlation of a group.
    """
    entries = content["correlations"]
    styles = run_styles(entries, models)
    values = {(x["model"], x["mode"], x["proposals"], x["group"]): x for x in entries}
    drawn = list(styles if runs is None else runs)
    parts: list[list[Bar]] = [[("windows", group) for group in groups]]
    if found:
        parts.append([(proposals, "all") for proposals in found])
    for key in [run + bar for run in drawn for part in parts for bar in part]:
        if key not in values:
            raise ValueError(f"there is no correlation of {key}; there are {list(values)}")
    wide = len(drawn) * sum(map(len, parts)) > MOST_BARS
    figure, plots = plt.subplots(
        1, len(parts), figsize=(PAGE if wide else COLUMN, 2.1), sharey=True, squeeze=False,
        width_ratios=[len(part) for part in parts], layout="constrained",
    )  # fmt: skip
    for plot, part in zip(plots[0], parts, strict=True):
        table = [(styles[run], [values[run + bar] for bar in part]) for run in drawn]
        _draw(plot, table)
        _name(plot, part)
    plots[0, 0].set_ylabel("Pearson correlation\nof score and IoU")
    by_class = set(groups) <= set(DIFFICULTIES)
    plots[0, 0].set_xlabel(f"windows, by {'class' if by_class else 'size'}")
    if found:
        plots[0, 1].set_xlabel("the model's own")
    add_legend(figure, plots[0, 0])
    return figure


def _draw(plot: Axes, table: Sequence[tuple[RunStyle, Sequence[Mapping[str, Any]]]]) -> None:
    """Bars of the runs side by side at each place."""
    width = 0.8 / len(table)
    for number, (style, bars) in enumerate(table):
        x = np.arange(len(bars)) + (number - (len(table) - 1) / 2) * width
        # None, where it is not defined, becomes NaN, which is not drawn.
        height, low, high = (
            np.array([bar[key] for bar in bars], float) for key in ("pearson", "low", "high")
        )
        plot.bar(
            x, height, width, color=style.colour, hatch=style.model.hatch, edgecolor="white",
            label=style.label, linewidth=0.5,
        )  # fmt: skip
        # Around its own middle: a bootstrap interval may leave the value out.
        interval: dict[str, Any] = {
            "fmt": "none",
            "ecolor": "0.2",
            "elinewidth": 0.8,
            "capsize": 1.5,
        }
        plot.errorbar(x, (low + high) / 2, (high - low) / 2, **interval)
        for place, value in zip(x, height, strict=True):
            if np.isnan(value):
                plot.text(place, 0, "–", ha="center", va="bottom", size=7)
    plot.axhline(0, color="0.2", linewidth=0.6)
    plot.grid(axis="y", alpha=0.3, linewidth=0.4)
    plot.set_axisbelow(True)


def _name(plot: Axes, part: Sequence[Bar]) -> None:
    names = [
        SHORT.get(group, group) if proposals == "windows" else PROPOSALS[proposals]
        for proposals, group in part
    ]
    plot.set_xticks(range(len(part)), names)
