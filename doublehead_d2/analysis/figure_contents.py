"""What the figures of the paper's argument are drawn from: plain numbers, as JSON takes them.

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Section 3 and Appendix A; issue 22.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from torch import Tensor

from doublehead_d2.analysis.correlation import correlate
from doublehead_d2.analysis.difficulty import GROUPS
from doublehead_d2.analysis.tally import CELLS, SOURCES, Tally
from doublehead_d2.analysis.windows import BINS, WINDOWS

CONFIDENCE, RESAMPLES = 0.95, 1000

Tallies = Mapping[str, Tally]  # by the name of the model


def windows_content(tallies: Tallies, data: str, proposals_per_object: int) -> dict[str, Any]:
    """Scores, and IoUs of regressed boxes, by IoU of the window (Figures 2, 6, 7, A.1, A.3).

    Args:
        tallies: of the same images.
        data: name of the data set.
        proposals_per_object: of the subset; 0: all.

    Returns:
        "curves": for each model, mode and group of objects, of each bin the number of windows, mean
        and deviation (of the population) of the score for the object's class, and of the IoU of the
        box regressed for it with the object; None in an empty bin. Of all objects histograms too.
    """
    first = next(iter(tallies.values()))
    curves = []
    for model, tally in tallies.items():
        for mode, kind in tally.modes.items():
            scores, ious = tally.scores[mode], tally.ious[mode]
            for place, group in enumerate(GROUPS):
                rows = slice(place * BINS, (place + 1) * BINS)
                curve: dict[str, Any] = {"model": model, "mode": mode, "kind": kind, "group": group}
                curve["count"] = scores.count[rows].tolist()
                for name, moments in (("score", scores), ("iou", ious)):
                    curve[f"{name}_mean"] = _numbers(moments.mean[rows])
                    curve[f"{name}_deviation"] = _numbers(moments.deviation[rows])
                if group == "all":
                    curve["score_histogram"] = tally.score_histograms[mode].count.tolist()
                    curve["iou_histogram"] = tally.iou_histograms[mode].count.tolist()
                curves.append(curve)
    subset = None
    if proposals_per_object:
        subset = (
            f"{proposals_per_object:,} of about {WINDOWS:,} windows around each object, as many in "
            f"each of the {BINS} bins of IoU as far as it has so many"
        )
    return {
        "data": data,
        "images": first.images,
        "objects": first.objects,
        "proposals": first.windows,
        "proposals_per_object": proposals_per_object or WINDOWS,
        "subset": subset,
        "bins": BINS,
        "histogram_cells": CELLS,
        "rois_per_second": {
            name: round(tally.windows / tally.seconds, 1)
            for name, tally in tallies.items()
            if tally.windows
        },
        "curves": curves,
    }


def correlation_content(tallies: Tallies, data: str, seed: int = 0) -> dict[str, Any]:
    """Pearson's coefficients of score and IoU with their intervals (Figures 3 and A.2).

    Args:
        tallies: of the same images.
        data: name of the data set.
        seed: of the bootstrap over images.
    """
    found = []
    for model, tally in tallies.items():
        for source in SOURCES:
            for mode, kind in tally.modes.items():
                images = tally.pairs[source][mode]
                if not images:
                    continue
                results = correlate(images, resamples=RESAMPLES, confidence=CONFIDENCE, seed=seed)
                for group, result in zip(GROUPS, results, strict=True):
                    name = {"model": model, "mode": mode, "kind": kind}
                    found.append(name | {"proposals": source, "group": group} | asdict(result))
    return {
        "data": data,
        "confidence": CONFIDENCE,
        "bootstrap": RESAMPLES,
        "correlations": found,
    }


def spatial_content(
    tallies: Tallies, models: Mapping[str, GeneralizedRCNN], data: str
) -> dict[str, Any]:
    """Cosines of all pairs of positions of heads' maps, and of fc-heads' weights (Figure 4).

    Args:
        tallies: of the same images.
        models: the detectors, by the same names.
        data: name of the data set.
    """
    first = next(iter(tallies.values()))
    maps = [
        entry
        for name, tally in tallies.items()
        for entry in tally.spatial.entries(name, models[name])
    ]
    return {"data": data, "images": first.images, "objects": first.objects, "maps": maps}


def correlation_table(content: Mapping[str, Any], groups: Sequence[str] = GROUPS) -> str:
    """Correlations with their intervals in Markdown, a row a model and mode.

    Args:
        content: of :func:`correlation_content`.
        groups: of `difficulty.GROUPS`; those without pairs are left out.
    """
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for x in content["correlations"]:
        text = "–" if x["pearson"] is None else f"{x['pearson']:.3f}"
        if x["low"] is not None:
            text += f" ({x['low']:.3f} to {x['high']:.3f})"
        cells.setdefault((x["model"], x["mode"]), {})[x["proposals"], x["group"]] = text
    known = {key for row in cells.values() for key, text in row.items() if text != "–"}
    columns = [
        (source, group) for source in SOURCES for group in GROUPS if (source, group) in known
    ]
    names = [source if group == "all" else f"{source}, {group}" for source, group in columns]
    lines = [f"| model | mode | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
    for (model, mode), row in cells.items():
        shown = [row.get(column, "–") for column in columns]
        lines.append(f"| {model} | {mode} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _numbers(values: Tensor) -> list[float | None]:
    return [None if x != x else x for x in values.tolist()]
