"""Parameters and FLOPs of a system by part, without weights, data or real computation.

A FLOP is one multiply-add, as in fvcore. Counted are those of convolutions, fully connected layers
and matrix products, so both products of a non-local block, too; biases, normalisation, activations,
sums, pooling, interpolation and softmax are not. (torch's counter does it, since fvcore's traces
the model by torch.jit, which does not run on the meta device.)

Parts are counted one by one on the meta device, because what lies between them depends on data:
NMS, box decoding, RoIAlign and the pasting of masks are not counted, either.

Parts: "backbone" (with FPN); "rpn", absent with precomputed proposals; what the RoI heads say they
are made of: "box_head", the head with its predictor (of several: the one focused on
classification), others as "reg_head", "mask_head", "keypoint_head"; "total", the sum.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, DeformConv, ModulatedDeformConv
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from doublehead_d2.benchmark.heads import ask

IMAGE_SIZE = (800, 1216)  # height, width


def model_complexity(cfg: CfgNode) -> dict[str, dict[str, int]]:
    """Parameters and FLOPs of a config's model by part, at the size it is tested at.

    FLOPs are those of one image of :func:`counted_image_size`, MODEL.RPN.POST_NMS_TOPK_TEST RoIs in
    the box heads and TEST.DETECTIONS_PER_IMAGE RoIs in the mask and keypoint heads.

    A deformable convolution is counted as the ordinary one of its shape plus the convolution that
    predicts its offsets; sampling at the offsets is not counted. So no compiled operators are
    needed.

    Returns:
        {"parameters": {part: count}, "flops": {part: count}}, the parts those of this module.
    """
    model = _build_on_meta(cfg)
    flops = count_flops(
        model,
        counted_image_size(cfg, model.backbone.size_divisibility),
        num_rois=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        num_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    return {"parameters": count_parameters(model), "flops": flops}


def counted_image_size(cfg: CfgNode, size_divisibility: int) -> tuple[int, int]:
    """The image that FLOPs are counted for: height, width.

    800 x 1216, or less where the config tests on less: height is at most INPUT.MIN_SIZE_TEST (0,
    no resizing, is no limit), width at most INPUT.MAX_SIZE_TEST; both rounded up as the backbone
    asks.
    """
    height = min(IMAGE_SIZE[0], cfg.INPUT.MIN_SIZE_TEST or IMAGE_SIZE[0])
    width = min(IMAGE_SIZE[1], cfg.INPUT.MAX_SIZE_TEST)
    step = max(size_divisibility, 1)
    return -(-height // step) * step, -(-width // step) * step


def count_parameters(model: GeneralizedRCNN) -> dict[str, int]:
    """Numbers of parameters by part, frozen ones included.

    FrozenBN has none: its scales and shifts are buffers, like the statistics of every batch norm,
    and buffers are not counted.

    Args:
        model: its RoI heads are `StandardROIHeads`, or have `parts()`.

    Raises:
        ValueError: other RoI heads, or some that do not name all their parts.
    """
    parts = {
        name: sum(parameter.numel() for m in modules for parameter in m.parameters())
        for name, modules in _modules(model).items()
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    if sum(parts.values()) != total:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{type(model.roi_heads).__name__}', whose parts leave out "
            f"some of the model's {total} parameters: {parts}; allowed: heads whose parts() names "
            "all that they are made of (doublehead_d2.modeling.parts.Part)"
        )
    return {**parts, "total": total}


def count_flops(
    model: GeneralizedRCNN, image_size: tuple[int, int], num_rois: int, num_detections: int
) -> dict[str, int]:
    """FLOPs by part for one image at inference; the model itself is neither run nor changed.

    Args:
        model: as for :func:`count_parameters`, without deformable convolutions.
        image_size: height, width, both as the backbone's size_divisibility asks.
        num_rois: RoIs that every box head is given.
        num_detections: RoIs that the mask and keypoint heads are given.

    Raises:
        ValueError: other RoI heads, or deformable convolutions, which run on no meta device.
    """
    if any(isinstance(m, (DeformConv, ModulatedDeformConv)) for m in model.modules()):
        raise ValueError("deformable convolutions cannot be traced; call model_complexity(cfg)")
    model = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, 3, *image_size, device="meta")
    features, backbone = _run(image, model.backbone)
    flops = {"backbone": backbone}
    if model.proposal_generator is not None:
        rpn = model.proposal_generator
        _, flops["rpn"] = _run([features[name] for name in rpn.in_features], rpn.rpn_head)
    for part in ask(model.roi_heads).parts():
        channels = features[part.in_features[0]].shape[1]
        count = num_detections if part.on_detections else num_rois
        rois = torch.empty(count, channels, *part.pooler.output_size, device="meta")
        _, flops[part.name] = _run(rois, *part.layers)
    return {**flops, "total": sum(flops.values())}


def _modules(model: GeneralizedRCNN) -> dict[str, Sequence[nn.Module]]:
    """The modules of each part of a detector."""
    modules: dict[str, Sequence[nn.Module]] = {"backbone": [model.backbone]}
    if model.proposal_generator is not None:  # None with precomputed proposals
        modules["rpn"] = [model.proposal_generator.rpn_head]
    return modules | {part.name: part.modules for part in ask(model.roi_heads).parts()}


def _run(x: Any, *layers: Callable[[Any], Any]) -> tuple[Any, int]:
    """What the layers make of x, one after the other, and their FLOPs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for layer in layers:
            x = layer(x)
    return x, counter.get_total_flops() // 2  # torch counts multiplication and addition


class _DeformConvCost(nn.Module):
    """What is counted of a deformable convolution: the convolution, and that of its offsets."""

    def __init__(self, conv: Conv2d, offset_channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.offset = Conv2d(
            conv.in_channels,
            offset_channels,
            kernel_size=3,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
        )

    def forward(self, x: Tensor) -> Tensor:
        self.offset(x)
        return self.conv(x)


def _build_on_meta(cfg: CfgNode) -> GeneralizedRCNN:
    """The model on the meta device, `_DeformConvCost` in the place of deformable convolutions."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    resnets = cfg.MODEL.RESNETS
    deform_on_per_stage = list(resnets.DEFORM_ON_PER_STAGE)
    resnets.DEFORM_ON_PER_STAGE = [False] * len(deform_on_per_stage)
    # A point of the 3 x 3 kernel has an offset (x, y) and, modulated, a weight.
    offset_channels = (27 if resnets.DEFORM_MODULATED else 18) * resnets.DEFORM_NUM_GROUPS
    with torch.device("meta"):
        model = build_model(cfg)
        resnet = getattr(model.backbone, "bottom_up", model.backbone)
        for index, deform in enumerate(deform_on_per_stage):
            for block in getattr(resnet, f"res{index + 2}", []) if deform else []:
                assert isinstance(block, BottleneckBlock), f"not a bottleneck: {block}"
                block.conv2 = _DeformConvCost(block.conv2, offset_channels)
    return model
