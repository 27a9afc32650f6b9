"""detectron2's evaluators with AP70, the AP at IoU 0.7, beside AP50 and AP75.

G-RCN (https://arxiv.org/abs/2012.03677) reports AP70 on Pascal VOC. All other numbers are
detectron2's.
"""

import os
import tempfile
from collections import defaultdict
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm

IOU = 0.7


def with_ap70(metrics: dict[str, float], ap70: float) -> dict[str, float]:
    """Metrics of a task with "AP70" behind "AP50"."""
    names = list(metrics)
    place = names.index("AP50") + 1
    ordered = {**{n: metrics[n] for n in names[:place]}, "AP70": ap70}
    return ordered | {n: metrics[n] for n in names[place:]}


def ap_at(coco_eval: Any, iou: float) -> float:
    """COCO's AP in percent at one IoU, over all sizes; NaN where there is no object.

    Args:
        coco_eval: a `COCOeval` that has accumulated.
        iou: one of its `params.iouThrs`.
    """
    (index,) = np.flatnonzero(np.isclose(coco_eval.params.iouThrs, iou))
    # IoU, recall, class, area (0: all), number of detections (-1: most)
    precisions = coco_eval.eval["precision"][index, :, :, 0, -1]
    known = precisions[precisions > -1]  # -1: a class without objects
    return float(100 * known.mean()) if known.size else float("nan")


class AP70COCOEvaluator(COCOEvaluator):
    """`COCOEvaluator` with "AP70" of every task."""

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        metrics = super()._derive_coco_results(coco_eval, iou_type, class_names)
        ap70 = float("nan")
        if coco_eval is not None:
            ap70 = ap_at(coco_eval, IOU)
            self._logger.info("AP70 of %s: %.3f", iou_type, ap70)
        return with_ap70(metrics, ap70)


class AP70VOCEvaluator(PascalVOCDetectionEvaluator):
    """`PascalVOCDetectionEvaluator` with "AP70", by 11 points where it uses them (VOC2007)."""

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """As `PascalVOCDetectionEvaluator`: every process must call it, the first has results."""
        results = super().evaluate()
        # It keeps nothing of what it has gathered.
        gathered = comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return None
        lines: dict[int, list[str]] = defaultdict(list)
        for predictions in gathered:
            for class_index, its_lines in predictions.items():
                lines[class_index].extend(its_lines)
        results["bbox"] = with_ap70(results["bbox"], self._ap70(lines))
        return results

    def _ap70(self, lines: dict[int, list[str]]) -> float:
        """The mean over classes, in percent.

        Args:
            lines: detections by the index of their class, each "image score xmin ymin xmax ymax".
        """
        aps = []
        with tempfile.TemporaryDirectory(prefix="pascal_voc_ap70_") as folder:
            template = os.path.join(folder, "{}.txt")
            for index, name in enumerate(self._class_names):
                with open(template.format(name), "w") as f:
                    f.write("\n".join(lines.get(index, [""])))
                *_, ap = voc_eval(
                    template,
                    self._anno_file_template,
                    self._image_set_path,
                    name,
                    ovthresh=IOU,
                    use_07_metric=self._is_2007,
                )
                aps.append(ap)
        return float(100 * np.mean(aps))
