"""Where the windows around an object lie, and how many of each IoU there are.

Source: https://arxiv.org/abs/1904.06493, Section 3.1, which gives no rule; issue 22.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from doublehead_d2.analysis.windows import BINS
from doublehead_d2.plots.style import PAGE, PRINT, plt, save

SHOWN = (0.25, 0.5, 0.75)  # IoUs whose windows are drawn
WIDTH = 0.0125  # of IoUs to either side: those that the rule has there


def plot_rule(boxes: Tensor, ious: Tensor, stem: str) -> list[str]:
    """Draw the windows around one object as PNG and SVG.

    Args:
        boxes, ious: as :func:`draw_rule`.
        stem: path without the ending.

    Returns:
        the files.
    """
    with plt.rc_context(PRINT):
        return save(draw_rule(boxes.numpy(), ious.numpy()), stem)


def draw_rule(boxes: np.ndarray, ious: np.ndarray) -> Figure:
    """A panel for some IoUs with the windows of that IoU, and one with their number by bin.

    Args:
        boxes: R x 4, XYXY; the object's own box first.
        ious: R, with the object.
    """
    figure, plots = plt.subplots(1, len(SHOWN) + 1, figsize=(PAGE, 1.9), layout="constrained")
    x0, y0, x1, y1 = boxes[0]
    for plot, iou in zip(plots, SHOWN, strict=False):
        near = boxes[np.abs(ious - iou) <= WIDTH]
        for box in near:
            plot.add_patch(_outline(box, color="0.45", linewidth=0.25, alpha=0.5))
        plot.add_patch(_outline(boxes[0], color="black", linewidth=1.2))
        reach = 1.3 * (boxes[0, 2:] - boxes[0, :2])
        plot.set(xlim=(x0 - reach[0], x1 + reach[0]), ylim=(y1 + reach[1], y0 - reach[1]))
        plot.set_aspect("equal")
        plot.set_xticks([])
        plot.set_yticks([])
        plot.set_title(f"{len(near)} windows of IoU {iou:g}")
    counts, edges = np.histogram(ious, bins=np.linspace(0, 1, BINS + 1))
    plots[-1].bar(edges[:-1], counts, width=1 / BINS, align="edge", color="0.6", edgecolor="white")
    plots[-1].set(xlabel="IoU of window", title=f"{len(ious):,} windows by IoU", xlim=(0, 1))
    return figure


def _outline(box: Sequence[float] | np.ndarray, **style: Any) -> Rectangle:
    x0, y0, x1, y1 = box
    return Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style)
