"""Box AP at each IoU of COCO's metric: where a backbone gains, as DetNet's Table 3 asks."""

import contextlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


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
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoUs x recalls x classes
    return {
        f"AP{round(100 * iou)}": float(100 * at_iou[at_iou > -1].mean())
        if (at_iou > -1).any()
        else float("nan")
        for iou, at_iou in zip(evaluation.params.iouThrs, precision, strict=True)
    }
