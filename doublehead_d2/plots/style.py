"""What all pictures of this package have in common: how they are drawn, coloured and written."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The same head everywhere; in TSD's pictures, too, classification is orange and localisation blue.
HEAD_COLOURS = {"reg_head": "C0", "cls_head": "C1", "unfused": "C2", "fused": "C3"}
OTHER_COLOUR = "0.45"  # of a model that is scored in one way alone
# The paper's question is what a head is made of, whichever task it has.
KIND_COLOURS = {"conv": HEAD_COLOURS["reg_head"], "fc": HEAD_COLOURS["cls_head"]}
KIND_NAMES = {"conv": "conv-head", "fc": "fc-head"}
MODE_NAMES = {"reg_head": "regression head", "cls_head": "classification head"}

Run = tuple[str, str]  # model and mode

# Groups of objects: by COCO's sizes in the image as annotated, and by thirds of the classes
SIZES = ("small", "medium", "large")
DIFFICULTIES = ("easy", "medium difficulty", "hard")
GROUP_NAMES = {
    "all": "all objects",
    "small": "small objects (below 32² px)",
    "medium": "medium objects",
    "large": "large objects (above 96² px)",
    "easy": "easy classes",
    "medium difficulty": "medium classes",
    "hard": "hard classes",
}

# Inches: a column and a page of a paper with two columns
COLUMN, PAGE = 3.3, 7.0
# No text is smaller than 7 points where a figure has these widths.
PRINT: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.handlelength": 3.2,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "doublehead_d2",  # the same figure is the same file
}


class ModelStyle(NamedTuple):
    """What tells the models of a picture apart."""

    line: Any
    marker: str
    hatch: str


# Of the first, the second ... model; a picture of more begins again.
MODEL_STYLES = (
    ModelStyle("-", "o", ""),
    ModelStyle("--", "s", "///"),
    ModelStyle(":", "^", "..."),
    ModelStyle("-.", "D", "xxx"),
    ModelStyle((0, (6, 1, 1, 1, 1, 1)), "v", "\\\\\\"),
    ModelStyle((0, (8, 2)), "P", "|||"),
    ModelStyle((0, (1, 3)), "X", "---"),
    ModelStyle((0, (3, 1, 1, 1)), "*", "+++"),
)


class RunStyle(NamedTuple):
    """How a mode of a model is drawn."""

    label: str
    colour: str
    model: ModelStyle
    fill: str  # of markers: "full", or "none" for a second head of the same kind

    @property
    def curve(self) -> dict[str, Any]:
        """What `Axes.plot` takes."""
        return {
            "label": self.label,
            "color": self.colour,
            "linestyle": self.model.line,
            "marker": self.model.marker,
            "fillstyle": self.fill,
        }


def run_styles(
    entries: Iterable[Mapping[str, Any]], models: Sequence[str] | None = None
) -> dict[Run, RunStyle]:
    """Colours by head and lines by model, the same in every figure of the same models.

    Args:
        entries: with "model", "mode" and "kind", each as often as it likes.
        models: all models in their order, which lines and hatches follow; None: as they come.

    Returns:
        a style for each model and mode, in the order of `entries`.

    Raises:
        ValueError: `models` lacks one.
    """
    kinds = {(entry["model"], entry["mode"]): entry["kind"] for entry in entries}
    order = list(dict.fromkeys(model for model, _ in kinds)) if models is None else list(models)
    styles: dict[Run, RunStyle] = {}
    for (model, mode), kind in kinds.items():
        if model not in order:
            raise ValueError(f"models are {order}; '{model}' is drawn, too")
        others = {m: k for (name, m), k in kinds.items() if name == model and m != mode}
        colour = KIND_COLOURS.get(kind)
        if colour is None:
            colour = HEAD_COLOURS.get(mode, OTHER_COLOUR) if kind == "both" else OTHER_COLOUR
        alike = [m for m, k in others.items() if k == kind]
        seen = any((model, m) in styles for m in alike)
        head = MODE_NAMES.get(mode, mode) if alike else KIND_NAMES.get(kind, mode)
        style = MODEL_STYLES[order.index(model) % len(MODEL_STYLES)]
        label = f"{model}, {head}" if others else model
        styles[model, mode] = RunStyle(label, colour, style, "none" if seen else "full")
    return styles


def add_legend(figure: Figure, plot: Axes) -> None:
    """Put the legend of a panel above all panels, where it covers no curve.

    The figure grows by its lines. As many entries stand side by side as fit.

    Args:
        figure: of constrained layout, as wide as a column or a page.
        plot: its entries are those of all panels.
    """
    handles, labels = plot.get_legend_handles_labels()
    width = 0.056 * max(map(len, labels)) + 0.55  # inches; of 7 points, and its handle
    columns = max(1, min(len(labels), int(figure.get_figwidth() / width)))
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * lines)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def check_picture(path: str) -> None:
    """Raise ValueError where matplotlib does not know the kind of picture that a name ends in."""
    known = Figure().canvas.get_supported_filetypes()
    kind = os.path.splitext(path)[1].lstrip(".").lower()
    if kind not in known:
        raise ValueError(f"'{path}' ends in '{kind}'; allowed: {', '.join(sorted(known))}")


def save(figure: Figure, stem: str, dpi: int = 200) -> list[str]:
    """Write a figure as PNG and as SVG, and close it.

    Args:
        figure: made by `plt`.
        stem: path without the ending.
        dpi: pixels an inch of the PNG.

    Returns:
        the files.
    """
    paths = [f"{stem}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        # Without the time, the same figure is the same file.
        figure.savefig(path, dpi=dpi, metadata={"Date": None} if path.endswith("svg") else None)
    plt.close(figure)
    return paths
