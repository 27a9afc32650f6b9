"""Box AP at each IoU of COCO's metric: where a backbone gains, as DetNet's Table 3 asks."""

import contextlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from doublehead_d2.evaluation.ap70 import ap_at


def ap_by_iou(annotations: str | Path, detections: str | Path) -> dict[str, float]:
    """AP in percent, over all sizes, by IoU.

    Args:
        annotations: JSON file in COCO's format.
        detections: JSON file in COCO's format of results, as `COCOEvaluator` writes it.

    Returns:
        "AP50", "AP55", ..., "AP95"; their mean is COCO's AP. NaN where there is no object.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO(str(annotations))
        found = json.loads(Path(detections).read_text())
        result = truth.loadRes(found) if found else COCO()
        evaluation = COCOeval(truth, result, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return {f"AP{round(100 * iou)}": ap_at(evaluation, iou) for iou in evaluation.params.iouThrs}
