"""What all pictures of this package have in common: how they are drawn, coloured and written."""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["HEAD_COLOURS", "OTHER_COLOUR", "check_picture", "plt", "save"]

# The same head everywhere; in TSD's pictures, too, classification is orange and localisation blue.
HEAD_COLOURS = {"reg_head": "C0", "cls_head": "C1", "unfused": "C2", "fused": "C3"}
OTHER_COLOUR = "0.45"  # of a model that is scored in one way alone


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
        figure.savefig(path, dpi=dpi)
    plt.close(figure)
    return paths
