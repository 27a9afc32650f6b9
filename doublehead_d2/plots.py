"""Curves of what the other modules of this package count; the only place that draws them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from doublehead_d2.analysis.errors import KINDS, STEPS
from doublehead_d2.benchmark.variants import VARIANTS

# The same head everywhere; in TSD's pictures, too, classification is orange and localisation blue.
HEAD_COLOURS = {"reg_head": "C0", "cls_head": "C1", "unfused": "C2", "fused": "C3"}
OTHER_COLOUR = "0.45"  # of a model that is scored in one way alone
MODEL_STYLES = (("-", ""), ("--", "///"))  # lines and bars of the first and the second model
MOST_NUMBERS = 15  # classes up to which a matrix shows its numbers
AXES = {"num_proposals": "proposals an image", "survivors": "share of survivors"}


def plot_scaling(content: Mapping[str, Any], path: str) -> None:
    """Seconds of inference over the number of proposals and over the share of survivors.

    A model has the same colour in all pictures.

    Args:
        content: as `tools.benchmark` records it. Runs that differ in nothing but the axis are
            joined to a curve of each model.
        path: picture to write.
    """
    runs = [run for run in content["runs"] if run["task"] == "inference"]
    axes = [axis for axis in AXES if len({run[axis] for run in runs}) > 1]
    assert axes, "no curve: all runs have the same proposals and survivors"
    figure, plots = plt.subplots(
        1, len(axes), figsize=(6 * len(axes), 4.5), squeeze=False, layout="constrained"
    )
    for plot, axis in zip(plots[0], axes, strict=True):
        found = curves(runs, axis)
        others = list(dict.fromkeys(label.partition(",")[2] for label in found))
        for label, points in found.items():
            name, _, setting = label.partition(",")
            number = list(VARIANTS).index(name) % 10
            style = {"color": f"C{number}", "marker": "os^vD<>pPX"[number], "fillstyle": "none"}
            style["linestyle"] = ("-", "--", ":", "-.")[others.index(setting) % 4]
            plot.plot(*zip(*points, strict=True), **style, label=label)
        plot.set(xlabel=AXES[axis], ylabel="seconds a batch", ylim=(0, None))
        plot.grid(alpha=0.3)
        plot.legend(fontsize="small")
    height, width = runs[0]["image_size"]
    figure.suptitle(
        f"{height}x{width}, {content['hardware']}, {content['precision']}, "
        f"medians of {content['repetitions']}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def check_picture(path: str) -> None:
    """Raise ValueError where matplotlib does not know the kind of picture that a name ends in."""
    known = Figure().canvas.get_supported_filetypes()
    kind = os.path.splitext(path)[1].lstrip(".").lower()
    if kind not in known:
        raise ValueError(f"'{path}' ends in '{kind}'; allowed: {', '.join(sorted(known))}")


def curves(runs: Sequence[dict[str, Any]], axis: str) -> dict[str, list[tuple[float, float]]]:
    """Points (value on the axis, seconds) of each model, for each value of the other settings."""
    others = [key for key in ("batch_size", *AXES) if key != axis]
    several = [key for key in others if len({run[key] for run in runs}) > 1]
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        setting = "".join(f", {key} {run[key]}" for key in several)
        for name, result in run["results"].items():
            found.setdefault(f"{name}{setting}", []).append((run[axis], result["seconds"]))
    return {label: sorted(points) for label, points in found.items()}


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
    paths = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            paths.append(os.path.join(folder, f"{name}.{kind}"))
            figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def _style(run: Mapping[str, Any], models: Sequence[str]) -> dict[str, str]:
    line, hatch = MODEL_STYLES[models.index(run["model"])]
    colour = HEAD_COLOURS.get(run["mode"], OTHER_COLOUR)
    return {"color": colour, "linestyle": line, "hatch": hatch}


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
