"""COCO's metric by hotcoco (https://github.com/derekallman/hotcoco), in less time.

hotcoco matches detections with objects and accumulates; its arrays are those of pycocotools to the
last bit. pycocotools then summarises them, and everything else is detectron2's evaluator.
"""

from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from doublehead_d2.evaluation.ap70 import AP70COCOEvaluator

Record = dict[str, Any]

# What each task looks at, beside image, class and score. The size of a detection is that of its box
# where it has one: masks are scored without.
OF_DETECTIONS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("bbox", "keypoints")}
OF_OBJECTS = {**OF_DETECTIONS, "keypoints": ("bbox", "keypoints", "num_keypoints")}


class FastCOCOEvaluator(AP70COCOEvaluator):
    """`AP70COCOEvaluator` that leaves to pycocotools only what hotcoco does not take."""

    _tasks: Sequence[str] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `COCOEvaluator`, less `use_fast_impl`, which is another implementation."""
        super().__init__(*args, **kwargs, use_fast_impl=False)
        self._by_pycocotools: list[str] = []  # tasks, while predictions are evaluated

    def _tasks_from_predictions(self, predictions: list[Record]) -> list[str]:
        return self._by_pycocotools

    def _eval_predictions(
        self, predictions: list[Record], img_ids: Sequence[Any] | None = None
    ) -> None:
        results = [result for prediction in predictions for result in prediction["instances"]]
        asked = self._tasks
        tasks = sorted(asked or super()._tasks_from_predictions(results))
        fast = []
        if results and self._do_evaluation:
            fast = [task for task in tasks if self._takes(task, results)]
        self._by_pycocotools = [task for task in tasks if task not in fast]
        # detectron2 gives the results the data's own classes, writes them, and scores what is left
        # to it. It says whether that is "official", which is true of pycocotools alone.
        self._tasks, self._use_fast_impl = None, not self._by_pycocotools
        try:
            super()._eval_predictions(predictions, img_ids=img_ids)
        finally:
            self._tasks, self._use_fast_impl = asked, False
        for task in fast:
            evaluation = self._score(task, results, img_ids)
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(evaluation, task, class_names=names)
        for task in tasks if fast else ():  # in detectron2's order
            self._results.move_to_end(task)

    def _takes(self, task: str, results: list[Record]) -> bool:
        """Whether hotcoco scores a task; if not, the log says why."""
        sigmas = getattr(self._params(task), "kpt_oks_sigmas", ())
        why = _refusal(task, self._coco_api, results, len(sigmas))
        if why:
            self._logger.info("pycocotools scores %s, not hotcoco: %s.", task, why)
        return not why

    def _params(self, task: str, img_ids: Sequence[Any] | None = None) -> Params:
        """What detectron2 has COCO's metric computed with."""
        params = Params(iouType=task)
        params.imgIds = sorted(set(self._coco_api.imgs if img_ids is None else img_ids))
        params.catIds = sorted(self._coco_api.cats)
        if task != "keypoints":
            params.maxDets = sorted(self._max_dets_per_image)
        elif self._kpt_oks_sigmas:
            params.kpt_oks_sigmas = np.array(self._kpt_oks_sigmas)
        return params

    def _score(self, task: str, results: list[Record], img_ids: Sequence[Any] | None) -> COCOeval:
        """What pycocotools summarises of what hotcoco has accumulated."""
        self._logger.info("Scoring %s by hotcoco %s ...", task, hotcoco.__version__)
        # as detectron2 chooses
        evaluation = (COCOeval if self._max_dets_per_image[2] == 100 else COCOevalMaxDets)(
            iouType=task
        )
        evaluation.params = self._params(task, img_ids)
        evaluation.eval = _accumulate(task, self._coco_api, results, evaluation.params)
        evaluation.summarize()
        return evaluation


def _refusal(task: str, truth: COCO, results: Sequence[Record], keypoints: int) -> str:
    """Why hotcoco does not score a task, empty if it does.

    Args:
        task: "bbox", "segm" or "keypoints".
        truth: the objects.
        results: detections.
        keypoints: how many keypoints have a sigma.
    """
    annotations = truth.dataset["annotations"]
    if len(truth.anns) != len(annotations):
        return "annotations share an id"
    for field in ("area", "iscrowd", *OF_OBJECTS[task]):
        if any(annotation.get(field) in (None, []) for annotation in annotations):
            return f"an annotation has no {field}"
    if task == "keypoints":
        counts = {len(record["keypoints"]) // 3 for record in (*annotations, *results)}
        if counts != {keypoints}:
            return f"there are {keypoints} sigmas for {sorted(counts)} keypoints"
    return ""


def _accumulate(
    task: str, truth: COCO, results: Sequence[Record], params: Params
) -> dict[str, Any]:
    """What `COCOeval.accumulate` leaves in `COCOeval.eval`, by hotcoco."""
    # hotcoco's ids are 0 and above; the order of images decides among equal scores.
    images = {key: number for number, key in enumerate(sorted(truth.imgs))}
    classes = {key: number for number, key in enumerate(sorted(truth.cats))}
    objects = hotcoco.COCO(
        {
            "images": [
                {"id": number, **{side: truth.imgs[key][side] for side in ("height", "width")}}
                for key, number in images.items()
            ],
            "categories": [{"id": number, "name": str(number)} for number in classes.values()],
            "annotations": [
                {
                    **_numbered(annotation, images, classes, ("area", *OF_OBJECTS[task])),
                    "id": number,
                    "iscrowd": int(bool(annotation["iscrowd"])),
                }
                for number, annotation in enumerate(truth.dataset["annotations"], 1)
                if annotation["image_id"] in images and annotation["category_id"] in classes
            ],
        }
    )
    fields = ("score", *OF_DETECTIONS[task])
    detections = [_numbered(result, images, classes, fields) for result in results]
    evaluation = hotcoco.COCOeval(objects, objects.load_res(detections), task)
    evaluation.params.img_ids = [images[key] for key in params.imgIds]
    evaluation.params.max_dets = list(params.maxDets)
    if task == "keypoints":
        evaluation.params.kpt_oks_sigmas = list(params.kpt_oks_sigmas)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None, "hotcoco has accumulated nothing"
    found = {key: evaluation.eval[key] for key in ("precision", "recall", "scores")}
    return {"params": params, "counts": list(found["precision"].shape), **found}


def _numbered(
    record: Record, images: dict[Any, int], classes: dict[Any, int], fields: Sequence[str]
) -> Record:
    """The fields of an object or a detection, with its image and class by number."""
    return {
        "image_id": images[record["image_id"]],
        "category_id": classes[record["category_id"]],
        **{field: record[field] for field in fields},
    }
