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
    seed: int = 0,
) -> dict[str, Any]:
    """The few numbers of one training of each model.

    Args:
        windows: of `windows_content`.
        correlations: of `correlation_content`, of the same images.
        spatial: of `spatial_content`, of the same images; None leaves "maps" empty.
        seed: that the windows were chosen by.

    Returns:
        "runs": of each model and mode, over all objects, Pearson's coefficient of score and IoU by
        the kind of proposals, with its interval, and by bin of IoU the mean IoU of the regressed
        box. "maps": of each head the mean cosine of two positions.
    """
    runs = []
    for curve in windows["curves"]:
        if curve["group"] != "all":
            continue
        run = {key: curve[key] for key in ("model", "mode", "kind", "iou_mean")}
        run["correlations"] = {
            x["proposals"]: {key: x[key] for key in ("pearson", "low", "high")}
            for x in correlations["correlations"]
            if (x["model"], x["mode"], x["group"]) == (run["model"], run["mode"], "all")
        }
        runs.append(run)
    kept = ("model", "head", "kind", "of", "mean_off_diagonal")
    maps = [] if spatial is None else [{key: x[key] for key in kept} for x in spatial["maps"]]
    about = ("data", "images", "objects", "proposals_per_object")
    return {**{key: windows[key] for key in about}, "seed": seed, "runs": runs, "maps": maps}


def read_summaries(folders: Sequence[str]) -> list[dict[str, Any]]:
    """The summaries that `tools.reproduce_figures` has written to other folders.

    Raises:
        ValueError: a folder has none, or one that is not whole; names it.
    """
    found = []
    for folder in folders:
        path = Path(folder, SUMMARY_FILE)
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {SUMMARY_FILE}; allowed: outputs of tools.reproduce_figures with "
                "--figures windows correlations"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["runs"], content["maps"], _about(content)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no summary of tools.reproduce_figures ({error!r})"
            ) from error
        found.append(content)
    return found


def check_others(others: Mapping[str, Summary], **wanted: Any) -> None:
    """Refuse trainings that cannot be alike, before anything is counted.

    Args:
        others: by folder.
        wanted: "data", "proposals_per_object" and "seed" as a summary has them, the names of the
            "models", and whether "spatial" maps are asked about.

    Raises:
        ValueError: names the folder and what differs.
    """
    for folder, other in others.items():
        found = {key: other[key] for key in ("data", "proposals_per_object", "seed")}
        found["models"] = [*dict.fromkeys(x["model"] for x in other["runs"])]
        found["spatial"] = bool(other["maps"])
        for name, value in found.items():
            if value != wanted[name]:
                raise ValueError(
                    f"{folder}: {name} is {value}, here {wanted[name]}; allowed: the same in all "
                    "trainings"
                )


def check_alike(summaries: Sequence[Summary]) -> None:
    """Refuse summaries that are not of the same models, in the same modes, on the same data.

    Raises:
        ValueError: names what differs.
    """
    found = [_about(x) for x in summaries]
    for name, first in found[0].items():
        if any(x[name] != first for x in found):
            differ = " and ".join(dict.fromkeys(str(x[name]) for x in found))
            raise ValueError(f"trainings differ in their {name}: {differ}; allowed: one for all")


def _about(summary: Summary) -> dict[str, Any]:
    """What summaries have to have in common."""
    keys = ("data", "images", "objects", "proposals_per_object", "seed")
    runs = [f"{x['model']} {x['mode']} ({x['kind']})" for x in summary["runs"]]
    maps = [f"{x['model']} {x['head']} {x['of']}" for x in summary["maps"]]
    about = {key: summary[key] for key in keys}
    return {**about, "models": runs, "maps (--figures spatial)": maps}


def summary_table(summaries: Sequence[Summary]) -> str:
    """What it is of, and two tables in Markdown: a row a model and mode, and a row a head's map.

    A box is given by the mean IoU of what is regressed from windows of some IoU. Of a single
    training correlations have their intervals; of several, all numbers are the mean and the
    standard deviation (n - 1) of single trainings.

    Args:
        summaries: at least one, of :func:`summary`.

    Raises:
        ValueError: as :func:`check_alike`.
    """
    check_alike(summaries)
    first = summaries[0]
    count = len(summaries)
    meaning = "with 95 % intervals over images" if count == 1 else "mean ± standard deviation"
    about = (
        f"{first['data']}, {first['images']:,} images, {first['objects']:,} objects, "
        f"{first['proposals_per_object']:,} windows around each: correlation of score and IoU, and "
        f"IoU of the box regressed from windows of some IoU; {count} training"
        f"{'s' if count > 1 else ''} of each model, {meaning}."
    )
    columns = [f"correlation, {source}" for source in SOURCES]
    columns += [f"box, windows {k / BINS:.2f} to {(k + 1) / BINS:.2f}" for k in SHOWN_BINS]
    lines = [
        about,
        "",
        f"| model | mode | {' | '.join(columns)} |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for same in zip(*(x["runs"] for x in summaries), strict=True):
        cells = [
            _correlation([run["correlations"].get(source) for run in same]) for source in SOURCES
        ]
        cells += [_spread([run["iou_mean"][k] for run in same]) for k in SHOWN_BINS]
        lines.append(f"| {same[0]['model']} | {same[0]['mode']} | {' | '.join(cells)} |")
    if not first["maps"]:
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
