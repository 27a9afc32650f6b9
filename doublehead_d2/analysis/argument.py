"""What the figures of the paper's argument say in a table, over trainings of the same models.

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Sections 3.2 to 3.4; issue 22. An
interval of a bootstrap is of images; how much a training differs from the next is seen from models
of several seeds alone.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doublehead_d2.analysis.tally import SOURCES
from doublehead_d2.analysis.windows import BINS

# Bins of IoU whose regressed boxes the table shows, of the 20 of `windows.BINS`
SHOWN_BINS = (4, 9, 14, 19)
NO_NUMBER = "–"
SUMMARY_FILE = "summary.json"

Summary = Mapping[str, Any]


def summary(
    windows: Mapping[str, Any],
    correlations: Mapping[str, Any],
    spatial: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The few numbers of one training of each model.

    Args:
        windows: of `windows_content`.
        correlations: of `correlation_content`, of the same images.
        spatial: of `spatial_content`, of the same images; None leaves "maps" empty.

    Returns:
        "runs": of each model and mode, over all objects, Pearson's coefficient of score and IoU by
        the kind of proposals, with its interval, and by bin of IoU the means of the score and of
        the IoU of the regressed box. "maps": of each head the mean cosine of two positions.
    """
    runs = []
    for curve in windows["curves"]:
        if curve["group"] != "all":
            continue
        run = {key: curve[key] for key in ("model", "mode", "kind", "score_mean", "iou_mean")}
        run["correlations"] = {
            x["proposals"]: {key: x[key] for key in ("pearson", "low", "high")}
            for x in correlations["correlations"]
            if (x["model"], x["mode"], x["group"]) == (run["model"], run["mode"], "all")
        }
        runs.append(run)
    kept = ("model", "head", "kind", "of", "mean_off_diagonal")
    maps = [] if spatial is None else [{key: x[key] for key in kept} for x in spatial["maps"]]
    about = ("data", "images", "objects", "proposals_per_object")
    return {**{key: windows[key] for key in about}, "runs": runs, "maps": maps}


def read_summaries(folders: Sequence[str]) -> list[dict[str, Any]]:
    """The summaries that `tools.reproduce_figures` has written to other folders.

    Raises:
        ValueError: a folder has none; names it.
    """
    found = []
    for folder in folders:
        path = Path(folder, SUMMARY_FILE)
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {SUMMARY_FILE}; allowed: outputs of tools.reproduce_figures with "
                "--figures windows correlations"
            )
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def check_alike(summaries: Sequence[Summary]) -> None:
    """Refuse summaries that are not of the same models, in the same modes, on the same data.

    Raises:
        ValueError: names what differs.
    """
    for name, of in {
        "data": lambda x: {key: x[key] for key in ("data", "images", "objects")},
        "proposals_per_object": lambda x: x["proposals_per_object"],
        "models and modes": lambda x: [f"{r['model']} {r['mode']}" for r in x["runs"]],
        "maps": lambda x: [f"{m['model']} {m['head']} {m['of']}" for m in x["maps"]],
    }.items():
        found = [of(x) for x in summaries]
        if any(x != found[0] for x in found):
            differ = " and ".join(dict.fromkeys(map(str, found)))
            raise ValueError(f"trainings differ in their {name}: {differ}; allowed: one for all")


def summary_table(summaries: Sequence[Summary]) -> str:
    """Two tables in Markdown: a row a model and mode, and a row a head's map.

    Of a single training correlations have their intervals; of several, all numbers are the mean
    and the standard deviation (n - 1) of single trainings.

    Args:
        summaries: at least one, of :func:`summary`.

    Raises:
        ValueError: as :func:`check_alike`.
    """
    check_alike(summaries)
    columns = [f"correlation, {source}" for source in SOURCES]
    columns += [f"IoU from {k / BINS:.2f} to {(k + 1) / BINS:.2f}" for k in SHOWN_BINS]
    lines = [f"| model | mode | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 2)]
    for same in zip(*(x["runs"] for x in summaries), strict=True):
        cells = [
            _correlation([run["correlations"].get(source) for run in same]) for source in SOURCES
        ]
        cells += [_spread([run["iou_mean"][k] for run in same]) for k in SHOWN_BINS]
        lines.append(f"| {same[0]['model']} | {same[0]['mode']} | {' | '.join(cells)} |")
    if not summaries[0]["maps"]:
        return "\n".join(lines)
    lines += [
        "",
        "| model | head | kind | of its | mean cosine of two positions |",
        "|" + "---|" * 5,
    ]
    for same in zip(*(x["maps"] for x in summaries), strict=True):
        words = [same[0][key] for key in ("model", "head", "kind", "of")]
        cosine = _spread([x["mean_off_diagonal"] for x in same], digits=2)
        lines.append(f"| {' | '.join(words)} | {cosine} |")
    return "\n".join(lines)


def _correlation(found: Sequence[Mapping[str, float | None] | None]) -> str:
    """A coefficient with its interval, or the coefficients of several trainings."""
    values = [None if x is None else x["pearson"] for x in found]
    text = _spread(values)
    if len(found) == 1 and found[0] is not None and found[0]["low"] is not None:
        text += f" ({found[0]['low']:.3f} to {found[0]['high']:.3f})"
    return text


def _spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and standard deviation; no number where a training has none."""
    known = [x for x in values if x is not None]
    if len(known) < len(values):
        return NO_NUMBER
    text = f"{statistics.fmean(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {statistics.stdev(known):.{digits}f}"
