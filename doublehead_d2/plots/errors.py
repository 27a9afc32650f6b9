"""Pictures of where detectors' errors are."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from doublehead_d2.analysis.errors import KINDS, STEPS
from doublehead_d2.plots.style import HEAD_COLOURS, MODEL_STYLES, OTHER_COLOUR, plt, save

MOST_NUMBERS = 15  # classes up to which a matrix shows its numbers


def plot_errors(content: Mapping[str, Any], folder: str) -> list[str]:
    """Kinds of error, curves over thresholds and confusion matrices, each as PNG and SVG.

    A mode has the same colour in all pictures, a model the same lines and hatching.

    Args:
        content: as `tools.analyze_errors` writes it.
        folder: to write to.

    Returns:
        the files.
    """
    runs, iou = content["runs"], content["iou"]
    models = list(dict.fromkeys(run["model"] for run in runs))
    styles = [_style(run, models) for run in runs]
    figures = {
        "errors": _kinds_of_error(runs, styles, iou),
        "thresholds": _over_thresholds(runs, styles, iou),
        "confusion": _confusion(runs, [*content["classes"], "background"], iou),
    }
    return [
        path
        for name, figure in figures.items()
        for path in save(figure, os.path.join(folder, name), dpi=120)
    ]


def _style(run: Mapping[str, Any], models: Sequence[str]) -> dict[str, str]:
    model = MODEL_STYLES[models.index(run["model"])]
    colour = HEAD_COLOURS.get(run["mode"], OTHER_COLOUR)
    return {"color": colour, "linestyle": model.line, "hatch": model.hatch}


def _kinds_of_error(
    runs: Sequence[Mapping[str, Any]], styles: Sequence[Mapping[str, str]], iou: float
) -> Figure:
    """dAP of each kind, a bar a run."""
    figure, plot = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.8 / len(runs)
    for place, (run, style) in enumerate(zip(runs, styles, strict=True)):
        x = np.arange(len(KINDS)) + (place - (len(runs) - 1) / 2) * width
        gains = [run["errors"][kind]["dAP"] for kind in KINDS]
        plot.bar(
            x, gains, width, color=style["color"], hatch=style["hatch"], edgecolor="white",
            label=run["name"],
        )  # fmt: skip
    plot.set_xticks(range(len(KINDS)), list(KINDS))
    plot.set(ylabel=f"dAP, points of AP at IoU {iou:g}", title="What mending a kind would gain")
    plot.grid(axis="y", alpha=0.3)
    plot.set_axisbelow(True)
    plot.legend(fontsize="small")
    return figure


def _over_thresholds(
    runs: Sequence[Mapping[str, Any]], styles: Sequence[Mapping[str, str]], iou: float
) -> Figure:
    """Precision, recall and F1 over the score threshold; a dot at the best F1."""
    figure, plots = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    for place, (run, style) in enumerate(zip(runs, styles, strict=True)):
        line: dict[str, Any] = {"color": style["color"], "linestyle": style["linestyle"]}
        # Thinner ones lie on others where these coincide, as scores of one head do.
        line |= {"label": run["name"], "linewidth": max(1, 3.5 - 0.6 * place)}
        # None, where nothing is taken, becomes NaN, which is not drawn.
        precision, recall = (
            np.array(run["thresholds"][key], float) for key in ("precision", "recall")
        )
        total = precision + recall
        f1 = 2 * precision * recall / np.where(total > 0, total, np.nan)
        for plot, values in zip(plots, (precision, recall, f1), strict=True):
            plot.plot(STEPS, values, **line)
        if best := run["best_f1"]:
            plots[2].plot(best["threshold"], best["F1"], "o", color=style["color"])
    for plot, name in zip(plots, ("precision", "recall", "F1"), strict=True):
        plot.set(xlabel="score threshold", title=name, xlim=(0, 1), ylim=(0, 102))
        plot.grid(alpha=0.3)
    plots[0].set(ylabel=f"% at IoU {iou:g}, all classes together")
    plots[1].legend(fontsize="small")
    return figure


def _confusion(runs: Sequence[Mapping[str, Any]], names: Sequence[str], iou: float) -> Figure:
    """A matrix a run, coloured by the share of its row."""
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    side = 3.6 if len(names) <= MOST_NUMBERS else 8
    figure, plots = plt.subplots(
        rows, columns, figsize=(side * columns, side * rows), squeeze=False, layout="constrained"
    )
    for plot in plots.flat[len(runs) :]:
        plot.set_axis_off()
    for plot, run in zip(plots.flat, runs, strict=False):
        _draw_matrix(plot, np.array(run["confusion"]["matrix"], float), names)
        plot.set_title(f"{run['name']}\nscores from {run['confusion']['threshold']:.3f}", size=9)
    figure.suptitle(f"Objects and the detections paired with them (IoU from {iou:g})", size=10)
    return figure


def _draw_matrix(plot: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.where(totals > 0, totals, 1)
    plot.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 8 if len(names) <= MOST_NUMBERS else 4
    plot.set_xticks(range(len(names)), names, rotation=90, size=size)
    plot.set_yticks(range(len(names)), names, size=size)
    plot.set_xlabel("detection", size=size)
    plot.set_ylabel("object", size=size)
    if len(names) > MOST_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.5 else "black"
        plot.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, size=8)
