"""The analysis of errors as a document in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from doublehead_d2.analysis.errors import BACKGROUND_IOU, KINDS, METRICS

MOST_CLASSES = 15  # of a confusion matrix that is printed

# What mending a kind does, as TIDE has it, is said behind the semicolon.
MEANINGS = {
    "classification": "on an object (IoU from {0:g}) of another class; mended, it has that",
    "localisation": "of the right class, IoU {1:g} to {0:g}; mended, it fits",
    "both": "of another class, IoU {1:g} to {0:g}; mended, it is not there",
    "duplicate": "of an object that a detection of a higher score has; mended, it is not there",
    "background": "IoU below {1:g} with all objects; mended, it is not there",
    "missed": "an object that nothing finds, and nothing of wrong class or place would; mended, it "
    "does not count",
}


def markdown(content: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The document.

    Args:
        content: as `tools.analyze_errors` writes it.
        pictures: files to show, relative to the document.
    """
    runs, iou = content["runs"], content["iou"]
    parts = [
        "# Where the errors are",
        f"{content['data']}: {content['images']} images, {content['objects']} objects"
        + (f", {content['crowds']} crowds" if content["crowds"] else "")
        + f". AP, AR, precision, recall, F1 and dAP are in percent. By hotcoco "
        f"{content['hotcoco']}.",
        *content["notes"],
        "## Scores",
        _table(["", *METRICS, "detections"], map(_scores, runs)),
        f"The threshold of the best F1 at IoU {iou:g}, all classes counted together:",
        _table(
            ["", "threshold", "precision", "recall", "F1"],
            ([run["name"], *_best(run["best_f1"])] for run in runs),
        ),
        "## Kinds of error",
        f"dAP: what AP at IoU {iou:g} would gain if this kind alone were mended (TIDE, "
        "https://arxiv.org/abs/2008.08115); the kinds do not add up. In brackets, "
        "how many there are among the detections of all scores.",
        _table(["", *KINDS], ([run["name"], *_kinds(run["errors"])] for run in runs)),
        "\n".join(
            f"- **{kind}**: {meaning.format(iou, BACKGROUND_IOU)}"
            for kind, meaning in MEANINGS.items()
        ),
        *(
            f"Of {', '.join(run['unfound'])} nothing is found ({run['name']}): the dAP of missed "
            "objects has nothing of them."
            for run in runs
            if run["unfound"]
        ),
        *_differences(content["differences"]),
        *(f"![{picture}]({picture})" for picture in pictures),
        "## Classes",
        *(part for run in runs for part in _classes(run)),
        *_confusion(content["classes"], runs, iou),
    ]
    return "\n\n".join(parts) + "\n"


def _table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return tabulate(
        [[_cell(value) for value in row] for row in rows],
        headers=headers,
        tablefmt="pipe",
        colalign=["left"] + ["right"] * (len(headers) - 1),
        disable_numparse=True,  # thresholds keep their third digit
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _scores(run: Mapping[str, Any]) -> list[Any]:
    return [run["name"], *(run["scores"][metric] for metric in METRICS), run["detections"]]


def _best(best: Mapping[str, float] | None) -> list[float | str | None]:
    if best is None:
        return [None] * 4
    return [f"{best['threshold']:.3f}", *(best[key] for key in ("precision", "recall", "F1"))]


def _kinds(errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [f"{errors[kind]['dAP']:.2f} ({errors[kind]['count']})" for kind in KINDS]


def _differences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    if not found:
        return []
    rows = [
        [f"{x['run']} − {x['reference']}", *(_signed(v) for v in x["values"].values())]
        for x in found
    ]
    return ["## Differences", _table(["", *found[0]["values"]], rows)]


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.2f}"


def _classes(run: Mapping[str, Any]) -> list[str]:
    rows = [
        [x["name"], x["objects"], *(x[metric] for metric in METRICS), *_best(x["best_f1"])]
        for x in run["classes"]
    ]
    headers = ["class", "objects", *METRICS, "best threshold", "precision", "recall", "F1"]
    return [f"{run['name']}:", _table(headers, rows)]


def _confusion(names: Sequence[str], runs: Sequence[Mapping[str, Any]], iou: float) -> list[str]:
    parts = [
        "## Confusion",
        f"Rows are objects, columns are detections from the threshold on; pairs from IoU {iou:g}.",
    ]
    if len(names) > MOST_CLASSES:
        return [*parts, f"The matrices of {len(names)} classes are in the JSON file."]
    names = [*names, "background"]
    for run in runs:
        confusion = run["confusion"]
        rows = [[name, *row] for name, row in zip(names, confusion["matrix"], strict=True)]
        parts += [
            f"{run['name']}, threshold {confusion['threshold']:.3f}:",
            _table(["", *names], rows),
        ]
    return parts
