"""The detections that errors are looked for in: of a model in each of its modes, or of a file."""

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from doublehead_d2.analysis.errors import Objects, Record, read_objects
from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.data.check import check_datasets
from doublehead_d2.data.contents import inspect_dataset
from doublehead_d2.data.findings import SHOWN, Use, are_coordinates
from doublehead_d2.engine.setup import check_run, complete_config
from doublehead_d2.engine.trainer import Trainer
from doublehead_d2.evaluation import ModesEvaluator, all_modes, build_coco_evaluator, score_modes

CONFIGURED = "configured"  # the mode of a model that can be scored in one way alone
RESULTS = "coco_instances_results.json"  # as COCOEvaluator names it
# Above it AP is lower than with detectron2's default.
USUAL_SCORE_THRESHOLD = 0.05


class Detected(NamedTuple):
    """What a model has detected on a data set."""

    objects: Objects
    files: dict[str, str]  # by mode
    configured: str  # the mode of its config


def detect(cfg: CfgNode, folder: str) -> Detected:
    """Run a model over a data set once, and keep what it detects in each of its modes.

    Args:
        cfg: of a trained model that :func:`check_model` has seen.
        folder: to write to, a folder for each mode in it.

    Raises:
        ValueError: the data set has no object.
    """
    (dataset,) = cfg.DATASETS.TEST
    model = Trainer.build_model(cfg)
    DoubleHeadCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    heads: Any = getattr(model, "roi_heads", None)
    modes: dict[str, Any] = {}
    configured = CONFIGURED
    if hasattr(heads, "scoring_modes"):
        modes, configured = all_modes(heads)
    folders = {mode: os.path.join(folder, mode) for mode in modes or [CONFIGURED]}
    for place in folders.values():  # of an earlier run
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(place, RESULTS))
    evaluators = {mode: build_coco_evaluator(dataset, place) for mode, place in folders.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own tables
        if modes:
            with score_modes(model, modes):
                Trainer.test(cfg, model, [ModesEvaluator(evaluators)])
        else:
            Trainer.test(cfg, model, list(evaluators.values()))
    objects = _objects(dataset, evaluators[configured])
    files = {mode: os.path.join(place, RESULTS) for mode, place in folders.items()}
    return Detected(objects, files, configured)


def check_model(cfg: CfgNode) -> tuple[CfgNode, list[str]]:
    """Refuse what cannot be analysed; the config completed, and notes about it.

    Args:
        cfg: with one data set in DATASETS.TEST.

    Raises:
        ValueError, FileNotFoundError: names the key or data set and what is expected.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty; allowed: the weights of a trained model "
            "(--opts MODEL.WEIGHTS path/to/model_final.pth)"
        )
    notes = check_run(cfg, eval_only=True)
    threshold = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    if threshold > USUAL_SCORE_THRESHOLD:
        notes.append(
            f"MODEL.ROI_HEADS.SCORE_THRESH_TEST is {threshold:g}: what is below is missing in all "
            f"numbers, and AP is lower than with {USUAL_SCORE_THRESHOLD:g}."
        )
    return complete_config(cfg, eval_only=True), notes


def read_dataset(name: str, folder: str) -> Objects:
    """The objects of a registered data set, in COCO's or VOC's layout.

    Args:
        name: in detectron2's catalogs.
        folder: for the conversion to COCO's format, where there is one.

    Raises:
        ValueError, FileNotFoundError: it is not registered, not there, faulty, or has no object.
    """
    check_datasets([name])
    inspect_dataset(name, Use(evaluation="coco"))
    return _objects(name, build_coco_evaluator(name, folder))


def read_detections(path: str, objects: Objects) -> list[Record]:
    """Detections from a file in COCO's format of results, as `COCOEvaluator` writes it.

    Args:
        path: of a JSON list of "image_id", "category_id", "bbox" (XYWH) and "score"; what else is
            there is left out.
        objects: of the data set that they were detected in.

    Returns:
        them with the ids of `objects.coco`, in the same order.

    Raises:
        ValueError: it is no such list, or a detection is faulty; names the first ones.
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8") as f:
        try:
            found = json.load(f)
        except ValueError as error:
            raise ValueError(f"'{path}' is no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
        raise ValueError(
            f"'{path}' is no list of detections; allowed: COCO's format of results, as in {RESULTS}"
        )
    faults = [
        f"detection {i} {fault}" for i, x in enumerate(found) if (fault := _fault(x, objects))
    ]
    if faults:
        count = f"{len(faults):,} faults, first " if len(faults) > 1 else ""
        raise ValueError(f"'{path}': {count}{'; '.join(faults[:SHOWN])}")
    return [
        {
            "image_id": objects.images[x["image_id"]],
            "category_id": objects.classes[x["category_id"]],
            "bbox": x["bbox"],
            "score": x["score"],
        }
        for x in found
    ]


def _fault(detection: Mapping[str, Any], objects: Objects) -> str:
    """What is wrong with a detection and what is allowed; empty if nothing is."""
    for field, known in (("image_id", objects.images), ("category_id", objects.classes)):
        value = detection.get(field)
        if not isinstance(value, (int, str)) or value not in known:
            return f"has {field} {value!r:.80}; allowed: one of the data set's {len(known)}"
    box = detection.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and are_coordinates(box) and min(box[2:]) >= 0):
        return f"has bbox {box!r:.80}; allowed: x, y, width and height in pixels"
    score = detection.get("score")
    if not isinstance(score, (int, float)) or not math.isfinite(score) or not 0 <= score <= 1:
        return f"has score {score!r:.80}; allowed: 0 to 1"
    return ""


def _objects(name: str, evaluator: Any) -> Objects:
    """What a COCO evaluator scores against."""
    return read_objects(evaluator._coco_api.dataset, f"data set '{name}'")
