"""The progressive constraint of TSD (https://arxiv.org/abs/2003.07540, Section 3.3).

The disentangled heads are to do better than the sibling head by a margin. At most the best that
there is, a probability or an IoU of 1, is asked of them; the sibling head learns nothing from it.

Shape legend: N images; R RoIs of all images, Ri of image i; K foreground classes, class K is
background. Boxes are XYXY in absolute coordinates.
"""

import torch
from torch import Tensor


def cls_constraint(
    scores: Tensor, sibling_scores: Tensor, gt_classes: list[Tensor], margin: float
) -> Tensor:
    """M_cls: the label's probability, of all RoIs in images with foreground.

    Args:
        scores: R x (K+1) logits of the disentangled head.
        sibling_scores: R x (K+1) logits of the sibling head.
        gt_classes: N elements of Ri labels.
        margin: in [0, 1].

    Returns:
        a scalar, see :func:`progressive_mean`.
    """
    labels = torch.cat(gt_classes)[:, None]
    ours, siblings = (
        x.float().softmax(dim=1).gather(1, labels).squeeze(1) for x in (scores, sibling_scores)
    )
    foreground = [labels < scores.shape[1] - 1 for labels in gt_classes]
    used = [mask.any().expand_as(mask) for mask in foreground]
    return progressive_mean(progressive_hinge(ours, siblings, margin), used)


def loc_constraint(
    boxes: Tensor,
    sibling_boxes: Tensor,
    gt_boxes: Tensor,
    foreground: list[Tensor],
    margin: float,
    least_union: float = 0.0,
) -> Tensor:
    """M_loc: the IoU with the object, of the RoIs that have one.

    Args:
        boxes: R x 4, of the disentangled head for the RoI's class.
        sibling_boxes: R x 4, of the sibling head.
        gt_boxes: R x 4; those of background are not looked at.
        foreground: N masks of Ri.
        margin: in [0, 1].
        least_union: pixels that a union counts at least; 1 in the authors' code.

    Returns:
        a scalar, see :func:`progressive_mean`.
    """
    ours, siblings = (matched_iou(x, gt_boxes, least_union) for x in (boxes, sibling_boxes))
    return progressive_mean(progressive_hinge(ours, siblings, margin), foreground)


def progressive_hinge(ours: Tensor, siblings: Tensor, margin: float) -> Tensor:
    """How much `ours` lacks to be better than `siblings` by a margin, at least 0.

    Args:
        ours: values in [0, 1] of the disentangled head, any shape.
        siblings: those of the sibling head, same shape. No gradient flows to them.
        margin: in [0, 1].

    Returns:
        relu(min(1, siblings + margin) - ours), same shape.
    """
    return ((siblings.detach() + margin).clamp(max=1) - ours).relu()


def progressive_mean(values: Tensor, used: list[Tensor]) -> Tensor:
    """Mean over the RoIs that are used, and a zero for every image that has none.

    Args:
        values: R values.
        used: N masks of Ri.

    Returns:
        a scalar; it has a gradient, of zero, where nothing is used, too: distributed training waits
        for one.
    """
    mask = torch.cat(used)
    without = sum((~x.any()).to(values.dtype) for x in used)
    return values.where(mask, torch.zeros_like(values)).sum() / (mask.sum() + without)


def matched_iou(boxes: Tensor, others: Tensor, least_union: float = 0.0) -> Tensor:
    """IoU of boxes with those in the same row, as detectron2's `matched_pairwise_iou`.

    Args:
        boxes, others: R x 4.
        least_union: pixels that a union counts at least.

    Returns:
        R values in [0, 1]; 0, not NaN, for two boxes without area.
    """
    corners = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (corners[1] - corners[0]).clamp(min=0).prod(dim=1)
    areas = [(x[:, 2:] - x[:, :2]).prod(dim=1) for x in (boxes, others)]
    union = areas[0] + areas[1] - intersection
    return intersection / union.clamp(min=least_union or torch.finfo(union.dtype).tiny)
