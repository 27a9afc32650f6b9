"""Curves of what detectors cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from doublehead_d2.benchmark.variants import VARIANTS
from doublehead_d2.plots.style import plt

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
