"""Config keys of Double-Head R-CNN and the conv-head, and their check.

Symbols are those of the paper (https://arxiv.org/abs/1904.06493): ω weighs a head (Eq. 1), λ
divides a head's loss between the task it is focused on and the other one (Eqs. 2 and 3).
"""

from collections.abc import Sequence

from detectron2.config import CfgNode

from doublehead_d2.config.shared import (
    NORMS,
    check_box_heads,
    check_deformable_convolution,
    check_legacy_pooler,
    check_positive,
    check_word,
)

BLOCKS = ("residual", "bottleneck", "nonlocal")
SCORE_FUSIONS = ("cls_head", "reg_head", "complementary", "average", "max")
BOX_SOURCES = ("reg_head", "cls_head")
TRAIN_REG_HEAD_ON = ("all", "foreground")

_KEY = "MODEL.ROI_DOUBLE_HEAD"


def add_keys(cfg: CfgNode) -> None:
    """Add `MODEL.ROI_DOUBLE_HEAD` with the defaults of plain Double-Head.

    `MODEL.ROI_BOX_HEAD` keeps detectron2's meaning (pooler, box coder, box loss, fc-head) and
    describes the head focused on classification; its NAME is the type of that head.
    """
    cfg.MODEL.ROI_DOUBLE_HEAD = node = CfgNode()

    # The head focused on classification: the paper's fc-head. Its type is ROI_BOX_HEAD.NAME.
    node.CLS_HEAD = CfgNode()
    # ω^fc of Eq. 1, > 0
    node.CLS_HEAD.LOSS_WEIGHT = 2.0
    # λ^fc of Eq. 2, in [0, 1]: weight of its classification loss; 1 - λ weighs its box loss.
    # 0.7 in Double-Head-Ext. A predictor whose weight is 0 is not built.
    node.CLS_HEAD.LAMBDA = 1.0
    # Factor by which a RoI is enlarged about its centre before pooling, > 0. The FPN level is
    # that of the original RoI; the enlarged one is not clipped to the image.
    node.CLS_HEAD.ROI_SCALE = 1.0

    # The head focused on regression: the paper's conv-head.
    node.REG_HEAD = CfgNode()
    # Type of the head, any name of ROI_BOX_HEAD_REGISTRY
    node.REG_HEAD.NAME = "DoubleHeadConvHead"
    # ω^conv of Eq. 1, > 0
    node.REG_HEAD.LOSS_WEIGHT = 2.5
    # λ^conv of Eq. 3, in [0, 1]: weight of its box loss; 1 - λ weighs its classification loss.
    # 0.8 in Double-Head-Ext.
    node.REG_HEAD.LAMBDA = 1.0
    # As CLS_HEAD.ROI_SCALE. 1.3 is not in the paper but in both published implementations.
    node.REG_HEAD.ROI_SCALE = 1.3

    # DoubleHeadConvHead, wherever it is used
    node.CONV_HEAD = CfgNode()
    # Blocks in order (Fig. 5): "residual" first and only there, then "bottleneck" and "nonlocal".
    # The default is the paper's K = 5 with non-local blocks.
    node.CONV_HEAD.BLOCKS = ["residual", "nonlocal", "bottleneck", "nonlocal", "bottleneck"]
    # Output channels of every block
    node.CONV_HEAD.DIM = 1024
    # Inner channels of the bottleneck blocks
    node.CONV_HEAD.BOTTLENECK_DIM = 256
    # Inner channels of the non-local blocks, and the groups that attend separately
    node.CONV_HEAD.NONLOCAL_DIM = 512
    node.CONV_HEAD.NONLOCAL_GROUPS = 4
    # Normalisation of the convolutions (the paper: BN trained with batch statistics). SyncBN and
    # nnSyncBN need GPUs; naiveSyncBN stops where a process has no RoI, naiveSyncBN_N does not.
    node.CONV_HEAD.NORM = "BN"
    # In inference, fold batch norms into the convolutions before them: the same up to rounding, in
    # less time (dev/benchmarks). A second copy of the weights is kept; code that writes to
    # `parameter.data` between two images must call the model's eval() then. Blocks with forward
    # hooks, pruned or parametrised weights, or weights made in inference mode are left as they are.
    node.CONV_HEAD.FOLD_BN = False
    # In training, keep only the blocks' inputs for the backward pass and compute the rest again:
    # the same gradients for less memory and more time
    node.CONV_HEAD.USE_ACT_CHECKPOINT = False

    # Class scores of a detection: one head's, or both fused (Eq. 4 is "complementary")
    node.SCORE_FUSION = "cls_head"
    # The head whose boxes are used
    node.BOX_SOURCE = "reg_head"

    # In inference, show the regression head only those RoIs that can be detected: where scores are
    # the classification head's alone, RoIs with a class above ROI_HEADS.SCORE_THRESH_TEST, none if
    # boxes are, too. The detections are the same. (SCORE_FLOOR has its own switch, its value.)
    node.LAZY_REG_HEAD = True
    # In inference with fused scores, leave out RoIs whose probabilities by the classification head
    # are all below this; at most ROI_HEADS.SCORE_THRESH_TEST; 0 leaves out none. Lost are
    # detections that only the regression head believes in: each has less than this from the
    # classification head.
    node.SCORE_FLOOR = 0.0

    # Sampled RoIs that the regression head is shown in training: "all", or only those that it
    # learns from, "foreground", where REG_HEAD.LAMBDA is 1. Its losses are divided by all of them
    # either way, and its gradients differ only by its batch norms, whose statistics are those of
    # the RoIs it is shown (the paper's: all).
    node.TRAIN_REG_HEAD_ON = "all"

    # Pool RoIs at corners that name the first and the last pixel, and clip detections to pixels, as
    # the authors' code does: for its checkpoints (configs/Imported), with ROI_BOX_HEAD.POOLER_TYPE
    # "ROIAlign", PROPOSAL_GENERATOR.NAME "LegacyRPN" and ANCHOR_GENERATOR.NAME
    # "LegacyAnchorGenerator". Boxes stay detectron2's.
    node.LEGACY_BOXES = False


def check(cfg: CfgNode) -> None:
    """Refuse settings of Double-Head and of the conv-head in a model that has them.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    box_heads = [cfg.MODEL.ROI_BOX_HEAD.NAME]
    if cfg.MODEL.ROI_HEADS.NAME == "DoubleHeadROIHeads":
        check_doublehead_config(cfg)
        box_heads.append(cfg.MODEL.ROI_DOUBLE_HEAD.REG_HEAD.NAME)
    if "DoubleHeadConvHead" in box_heads:
        check_conv_head_config(cfg)


def check_doublehead_config(cfg: CfgNode) -> None:
    """Refuse settings under which `DoubleHeadROIHeads` cannot be built or would mean nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    check_word(f"{_KEY}.SCORE_FUSION", node.SCORE_FUSION, SCORE_FUSIONS)
    check_word(f"{_KEY}.BOX_SOURCE", node.BOX_SOURCE, BOX_SOURCES)
    for name, head in (("CLS_HEAD", node.CLS_HEAD), ("REG_HEAD", node.REG_HEAD)):
        if not 0.0 <= head.LAMBDA <= 1.0:
            raise ValueError(f"{_KEY}.{name}.LAMBDA is {head.LAMBDA}; allowed: 0 to 1")
        check_positive(f"{_KEY}.{name}.LOSS_WEIGHT", head.LOSS_WEIGHT)
        check_positive(f"{_KEY}.{name}.ROI_SCALE", head.ROI_SCALE)
    box_head = cfg.MODEL.ROI_BOX_HEAD
    # A weight of 0 would leave built predictors without a gradient.
    check_positive("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", box_head.BBOX_REG_LOSS_WEIGHT)
    _check_predictors(node)
    _check_score_floor(cfg)
    check_word(f"{_KEY}.TRAIN_REG_HEAD_ON", node.TRAIN_REG_HEAD_ON, TRAIN_REG_HEAD_ON)
    if node.TRAIN_REG_HEAD_ON == "foreground" and node.REG_HEAD.LAMBDA < 1:
        raise ValueError(
            f"{_KEY}.TRAIN_REG_HEAD_ON is 'foreground' and {_KEY}.REG_HEAD.LAMBDA is "
            f"{node.REG_HEAD.LAMBDA}: a regression head that classifies learns from background, "
            "too; allowed: 'all'"
        )
    if node.LEGACY_BOXES:
        check_legacy_pooler(cfg, f"{_KEY}.LEGACY_BOXES")
    heads = {"MODEL.ROI_BOX_HEAD.NAME": box_head.NAME, f"{_KEY}.REG_HEAD.NAME": node.REG_HEAD.NAME}
    check_box_heads(heads)
    check_deformable_convolution(cfg)


def check_conv_head_config(cfg: CfgNode, in_channels: int | None = None) -> None:
    """Refuse settings of `MODEL.ROI_DOUBLE_HEAD.CONV_HEAD` that describe no conv-head.

    Args:
        cfg: a config with the keys of this package.
        in_channels: channels of the RoI features that the head will be given, if known.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    node, key = cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD, f"{_KEY}.CONV_HEAD"
    blocks = list(node.BLOCKS)
    for word in blocks:
        check_word(f"{key}.BLOCKS", word, BLOCKS)
    if blocks[:1] != ["residual"] or "residual" in blocks[1:]:
        raise ValueError(
            f"{key}.BLOCKS is {blocks}; 'residual' must be its first block and stand only there, "
            "since it is the block that raises the number of channels"
        )
    check_word(f"{key}.NORM", node.NORM, NORMS)
    for name in ("DIM", "BOTTLENECK_DIM", "NONLOCAL_DIM", "NONLOCAL_GROUPS"):
        check_positive(f"{key}.{name}", node[name])
    if node.NONLOCAL_DIM % node.NONLOCAL_GROUPS:
        raise ValueError(
            f"{key}.NONLOCAL_GROUPS is {node.NONLOCAL_GROUPS}; allowed: a divisor of "
            f"{key}.NONLOCAL_DIM, which is {node.NONLOCAL_DIM}"
        )
    if node.NORM == "GN":
        widths = {f"{key}.{name}": node[name] for name in ("DIM", "BOTTLENECK_DIM")}
        if in_channels is not None:
            widths["the number of feature channels (MODEL.FPN.OUT_CHANNELS)"] = in_channels
        for name, width in widths.items():
            if width % 32:
                raise ValueError(
                    f"{name} is {width}; {key}.NORM 'GN' has 32 groups, allowed: a multiple of 32"
                )


def _check_predictors(node: CfgNode) -> None:
    """Scores and boxes must come from predictors that λ has not switched off."""
    cls_lambda, reg_lambda = node.CLS_HEAD.LAMBDA, node.REG_HEAD.LAMBDA
    scores = {"cls_head": cls_lambda > 0, "reg_head": reg_lambda < 1}
    boxes = {"cls_head": cls_lambda < 1, "reg_head": reg_lambda > 0}
    wanted = [node.SCORE_FUSION] if node.SCORE_FUSION in scores else list(scores)
    for head in wanted:
        if not scores[head]:
            allowed = [w for w in SCORE_FUSIONS if scores.get(w, all(scores.values()))]
            raise _switched_off(node, "SCORE_FUSION", head, "class scores", allowed)
    if not boxes[node.BOX_SOURCE]:
        allowed = [w for w in BOX_SOURCES if boxes[w]]
        raise _switched_off(node, "BOX_SOURCE", node.BOX_SOURCE, "boxes", allowed)


def _check_score_floor(cfg: CfgNode) -> None:
    """A floor is for fused scores, and must not lie above the threshold of detections."""
    node, highest = cfg.MODEL.ROI_DOUBLE_HEAD, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    fused = [word for word in SCORE_FUSIONS if word not in ("cls_head", "reg_head")]
    # Off is off, whatever the threshold: -1 shows all detections.
    if node.SCORE_FLOOR and not 0 <= node.SCORE_FLOOR <= highest:
        raise ValueError(
            f"{_KEY}.SCORE_FLOOR is {node.SCORE_FLOOR}; allowed: 0 to "
            f"MODEL.ROI_HEADS.SCORE_THRESH_TEST, which is {highest}"
        )
    if node.SCORE_FLOOR and node.SCORE_FUSION not in fused:
        raise ValueError(
            f"{_KEY}.SCORE_FLOOR is {node.SCORE_FLOOR} and {_KEY}.SCORE_FUSION is "
            f"'{node.SCORE_FUSION}'; a floor is for fused scores ({', '.join(map(repr, fused))}), "
            "allowed: 0"
        )


def _switched_off(
    node: CfgNode, key: str, head: str, what: str, allowed: Sequence[str]
) -> ValueError:
    head_key = head.upper()
    return ValueError(
        f"{_KEY}.{key} '{node[key]}' needs the {what} of {head_key}, which "
        f"{_KEY}.{head_key}.LAMBDA {node[head_key].LAMBDA} switches off; change that LAMBDA, "
        f"or set {key} to one of {list(allowed)}"
    )
