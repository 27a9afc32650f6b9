"""The keys of G-RCN and of backbones with two copies of Conv5, and their check.

Of the paper (https://arxiv.org/abs/2012.03677) the abstract alone was available: what it does not
say is a key here, its default our choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode

from doublehead_d2.config.shared import (
    check_box_heads,
    check_deformable_convolution,
    check_positive,
    check_word,
)

_KEY = "MODEL.ROI_GRCN"
CONTEXTS = ("none", "add", "concat")


class Conv5Copies(NamedTuple):
    """A backbone with up to two copies of Conv5."""

    out_features: str  # key of the maps that it gives
    stages: tuple[str, ...]  # below Conv5
    copies: tuple[str, str]  # for classification and for boxes
    strides: tuple[int, int]  # of a copy: without and with its own downsampling

    @property
    def maps(self) -> tuple[str, ...]:
        """All that it can give."""
        return (*self.stages, *self.copies)


BACKBONES = {
    "build_grcn_resnet_backbone": Conv5Copies(
        "MODEL.RESNETS.OUT_FEATURES",
        ("stem", "res2", "res3", "res4"),
        ("res5", "res5_reg"),
        (16, 32),
    ),
    "build_grcn_vgg16_backbone": Conv5Copies(
        "MODEL.VGG.OUT_FEATURES",
        ("conv1", "conv2", "conv3", "conv4"),
        ("conv5", "conv5_reg"),
        (8, 16),
    ),
}


def add_keys(cfg: CfgNode) -> None:
    """Add `MODEL.ROI_GRCN` and `MODEL.VGG`.

    `MODEL.ROI_HEADS.IN_FEATURES` and `MODEL.ROI_BOX_HEAD` keep detectron2's meaning and describe
    the classification branch; how RoIs are pooled (POOLER_*) is said there for both branches.
    """
    cfg.MODEL.ROI_GRCN = node = CfgNode()

    # The branch that classifies. Its map is ROI_HEADS.IN_FEATURES, its head ROI_BOX_HEAD.NAME.
    node.CLS_HEAD = CfgNode()
    # Pixels a cell of the Conv5 copy "res5" or "conv5". ResNet: 32 keeps its own downsampling, 16
    # drops it; VGG16: 16 and 8.
    node.CLS_HEAD.STRIDE = 32
    # What the whole image, as one more RoI, tells each RoI: "none", its vector added ("add"), or
    # behind the RoI's own ("concat")
    node.CLS_HEAD.CONTEXT = "concat"
    # Weight of the class loss, > 0
    node.CLS_HEAD.LOSS_WEIGHT = 1.0

    # The branch that localises
    node.REG_HEAD = CfgNode()
    # As CLS_HEAD.STRIDE, of the copy "res5_reg" or "conv5_reg"
    node.REG_HEAD.STRIDE = 16
    # Maps that its RoIs are pooled from; with those of ROI_HEADS.IN_FEATURES the heads alone are
    # separate
    node.REG_HEAD.IN_FEATURES = ["res5_reg"]
    # Type of its head, any name of ROI_BOX_HEAD_REGISTRY
    node.REG_HEAD.NAME = "AveragePoolHead"
    # As CLS_HEAD.CONTEXT
    node.REG_HEAD.CONTEXT = "none"
    # Weight of the box loss, > 0
    node.REG_HEAD.LOSS_WEIGHT = 1.0

    # Dilation of the 3x3 convolutions of a copy whose own downsampling is dropped, 1 or 2: with 2
    # they reach as far in the image as before. A copy that keeps it is never dilated.
    node.DILATION = 2

    # In inference, show the regression head only the RoIs with a class above
    # ROI_HEADS.SCORE_THRESH_TEST. The detections are the same.
    node.LAZY_REG_HEAD = True

    cfg.MODEL.VGG = CfgNode()
    # Maps that build_grcn_vgg16_backbone gives, of "conv1" to "conv5" and "conv5_reg"
    cfg.MODEL.VGG.OUT_FEATURES = ["conv5"]


def check(cfg: CfgNode) -> None:
    """Refuse settings of G-RCN, and of backbones with copies of Conv5, in a model that has them.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    is_grcn = cfg.MODEL.ROI_HEADS.NAME == "GRCNROIHeads"
    if cfg.MODEL.BACKBONE.NAME in BACKBONES:
        check_conv5_config(cfg, cfg.MODEL.BACKBONE.NAME)
        _check_maps(cfg, is_grcn)
    if is_grcn:
        check_grcn_config(cfg)


def check_conv5_config(cfg: CfgNode, name: str) -> None:
    """Refuse settings under which a backbone with copies of Conv5 cannot be built.

    Args:
        cfg: a config with the keys of this package.
        name: the backbone's, one of `BACKBONES`.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    node, resnets, backbone = cfg.MODEL.ROI_GRCN, cfg.MODEL.RESNETS, BACKBONES[name]
    for head in ("CLS_HEAD", "REG_HEAD"):
        if node[head].STRIDE not in backbone.strides:
            raise ValueError(
                f"{_KEY}.{head}.STRIDE is {node[head].STRIDE}; with MODEL.BACKBONE.NAME '{name}' "
                f"allowed: {' or '.join(map(str, backbone.strides))}"
            )
    if node.DILATION not in (1, 2):
        raise ValueError(f"{_KEY}.DILATION is {node.DILATION}; allowed: 1 or 2")
    given = _out_features(cfg, name)
    if not given or not set(given) <= set(backbone.maps):
        raise ValueError(
            f"{backbone.out_features} is {given}; with MODEL.BACKBONE.NAME '{name}' allowed: one "
            f"or more of {', '.join(map(repr, backbone.maps))}"
        )
    if name != "build_grcn_resnet_backbone":
        return
    if resnets.DEPTH in (18, 34) and node.DILATION != 1:
        raise ValueError(
            f"{_KEY}.DILATION is {node.DILATION} and MODEL.RESNETS.DEPTH is {resnets.DEPTH}, whose "
            "blocks cannot be dilated; allowed: 1"
        )
    if resnets.RES5_DILATION != 1:
        raise ValueError(
            f"MODEL.RESNETS.RES5_DILATION is {resnets.RES5_DILATION}; with MODEL.BACKBONE.NAME "
            f"'{name}' allowed: 1 (strides and dilation are {_KEY}.CLS_HEAD.STRIDE, "
            f"{_KEY}.REG_HEAD.STRIDE and {_KEY}.DILATION)"
        )
    if resnets.DEFORM_ON_PER_STAGE[-1]:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {list(resnets.DEFORM_ON_PER_STAGE)}; with "
            f"MODEL.BACKBONE.NAME '{name}' allowed: False for res5, the last"
        )


def check_grcn_config(cfg: CfgNode) -> None:
    """Refuse settings under which `GRCNROIHeads` cannot be built or would mean nothing.

    Which maps there are, other backbones say when they are built: see :func:`check_map_names`.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    node, box_head = cfg.MODEL.ROI_GRCN, cfg.MODEL.ROI_BOX_HEAD
    for name in ("CLS_HEAD", "REG_HEAD"):
        check_word(f"{_KEY}.{name}.CONTEXT", node[name].CONTEXT, CONTEXTS)
        check_positive(f"{_KEY}.{name}.LOSS_WEIGHT", node[name].LOSS_WEIGHT)
    # A weight of 0 would leave the predictor of boxes without a gradient.
    check_positive("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", box_head.BBOX_REG_LOSS_WEIGHT)
    heads = {"MODEL.ROI_BOX_HEAD.NAME": box_head.NAME, f"{_KEY}.REG_HEAD.NAME": node.REG_HEAD.NAME}
    check_box_heads(heads)
    for key, part in (("MASK_ON", "mask"), ("KEYPOINT_ON", "keypoint")):
        if cfg.MODEL[key]:
            raise ValueError(
                f"MODEL.{key} is True and MODEL.ROI_HEADS.NAME is 'GRCNROIHeads', which has no "
                f"{part} head; allowed: False"
            )
    check_deformable_convolution(cfg)


def check_map_names(key: str, names: Sequence[str], given: Sequence[str]) -> None:
    """Raise ValueError unless `names` are maps that the backbone gives, one at least."""
    if not names or not set(names) <= set(given):
        raise ValueError(
            f"{key} is {list(names)}; allowed: maps that the backbone gives, "
            f"{', '.join(map(repr, given))}"
        )


def _out_features(cfg: CfgNode, backbone: str) -> list[str]:
    _, section, name = BACKBONES[backbone].out_features.split(".")
    return list(cfg.MODEL[section][name])


def _check_maps(cfg: CfgNode, is_grcn: bool) -> None:
    """Every map that is read must be given, and every copy that is built be read."""
    name = cfg.MODEL.BACKBONE.NAME
    backbone, given = BACKBONES[name], _out_features(cfg, name)
    read = {"MODEL.ROI_HEADS.IN_FEATURES": cfg.MODEL.ROI_HEADS.IN_FEATURES}
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":
        read["MODEL.RPN.IN_FEATURES"] = cfg.MODEL.RPN.IN_FEATURES
    if is_grcn:
        read[f"{_KEY}.REG_HEAD.IN_FEATURES"] = cfg.MODEL.ROI_GRCN.REG_HEAD.IN_FEATURES
    for key, names in read.items():
        check_map_names(key, names, given)
    for copy in backbone.copies:
        if copy in given and not any(copy in names for names in read.values()):
            # It would have no gradient, which training in several processes does not allow.
            raise ValueError(
                f"{backbone.out_features} is {given}, and '{copy}' is in none of "
                f"{', '.join(read)}; allowed: maps that are read"
            )
