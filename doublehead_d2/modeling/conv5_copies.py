"""Backbones whose last stage exists twice, for G-RCN: a copy of Conv5 for each task.

Of G-RCN (https://arxiv.org/abs/2012.03677) the abstract alone was available: that the last stage is
what is separated is our choice, as are both strides and the dilation (docs/MODEL_ZOO.md).

Shape legend: N images; H x W pixels. Maps are N x C x H/stride x W/stride, ResNet's rounded up,
VGG16's rounded down.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from fvcore.nn import weight_init
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from doublehead_d2.checkpoint.sources.recognise import refuse_foreign_keys
from doublehead_d2.config import check_conv5_config
from doublehead_d2.modeling.siblings import fill_missing


class Conv5Copies(Backbone):
    """Stages in a row, and on the last of them up to two copies of Conv5.

    Modules have the names of their maps. A copy that a file does not have starts from the weights
    of the other.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        copies: Mapping[str, nn.Module],
        shapes: Mapping[str, ShapeSpec],
        *,
        siblings: tuple[str, str],
    ) -> None:
        """
        Args:
            stages: what is shared, each run on what the one before it made.
            copies: of Conv5, each run on what the last of `stages` made.
            shapes: channels and stride of the maps to give, by name of a stage or copy.
            siblings: names of both copies, built or not.
        """
        super().__init__()
        for name, module in {**stages, **copies}.items():
            self.add_module(name, module)
        self._stages, self._copies, self._shapes = list(stages), list(copies), dict(shapes)
        self._out_features = list(shapes)
        self.siblings = dict(zip(siblings, reversed(siblings), strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images N x 3 x H x W to feature maps by name."""
        maps = {}
        for name in self._stages:
            x = self.get_submodule(name)(x)
            if name in self._shapes:
                maps[name] = x
        return maps | {name: self.get_submodule(name)(x) for name in self._copies}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every map."""
        return dict(self._shapes)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load, but refuse the weights of other code bases, of which no key would fit."""
        *_, unexpected_keys, _ = args
        refuse_foreign_keys([*state_dict, *unexpected_keys])
        fill_missing(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


@BACKBONE_REGISTRY.register()
def build_grcn_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Conv5Copies:
    """detectron2's ResNet with up to two copies of res5: "res5" to classify, "res5_reg" for boxes.

    MODEL.RESNETS.OUT_FEATURES decides which exist, MODEL.ROI_GRCN what stride each has.

    Raises:
        ValueError: an invalid setting; names the key.
    """
    check_conv5_config(cfg, "build_grcn_resnet_backbone")
    node, out_features = cfg.MODEL.ROI_GRCN, list(cfg.MODEL.RESNETS.OUT_FEATURES)
    strides = {"res5": node.CLS_HEAD.STRIDE, "res5_reg": node.REG_HEAD.STRIDE}
    strides = {name: stride for name, stride in strides.items() if name in out_features}
    trunk_cfg = cfg.clone()
    trunk_cfg.defrost()
    trunk_cfg.MODEL.RESNETS.OUT_FEATURES = [f for f in out_features if f not in strides]
    if strides:
        trunk_cfg.MODEL.RESNETS.OUT_FEATURES.append("res4")
    trunk = build_resnet_backbone(trunk_cfg, input_shape)
    copies = {name: _build_res5(cfg, stride) for name, stride in strides.items()}
    shapes = trunk.output_shape()
    for name, stride in strides.items():
        shapes[name] = ShapeSpec(channels=2 * shapes["res4"].channels, stride=stride)
    return Conv5Copies(
        dict(trunk.named_children()),
        copies,
        {name: shapes[name] for name in out_features},
        siblings=("res5", "res5_reg"),
    )


def _build_res5(cfg: CfgNode, stride: int) -> nn.Sequential:
    """The blocks of a ResNet's last stage on a map of stride 16, frozen as its others are."""
    node, downsamples = cfg.MODEL.RESNETS, stride == 32
    num_blocks = 2 if node.DEPTH == 18 else 3
    out_channels = 8 * node.RES2_OUT_CHANNELS
    settings: dict[str, Any] = {"block_class": BasicBlock}
    if node.DEPTH > 34:
        settings = {
            "block_class": BottleneckBlock,
            "bottleneck_channels": 8 * node.NUM_GROUPS * node.WIDTH_PER_GROUP,
            "num_groups": node.NUM_GROUPS,
            "stride_in_1x1": node.STRIDE_IN_1X1,
            "dilation": 1 if downsamples else cfg.MODEL.ROI_GRCN.DILATION,
        }
    blocks = ResNet.make_stage(
        num_blocks=num_blocks,
        stride_per_block=[2 if downsamples else 1] + [1] * (num_blocks - 1),
        in_channels=out_channels // 2,
        out_channels=out_channels,
        norm=node.NORM,
        **settings,
    )
    if cfg.MODEL.BACKBONE.FREEZE_AT >= 5:
        blocks = [block.freeze() for block in blocks]
    return nn.Sequential(*blocks)


@BACKBONE_REGISTRY.register()
def build_grcn_vgg16_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Conv5Copies:
    """torchvision's VGG16 up to conv5_3 with up to two copies of conv5: "conv5" and "conv5_reg".

    MODEL.VGG.OUT_FEATURES decides which exist, MODEL.ROI_GRCN what stride each has: 16 with pool4
    before it, 8 without. MODEL.BACKBONE.FREEZE_AT freezes that many stages, "conv1" first.

    Raises:
        ValueError: an invalid setting; names the key.
    """
    check_conv5_config(cfg, "build_grcn_vgg16_backbone")
    assert input_shape.channels == 3, f"VGG16 takes 3 channels, not {input_shape.channels}"
    node, out_features = cfg.MODEL.ROI_GRCN, list(cfg.MODEL.VGG.OUT_FEATURES)
    strides = {"conv5": node.CLS_HEAD.STRIDE, "conv5_reg": node.REG_HEAD.STRIDE}
    strides = {name: stride for name, stride in strides.items() if name in out_features}
    copies = {name: _build_conv5(cfg, stride) for name, stride in strides.items()}
    depth = 4 if copies else max(int(name.removeprefix("conv")) for name in out_features)
    stages = {f"conv{i}": x for i, x in enumerate(_vgg16_stages()[:depth], 1)}
    for i, stage in enumerate(stages.values(), 1):
        stage.requires_grad_(i > cfg.MODEL.BACKBONE.FREEZE_AT)
    strides |= {name: 2**i for i, name in enumerate(stages)}
    modules = {**stages, **copies}
    shapes = {
        name: ShapeSpec(channels=modules[name][-2].out_channels, stride=strides[name])
        for name in out_features
    }
    return Conv5Copies(stages, copies, shapes, siblings=("conv5", "conv5_reg"))


def _build_conv5(cfg: CfgNode, stride: int) -> nn.Sequential:
    """VGG16's last stage on a map of stride 8: with pool4, or without and dilated."""
    stage = _vgg16_stages()[-1]
    if stride == 8:
        del stage.pool
        for module in stage:
            if isinstance(module, nn.Conv2d):
                module.dilation = module.padding = (cfg.MODEL.ROI_GRCN.DILATION,) * 2
    return stage.requires_grad_(cfg.MODEL.BACKBONE.FREEZE_AT < 5)


def _vgg16_stages() -> list[nn.Sequential]:
    """The five stages of torchvision's VGG16: the pooling before it, convolutions and ReLUs."""
    stages: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for layer in make_layers(cfgs["D"])[:-1]:  # without pool5
        if isinstance(layer, nn.MaxPool2d):
            stages.append(OrderedDict(pool=layer))
            continue
        if isinstance(layer, nn.Conv2d):
            weight_init.c2_msra_fill(layer)  # as torchvision initialises it
            number = sum(isinstance(x, nn.Conv2d) for x in stages[-1].values()) + 1
        stages[-1][f"{'conv' if isinstance(layer, nn.Conv2d) else 'relu'}{number}"] = layer
    return [nn.Sequential(stage) for stage in stages]
