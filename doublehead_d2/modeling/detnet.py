"""DetNet (https://arxiv.org/abs/1804.06215), a backbone for detection, and its feature pyramid.

The first four stages are ResNet's. From the fourth on the stride stays 16; there are a fifth and a
sixth stage, of dilated bottleneck blocks (Section 3.2).

Shape legend: N images of H x W pixels, whose sides are multiples of 16.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import (
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    ResNet,
)
from fvcore.nn import weight_init
from torch import Tensor, nn

from doublehead_d2.config import check_detnet_config

# Blocks of the stages 2 to 4, by depth of the ResNet
_BLOCKS = {50: (3, 4, 6), 101: (3, 4, 23)}
# Width of a bottleneck block's output relative to that of its 3x3 convolution
_EXPANSION = 4


class ProjectionBottleneckBlock(BottleneckBlock):
    """Block B (Fig. 2): a 1x1 convolution on the shortcut, though nothing changes its shape.

    detectron2's `BottleneckBlock`, block A, has one only where the channels change.
    """

    shortcut: nn.Module | None

    def __init__(self, in_channels: int, out_channels: int, *, norm: str, **kwargs: object) -> None:
        """
        Args:
            in_channels, out_channels: of the block.
            norm: of all its convolutions, a name that `get_norm` takes.
            kwargs: as `BottleneckBlock`.
        """
        super().__init__(in_channels, out_channels, norm=norm, **kwargs)
        if self.shortcut is None:
            self.shortcut = Conv2d(
                in_channels,
                out_channels,
                kernel_size=1,
                bias=False,
                norm=get_norm(norm, out_channels),
            )
            weight_init.c2_msra_fill(self.shortcut)


class DetNet(ResNet):
    """detectron2's `ResNet` with stages behind res5."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[CNNBlockBase]],
        *,
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stem: as `ResNet`.
            stages: blocks of res2, res3, ...; those behind the last of `out_features` are left out.
            num_classes: if given, average pooling and a linear classifier follow.
            out_features: names of the maps to return, "stem", "res2", ...; None: the last, or with
                `num_classes` the classifier's logits, "linear".
            freeze_at: how many of stem, res2, res3, ... are frozen.
        """
        if out_features is not None:
            names = ["stem", *(f"res{stage}" for stage in range(2, len(stages) + 2))]
            unknown = [name for name in out_features if name not in names]
            assert set(out_features) - {"stem"} and not unknown, f"{out_features} of {names}"
            stages = stages[: max(names.index(name) for name in out_features)]
        # `ResNet` itself would cut the stages behind res5, the last name that it knows.
        super().__init__(stem, stages, num_classes, out_features=None, freeze_at=freeze_at)
        if out_features is not None:
            self._out_features = list(out_features)


class DetNetFPN(Backbone):
    """The feature pyramid of DetNet (Fig. 2 E): plain sums where strides agree.

    detectron2's `FPN` refuses strides that do not double, and would name a map by its stride. Here
    it is named by its stage: the map of res6 is p6, with stride 16, and nothing is max-pooled.
    """

    def __init__(
        self,
        bottom_up: DetNet,
        in_features: Sequence[str],
        out_channels: int,
        *,
        norm: str = "",
        fuse_type: str = "sum",
    ) -> None:
        """
        Args:
            bottom_up: gives the maps.
            in_features: their names, finest first, "res2", "res3", ... without a gap.
            out_channels: of all maps of the pyramid.
            norm: of its convolutions, as in `FPN`; they have a bias where it is "".
            fuse_type: "sum" or "avg" of a map and what comes from above.
        """
        super().__init__()
        assert fuse_type in ("sum", "avg"), fuse_type
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        self.stages = [int(name.removeprefix("res")) for name in in_features]
        self._average = fuse_type == "avg"
        self._strides = [shapes[name].stride for name in in_features]
        for name, stage in zip(in_features, self.stages, strict=True):
            for layer, channels, size in (
                ("lateral", shapes[name].channels, 1),
                ("output", out_channels, 3),
            ):
                conv = Conv2d(
                    channels,
                    out_channels,
                    kernel_size=size,
                    padding=size // 2,
                    bias=norm == "",
                    norm=get_norm(norm, out_channels),
                )
                weight_init.c2_xavier_fill(conv)
                self.add_module(f"fpn_{layer}{stage}", conv)
        self._out_features = [f"p{stage}" for stage in self.stages]
        self._out_feature_strides = dict(zip(self._out_features, self._strides, strict=True))
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Sides of the input are multiples of this, the largest stride."""
        return max(self._strides)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images N x 3 x H x W to the maps of the pyramid by name, finest first."""
        bottom_up = self.bottom_up(x)
        maps: dict[str, Tensor] = {}
        above: Tensor | None = None
        stride_above = self._strides[-1]
        for stage, stride in zip(self.stages[::-1], self._strides[::-1], strict=True):
            merged = self.get_submodule(f"fpn_lateral{stage}")(bottom_up[f"res{stage}"])
            if above is not None:
                if stride != stride_above:
                    above = F.interpolate(above, scale_factor=2.0, mode="nearest")
                merged = merged + above
                if self._average:
                    merged = merged / 2
            maps[f"p{stage}"] = self.get_submodule(f"fpn_output{stage}")(merged)
            above, stride_above = merged, stride
        return {name: maps[name] for name in self._out_features}


class DetNetClassifier(DetNet):
    """DetNet under an image classifier, for training on ImageNet or the like."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images N x 3 x H x W to logits, N x classes."""
        return super().forward(x)["linear"]


def build_detnet_classifier(
    num_classes: int, *, depth: int = 50, norm: str = "BN", width: int = 64, projection: bool = True
) -> DetNetClassifier:
    """An image classifier for the training scripts of torchvision and timm.

    It has its strides in the 3x3 convolutions, as torchvision's ResNets. `convert_checkpoint` and
    MODEL.WEIGHTS take its state dict.

    Args:
        num_classes: rows of the logits.
        depth: of the ResNet whose first stages it has; 50 makes DetNet-59.
        norm: of all convolutions.
        width: channels of the stem; all others are in proportion.
        projection: whether stages 5 and 6 begin with block B; False is DetNet-59-NoProj.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"depth is {depth}; allowed: {', '.join(map(str, _BLOCKS))}")
    stem = BasicStem(out_channels=width, norm=norm)
    stages = _resnet_stages(
        depth,
        stem.out_channels,
        out_channels=width * _EXPANSION,
        bottleneck_channels=width,
        norm=norm,
        stride_in_1x1=False,
    )
    stages += _dilated_stages(
        stages[-1][-1].out_channels, blocks=3, dilation=2, projection=projection, norm=norm
    )
    return DetNetClassifier(stem, stages, num_classes=num_classes)


@BACKBONE_REGISTRY.register()
def build_detnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DetNet:
    """DetNet of `MODEL.RESNETS` and `MODEL.DETNET`; raises ValueError where they are invalid."""
    check_detnet_config(cfg)
    resnets, node = cfg.MODEL.RESNETS, cfg.MODEL.DETNET
    stem = BasicStem(
        in_channels=input_shape.channels, out_channels=resnets.STEM_OUT_CHANNELS, norm=resnets.NORM
    )
    stages = _resnet_stages(
        resnets.DEPTH,
        stem.out_channels,
        out_channels=resnets.RES2_OUT_CHANNELS,
        bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP,
        norm=resnets.NORM,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        num_groups=resnets.NUM_GROUPS,
        deformable=resnets.DEFORM_ON_PER_STAGE[:3],
        deform_modulated=resnets.DEFORM_MODULATED,
        deform_num_groups=resnets.DEFORM_NUM_GROUPS,
    )
    stages += _dilated_stages(
        stages[-1][-1].out_channels,
        blocks=node.BLOCKS,
        dilation=node.DILATION,
        projection=node.PROJECTION,
        norm=node.NORM or resnets.NORM,
    )
    return DetNet(
        stem,
        stages,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_detnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DetNetFPN:
    """DetNet with its feature pyramid, of `MODEL.FPN`; raises ValueError as the backbone."""
    return DetNetFPN(
        build_detnet_backbone(cfg, input_shape),
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _resnet_stages(
    depth: int,
    in_channels: int,
    *,
    out_channels: int,
    bottleneck_channels: int,
    deformable: Sequence[bool] = (False, False, False),
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
    **kwargs: object,
) -> list[list[CNNBlockBase]]:
    """Blocks of res2 to res4 (`ResNet.make_default_stages` has fixed widths and four stages)."""
    stages = []
    for index, (blocks, deform) in enumerate(zip(_BLOCKS[depth], deformable, strict=True)):
        deform_kwargs = {
            "deform_modulated": deform_modulated,
            "deform_num_groups": deform_num_groups,
        }
        stages.append(
            ResNet.make_stage(
                DeformBottleneckBlock if deform else BottleneckBlock,
                blocks,
                in_channels=in_channels,
                out_channels=out_channels,
                bottleneck_channels=bottleneck_channels,
                stride_per_block=[1 if index == 0 else 2, *[1] * (blocks - 1)],
                **kwargs,
                **(deform_kwargs if deform else {}),
            )
        )
        in_channels = out_channels
        out_channels, bottleneck_channels = 2 * out_channels, 2 * bottleneck_channels
    return stages


def _dilated_stages(
    channels: int, *, blocks: int, dilation: int, projection: bool, norm: str
) -> list[list[CNNBlockBase]]:
    """Blocks of res5 and res6: B, A, A, ... each, as many channels in as out."""
    kwargs = {
        "in_channels": channels,
        "out_channels": channels,
        "bottleneck_channels": channels // _EXPANSION,
        "dilation": dilation,
        "norm": norm,
    }
    first = ProjectionBottleneckBlock if projection else BottleneckBlock
    return [
        ResNet.make_stage(first, 1, **kwargs)
        + ResNet.make_stage(BottleneckBlock, blocks - 1, **kwargs)
        for _ in range(2)
    ]
