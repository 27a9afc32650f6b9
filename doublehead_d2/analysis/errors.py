"""Where a detector's errors are: AP by class, thresholds, confusion, and kinds of error.

hotcoco (https://github.com/derekallman/hotcoco), which is optional, matches and counts. Kinds of
error are those of TIDE (Bolya et al., 2020, https://arxiv.org/abs/2008.08115). AP, AR, precision,
recall, F1 and dAP are in percent; what is not defined is None. Boxes are XYWH in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Record = dict[str, Any]

IOU = 0.5  # from which a detection finds an object, as in TIDE's paper
BACKGROUND_IOU = 0.1  # below which it lies on none
METRICS = ("AP", "AP50", "AP75", "AR")
KINDS = {  # hotcoco's names
    "classification": "Cls",
    "localisation": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}
STEPS = np.arange(101) / 100  # thresholds of the curves


class Objects(NamedTuple):
    """The objects of a data set as hotcoco takes them."""

    coco: Record  # in COCO's format, ids numbered from 1
    images: dict[Any, int]  # the data set's own ids
    classes: dict[Any, int]

    @property
    def names(self) -> list[str]:
        """Of the classes, in their order."""
        return [category["name"] for category in self.coco["categories"]]

    @property
    def counts(self) -> list[int]:
        """Objects of each class without crowds, which nothing is scored against."""
        found = [x["category_id"] for x in self.coco["annotations"] if not x["iscrowd"]]
        return np.bincount(found, minlength=len(self.classes) + 1)[1:].tolist()


class Matches(NamedTuple):
    """Detections without those in crowds, which COCO's metric ignores."""

    places: np.ndarray  # in the list of all detections
    classes: np.ndarray  # from 1
    scores: np.ndarray
    hits: np.ndarray  # whether it finds an object


def require_hotcoco() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import hotcoco
    except ImportError as error:
        raise ValueError(
            f'the analysis of errors needs hotcoco ({error}): pip install "hotcoco>=1.3"'
        ) from None
    return hotcoco


def read_objects(dataset: Mapping[str, Any], where: str) -> Objects:
    """Number images and classes of annotations in COCO's format, whose ids may be words.

    Args:
        dataset: content of a COCO file in which no field is missing, see `data.coco_gaps`.
        where: the data set, as messages begin.

    Raises:
        ValueError: there is no object, or there are crowds alone.
    """
    # The order of images decides among equal scores.
    images = {key: i for i, key in enumerate(sorted(x["id"] for x in dataset["images"]), 1)}
    categories = sorted(dataset["categories"], key=lambda x: x["id"])
    classes = {category["id"]: i for i, category in enumerate(categories, 1)}
    annotations = [
        {
            "id": i,
            "image_id": images[x["image_id"]],
            "category_id": classes[x["category_id"]],
            "bbox": x["bbox"],
            "area": x["area"],
            "iscrowd": int(bool(x["iscrowd"])),
        }
        for i, x in enumerate(dataset.get("annotations", []), 1)
    ]
    if all(x["iscrowd"] for x in annotations):
        raise ValueError(
            f"{where} has no object to score detections against; allowed: one object or more "
            "that is no crowd"
        )
    sizes = {images[x["id"]]: (x["width"], x["height"]) for x in dataset["images"]}
    coco = {
        "images": [{"id": i, "width": w, "height": h} for i, (w, h) in sorted(sizes.items())],
        "categories": [{"id": classes[x["id"]], "name": str(x["name"])} for x in categories],
        "annotations": annotations,
    }
    return Objects(coco, images, classes)


def analyse(
    objects: Objects,
    detections: Sequence[Record],
    score_threshold: float | None = None,
    iou: float = IOU,
) -> Record:
    """All that is said of the detections of one model in one mode.

    Args:
        objects: what there is to find.
        detections: of `error_runs.read_detections`.
        score_threshold: of the confusion matrix; None: that of the best F1.
        iou: from which a detection finds an object, for all but "scores".

    Returns:
        - "detections": how many there are;
        - "scores": `METRICS` of all classes: COCO's AP, AP at IoU 0.5 and 0.75, and AR with up to
          100 detections an image;
        - "classes": of each its "name", "objects", `METRICS` and "best_f1";
        - "best_f1": the score "threshold" at which F1 is highest, all classes counted
          together, with "precision", "recall" and "F1" there; None if nothing is found;
        - "thresholds": "precision" and "recall", counted likewise, at each of `STEPS`;
        - "confusion": "matrix" of counts at "threshold", a row for each class of objects and a
          column for each class of detections. Pairs are made by falling score, whatever their
          classes. The last row is background: detections that have no object; the last
          column is objects that have no detection;
        - "errors": for each of `KINDS` its "count" and its "dAP": what AP at `iou` would gain if
          this kind alone were mended (the kinds do not add up);
        - "unfound": classes with objects of which none is found. They keep AP 0 when missed objects
          are no longer counted, so that dAP of "missed" has nothing of them.
    """
    metric = _evaluate(objects.coco, detections)
    matches = _matches(_evaluate(objects.coco, detections, [iou]))
    counts = objects.counts
    classes = []
    for index, (name, count) in enumerate(zip(objects.names, counts, strict=True)):
        own = matches.classes == index + 1
        best = best_f1(matches.scores[own], matches.hits[own], count)
        classes.append(
            {"name": name, "objects": count, **_scores(metric, [index]), "best_f1": best}
        )
    found = set(matches.classes[matches.hits].tolist())
    best = best_f1(matches.scores, matches.hits, sum(counts))
    if score_threshold is None:
        score_threshold = best["threshold"] if best else 0.0
    settled = _settled(objects.coco, detections, matches, iou)
    # The metric has its cap of detections by class; here it would be one of all classes.
    no_cap = max(1, len(detections))
    confusion = settled.confusion_matrix(iou, max_det=no_cap, min_score=score_threshold)
    return {
        "detections": len(detections),
        "scores": _scores(metric, list(range(len(classes)))),
        "classes": classes,
        "best_f1": best,
        "thresholds": at_thresholds(matches.scores, matches.hits, sum(counts)),
        "confusion": {"threshold": score_threshold, "matrix": confusion["matrix"].tolist()},
        "errors": _kinds(settled, iou),
        "unfound": [x["name"] for i, x in enumerate(classes, 1) if x["objects"] and i not in found],
    }


def best_f1(scores: np.ndarray, hits: np.ndarray, num_objects: int) -> dict[str, float] | None:
    """The threshold at which F1 is highest, and what it gives; of several the highest.

    Args:
        scores: of detections.
        hits: whether each finds an object.
        num_objects: that are to be found.

    Returns:
        "threshold" (detections from this score on are taken), "precision", "recall" and "F1"; None
        if nothing is found.
    """
    if not hits.any():
        return None
    thresholds = np.unique(scores)[::-1]
    taken, true = _taken(scores, hits, thresholds)
    f1 = 2 * true / (taken + num_objects)
    best = int(f1.argmax())
    return {
        "threshold": float(thresholds[best]),
        "precision": float(100 * true[best] / taken[best]),
        "recall": float(100 * true[best] / num_objects),
        "F1": float(100 * f1[best]),
    }


def at_thresholds(
    scores: np.ndarray, hits: np.ndarray, num_objects: int
) -> dict[str, list[float | None]]:
    """ "precision" and "recall" at each of `STEPS`; precision None where nothing is taken.

    Args:
        scores: of detections.
        hits: whether each finds an object.
        num_objects: that are to be found.
    """
    taken, true = _taken(scores, hits, STEPS)
    return {
        "precision": [float(100 * t / n) if n else None for t, n in zip(true, taken, strict=True)],
        "recall": (100 * true / num_objects).tolist(),
    }


def differences(run: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float | None]:
    """By how much `METRICS` and the dAP of `KINDS` of a run are above those of another."""
    values, others = (
        {**x["scores"], **{f"dAP {kind}": x["errors"][kind]["dAP"] for kind in KINDS}}
        for x in (run, reference)
    )
    return {
        name: None if None in (value, others[name]) else value - others[name]
        for name, value in values.items()
    }


def _evaluate(coco: Record, detections: Sequence[Record], ious: Sequence[float] = ()) -> Any:
    """hotcoco's `COCOeval` that has accumulated; with `ious` at these, over all sizes alone."""
    hotcoco = require_hotcoco()
    truth = hotcoco.COCO(coco)
    evaluation = hotcoco.COCOeval(truth, truth.load_res(list(detections)), "bbox")
    if ious:
        evaluation.params.iou_thrs = list(ious)
        evaluation.params.area_rng = [[0.0, 1e10]]
        evaluation.params.area_rng_lbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _scores(evaluation: Any, classes: Sequence[int]) -> dict[str, float | None]:
    """`METRICS` over some classes, by their index, as pycocotools averages them."""
    # IoU, recall, class, area (0: all), number of detections (-1: most)
    precision = evaluation.eval["precision"][:, :, classes, 0, -1]
    recall = evaluation.eval["recall"][:, classes, 0, -1]
    ious = np.asarray(evaluation.params.iou_thrs)
    at_50, at_75 = (precision[np.isclose(ious, iou)] for iou in (0.5, 0.75))
    known = [x[x > -1] for x in (precision, at_50, at_75, recall)]  # -1: a class without objects
    return {
        metric: float(100 * np.mean(x)) if x.size else None
        for metric, x in zip(METRICS, known, strict=True)
    }


def _matches(evaluation: Any) -> Matches:
    """What an evaluation at one IoU has matched."""
    rows = [
        (number - 1, entry["category_id"], score, hit)
        for entry in evaluation.eval_imgs
        if entry
        for number, score, hit, ignored in zip(
            *(entry["dtIds"], entry["dtScores"], entry["dtMatched"][0], entry["dtIgnore"][0]),
            strict=True,
        )
        if not ignored
    ]
    places, classes, scores, hits = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Matches(
        np.array(places, int), np.array(classes, int), np.array(scores, float), np.array(hits, bool)
    )


def _settled(coco: Record, detections: Sequence[Record], matches: Matches, iou: float) -> Any:
    """The same without crowds and the detections in them, which COCO's metric ignores.

    hotcoco's confusion matrix would count the latter on background, and its kinds of error take a
    crowd for an object that might be located better.
    """
    objects = [x for x in coco["annotations"] if not x["iscrowd"]]
    kept = [detections[place] for place in sorted(matches.places)]
    return _evaluate({**coco, "annotations": objects}, kept, [iou])


def _kinds(evaluation: Any, iou: float) -> dict[str, dict[str, float]]:
    """dAP and number of each of `KINDS`."""
    tide = evaluation.tide_errors(iou, BACKGROUND_IOU)
    return {
        kind: {"dAP": 100 * tide["delta_ap"][name], "count": tide["counts"][name]}
        for kind, name in KINDS.items()
    }


def _taken(
    scores: np.ndarray, hits: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many detections have each threshold's score or a higher one, and how many are hits."""
    order = np.argsort(-scores, kind="stable")
    taken = np.searchsorted(-scores[order], -thresholds, side="right")
    return taken, np.concatenate([[0], hits[order].cumsum()])[taken]
