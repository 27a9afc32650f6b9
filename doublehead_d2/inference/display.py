"""Which detections people are shown: those that are likely, and one for each object.

Evaluation takes all detections; nothing here is for it.
"""

from typing import NamedTuple

import torch
from detectron2.layers import nms
from detectron2.structures import Instances
from torch import nn

from doublehead_d2.modeling.output_layers import fuse_scores

# The score from which one head is believed, as in detectron2's demo.
ONE_HEAD_THRESHOLD = 0.5


class Displayed(NamedTuple):
    """Detections to show, and how many are not shown for which reason."""

    instances: Instances
    low_scores: int
    second_labels: int


def display_threshold(model: nn.Module) -> float:
    """The lowest score to show: what the model's fusion makes of two heads that both say 0.5.

    Complementary fusion raises every score: 0.75 after it is as much as 0.5 of one head. Models
    that fuse nothing keep 0.5.
    """
    fusion = getattr(getattr(model, "roi_heads", None), "score_fusion", None)
    if fusion is None:
        return ONE_HEAD_THRESHOLD
    one_head = torch.tensor(ONE_HEAD_THRESHOLD, dtype=torch.float64)
    return float(fuse_scores(one_head, one_head, fusion))


def select_for_display(
    instances: Instances, score_threshold: float, nms_threshold: float | None
) -> Displayed:
    """Leave out low scores, and boxes that lie on a box of a higher score, whatever their class.

    The model's own suppression goes class by class, so that an object may have a box of each.

    Args:
        instances: detections with `pred_boxes` (XYXY), `scores` and other fields, by falling
            score.
        score_threshold: detections below it are left out.
        nms_threshold: IoU above which two boxes count as one object; None: all may stay.

    Returns:
        the others, in the same order, all fields kept.
    """
    likely = instances[instances.scores >= score_threshold]
    shown = likely
    if nms_threshold is not None:
        keep = nms(likely.pred_boxes.tensor.float(), likely.scores.float(), nms_threshold)
        shown = likely[keep.sort().values]
    return Displayed(shown, len(instances) - len(likely), len(likely) - len(shown))
