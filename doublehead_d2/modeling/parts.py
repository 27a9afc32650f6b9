"""What RoI heads say of themselves, so that nobody else has to know how they are built."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from detectron2.modeling import FastRCNNOutputLayers
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import nn


class Part(NamedTuple):
    """A part of RoI heads that is run on RoI features, R x C x H x W.

    RoI heads that can be asked have a method `parts()`, which gives theirs in the order in which
    they run in inference, and a `collections.Counter` `rois_shown`: the RoIs that each box head has
    been shown since it was built, by the part's name.
    """

    name: str  # e.g. "box_head"
    modules: Sequence[nn.Module]  # that hold its parameters
    layers: Sequence[Callable[[Any], Any]]  # each is given what the one before it made
    in_features: Sequence[str]  # the backbone's maps that its RoIs are pooled from
    pooler: ROIPooler
    on_detections: bool = False  # its RoIs are the detections, not the proposals


def standard_parts(heads: StandardROIHeads) -> list[Part]:
    """The box head, mask head and keypoint head of detectron2's heads, those that there are."""
    box = [heads.box_head, heads.box_predictor]
    parts = [Part("box_head", box, box, heads.box_in_features, heads.box_pooler)]
    # The forward of these two needs instances and ends in losses or inference.
    if heads.mask_on:
        mask = heads.mask_head
        used = (heads.mask_in_features, heads.mask_pooler)
        parts.append(Part("mask_head", [mask], [mask.layers], *used, on_detections=True))
    if heads.keypoint_on:
        keypoint = heads.keypoint_head
        used = (heads.keypoint_in_features, heads.keypoint_pooler)
        parts.append(
            Part("keypoint_head", [keypoint], [keypoint.layers], *used, on_detections=True)
        )
    return parts


def class_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose outputs belong to a class each, of whatever heads there are.

    Those are all class scores, and the boxes and masks of a model that has them by class.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, FastRCNNOutputLayers):
            names.append(f"{name}.cls_score")
            if module.bbox_pred.out_features > len(module.box2box_transform.weights):
                names.append(f"{name}.bbox_pred")
        elif isinstance(module, MaskRCNNConvUpsampleHead) and module.predictor.out_channels > 1:
            names.append(f"{name}.predictor")
    return names
