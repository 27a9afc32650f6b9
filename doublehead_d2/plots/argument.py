"""Which pictures are drawn of the numbers of the Double-Head paper's argument.

Source: https://arxiv.org/abs/1904.06493, Section 3 and Appendix A; issue 22.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from doublehead_d2.plots.correlations import FOUND, plot_correlations
from doublehead_d2.plots.style import DIFFICULTIES, SIZES, Run
from doublehead_d2.plots.windows import plot_windows

GROUPINGS = {"size": SIZES, "difficulty": DIFFICULTIES}
ZOOM = (0.7, 1.0)  # IoUs of windows that Figure 7 enlarges


def plot_all_windows(content: Mapping[str, Any], folder: str) -> list[str]:
    """Figures 2 and A.1, those for whose groups there are objects, and 6, 7 and A.3.

    Args:
        content: of windows.json.
        folder: to write to.

    Returns:
        the files.
    """
    options: dict[str, Any] = {"runs": _told_apart(content["curves"])}
    written: list[str] = []
    for title, groups in GROUPINGS.items():
        filled = {x["group"] for x in content["curves"] if any(x["count"])}
        if known := [group for group in groups if group in filled]:
            stem = os.path.join(folder, f"windows_by_{title}")
            written += plot_windows(content, stem, groups=known, **options)
    stem = os.path.join(folder, "windows")
    written += plot_windows(content, stem, groups=["all"], bands=False, **options)
    written += plot_windows(content, f"{stem}_enlarged", groups=["all"], zoom=ZOOM, **options)
    return written


def plot_all_correlations(content: Mapping[str, Any], folder: str) -> list[str]:
    """Figures 3 and A.2, without groups that have no correlation.

    Args:
        content: of correlations.json.
        folder: to write to.

    Returns:
        the files.
    """
    entries = content["correlations"]
    defined = {x["group"] for x in entries if x["pearson"] is not None}
    written: list[str] = []
    for title, groups in GROUPINGS.items():
        known = [group for group in groups if group in defined]
        found = FOUND if title == "size" else ()
        if known or found:
            stem = os.path.join(folder, f"correlations_by_{title}")
            options: dict[str, Any] = {"groups": known, "found": found}
            written += plot_correlations(content, stem, runs=_told_apart(entries), **options)
    return written


def _told_apart(entries: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Models and modes to draw: without "unfused" where both heads are drawn alone.

    Its scores are those of one of them, and its boxes those of the other.
    """
    runs = list(dict.fromkeys((x["model"], x["mode"]) for x in entries))
    return [
        (model, mode)
        for model, mode in runs
        if mode != "unfused" or not {(model, "cls_head"), (model, "reg_head")} <= {*runs}
    ]
