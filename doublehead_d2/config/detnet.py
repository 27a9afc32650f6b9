"""The keys of DetNet and their check."""

import logging
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY

from doublehead_d2.config.shared import (
    NORMS,
    check_deformable_convolution,
    check_int,
    check_word,
)

BACKBONES = ("build_detnet_backbone", "build_detnet_fpn_backbone")
DEPTHS = (50, 101)
STAGES = ("stem", "res2", "res3", "res4", "res5", "res6")
FUSE_TYPES = ("sum", "avg")
GROUPS_OF_GN = 32  # detectron2's

_KEY = "MODEL.DETNET"

logger = logging.getLogger(__name__)


def add_keys(cfg: CfgNode) -> None:
    """Add `MODEL.DETNET` with the defaults of DetNet-59.

    `MODEL.RESNETS` describes stem and stages 2 to 4, `MODEL.FPN` the pyramid.
    """
    cfg.MODEL.DETNET = node = CfgNode()

    # Bottleneck blocks of each of the stages 5 and 6
    node.BLOCKS = 3
    # Of their 3x3 convolutions
    node.DILATION = 2
    # Whether the first block of each has a 1x1 convolution on its shortcut (block B); False is
    # the paper's DetNet-59-NoProj
    node.PROJECTION = True
    # Their norm; "": as RESNETS.NORM. Weights of a ResNet leave these stages as initialised, and
    # FrozenBN then normalises nothing: it is for weights of the whole backbone.
    node.NORM = ""


def check(cfg: CfgNode) -> None:
    """Refuse settings of DetNet in a model that has it, and warn of norms that do nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    if cfg.MODEL.BACKBONE.NAME not in BACKBONES:
        return
    check_detnet_config(cfg)
    _check_pooling(cfg)
    if _norm(cfg) == "FrozenBN" and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "%s.NORM is '%s' and MODEL.RESNETS.NORM 'FrozenBN': without MODEL.WEIGHTS it "
            "normalises nothing, and the maps of res5 and res6 spread widely. Use 'GN' or 'BN'.",
            *(_KEY, cfg.MODEL.DETNET.NORM),
        )


def check_detnet_config(cfg: CfgNode) -> None:
    """Refuse settings under which a DetNet backbone cannot be built or would be another.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    node, resnets = cfg.MODEL.DETNET, cfg.MODEL.RESNETS
    for name in ("BLOCKS", "DILATION"):
        check_int(f"{_KEY}.{name}", node[name], 1)
    check_word(f"{_KEY}.NORM", node.NORM, ("", *NORMS))
    if resnets.DEPTH not in DEPTHS:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; with MODEL.BACKBONE.NAME "
            f"'{cfg.MODEL.BACKBONE.NAME}' allowed: {', '.join(map(str, DEPTHS))}"
        )
    check_int("MODEL.BACKBONE.FREEZE_AT", cfg.MODEL.BACKBONE.FREEZE_AT, 0, len(STAGES))
    _check_width(cfg)
    if not set(resnets.OUT_FEATURES) - {"stem"}:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES is {list(resnets.OUT_FEATURES)}; allowed: some of "
            f"{_words(STAGES)}, and not the stem alone"
        )
    for name in resnets.OUT_FEATURES:
        check_word("MODEL.RESNETS.OUT_FEATURES", name, STAGES)
    if resnets.RES5_DILATION != 1:
        raise ValueError(
            f"MODEL.RESNETS.RES5_DILATION is {resnets.RES5_DILATION}; with MODEL.BACKBONE.NAME "
            f"'{cfg.MODEL.BACKBONE.NAME}' allowed: 1; stages 5 and 6 are dilated by "
            f"{_KEY}.DILATION, {node.DILATION}"
        )
    if any(resnets.DEFORM_ON_PER_STAGE[3:]):
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {list(resnets.DEFORM_ON_PER_STAGE)}; allowed: "
            "False in the last place: stages 5 and 6 of DetNet are dilated, not deformable"
        )
    check_deformable_convolution(cfg)
    if cfg.MODEL.BACKBONE.NAME == "build_detnet_fpn_backbone":
        _check_pyramid(cfg)


def _norm(cfg: CfgNode) -> str:
    """Of stages 5 and 6."""
    norm: str = cfg.MODEL.DETNET.NORM or cfg.MODEL.RESNETS.NORM
    return norm


def _check_width(cfg: CfgNode) -> None:
    """GroupNorm has 32 groups; a width that they do not divide ends in an error without a key."""
    resnets = cfg.MODEL.RESNETS
    width = resnets.RES2_OUT_CHANNELS
    step, why = 1, ""
    if _norm(cfg) == "GN":
        step, why = GROUPS_OF_GN, f", for the groups of {_KEY}.NORM 'GN'"
    if width < 1 or width % step:
        raise ValueError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {width}; allowed: multiples of {step}{why}"
        )


def _check_pyramid(cfg: CfgNode) -> None:
    found, given = list(cfg.MODEL.FPN.IN_FEATURES), list(cfg.MODEL.RESNETS.OUT_FEATURES)
    stages = list(STAGES[1:])
    runs = [stages[i:j] for i in range(len(stages)) for j in range(i + 1, len(stages) + 1)]
    if found not in runs or not set(found) <= set(given):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {found}; allowed: stages of MODEL.RESNETS.OUT_FEATURES, "
            f"{given}, one after another, finest first"
        )
    check_word("MODEL.FPN.FUSE_TYPE", cfg.MODEL.FPN.FUSE_TYPE, FUSE_TYPES)


def _check_pooling(cfg: CfgNode) -> None:
    """detectron2's own RoI heads pool from no two maps of one stride."""
    name, used = cfg.MODEL.ROI_HEADS.NAME, list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    repeated = len({"p4", "p5", "p6", "res4", "res5", "res6"} & set(used)) > 1
    heads = dict(iter(ROI_HEADS_REGISTRY))
    if repeated and not hasattr(heads[name], "pools_by_level"):
        allowed = [n for n, h in heads.items() if hasattr(h, "pools_by_level")]
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{name}', which pools from no two maps of one stride, and "
            f"MODEL.ROI_HEADS.IN_FEATURES is {used}; allowed: {_words(allowed)}"
        )


def _words(words: Iterable[str]) -> str:
    return ", ".join(map(repr, words))
