"""The keys of TSD and their check."""

from detectron2.config import CfgNode

from doublehead_d2.config.shared import (
    check_between,
    check_box_heads,
    check_deformable_convolution,
    check_legacy_pooler,
    check_positive,
)

_KEY = "MODEL.ROI_TSD"


def add_keys(cfg: CfgNode) -> None:
    """Add `MODEL.ROI_TSD` with the defaults of the paper.

    `MODEL.ROI_BOX_HEAD` keeps detectron2's meaning (pooler, box coder, box loss, fc-head) and
    describes the head that classifies and the sibling head; its NAME is the type of both.
    """
    cfg.MODEL.ROI_TSD = node = CfgNode()

    # Width of the two networks that predict offsets, in channels
    node.OFFSET_DIM = 256
    # γ: an offset of 1 moves by this part of the RoI's width or height
    node.OFFSET_SCALE = 0.1
    # Samples of a bin along each axis when RoIs are pooled at their offsets
    node.SAMPLES = 4

    # The head that classifies. Its type is ROI_BOX_HEAD.NAME.
    node.CLS_HEAD = CfgNode()
    # Weight of its loss, > 0
    node.CLS_HEAD.LOSS_WEIGHT = 1.0

    # The head that localises
    node.REG_HEAD = CfgNode()
    # Type of the head, any name of ROI_BOX_HEAD_REGISTRY; "DoubleHeadConvHead" is Double-Head TSD
    node.REG_HEAD.NAME = "FastRCNNConvFCHead"
    # Weight of its loss, > 0
    node.REG_HEAD.LOSS_WEIGHT = 1.0

    # Weight of both losses of the sibling head, which does both tasks on the proposal, in training
    # alone; 0: there is none, and no progressive constraint
    node.SIBLING_LOSS_WEIGHT = 1.0

    # Progressive constraint (PC): the disentangled heads are to be better than the sibling head
    node.PC = CfgNode()
    # Weights of M_cls and M_loc; 0: no such loss
    node.PC.CLS_WEIGHT = 1.0
    node.PC.LOC_WEIGHT = 1.0
    # m_c, of a probability, and m_r, of an IoU; in [0, 1]. 0.3 in the authors' configs.
    node.PC.CLS_MARGIN = 0.2
    node.PC.LOC_MARGIN = 0.2

    # In inference, show the regression head only the RoIs with a class above
    # ROI_HEADS.SCORE_THRESH_TEST. The detections are the same.
    node.LAZY_REG_HEAD = True

    # The authors' pooling, clipping and IoU: for their checkpoints (configs/Imported), with
    # ROI_BOX_HEAD.POOLER_TYPE "ROIAlign". Boxes stay detectron2's.
    node.LEGACY_BOXES = False


def check(cfg: CfgNode) -> None:
    """Refuse settings of TSD in a model that has it.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    if cfg.MODEL.ROI_HEADS.NAME == "TSDROIHeads":
        check_tsd_config(cfg)


def check_tsd_config(cfg: CfgNode) -> None:
    """Refuse settings under which `TSDROIHeads` cannot be built or would mean nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    node, box_head = cfg.MODEL.ROI_TSD, cfg.MODEL.ROI_BOX_HEAD
    for name in ("OFFSET_DIM", "OFFSET_SCALE", "SAMPLES"):
        check_positive(f"{_KEY}.{name}", node[name])
    for name in ("CLS_HEAD", "REG_HEAD"):
        check_positive(f"{_KEY}.{name}.LOSS_WEIGHT", node[name].LOSS_WEIGHT)
    check_positive("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", box_head.BBOX_REG_LOSS_WEIGHT)
    check_between(f"{_KEY}.SIBLING_LOSS_WEIGHT", node.SIBLING_LOSS_WEIGHT, 0)
    for name in ("CLS", "LOC"):
        check_between(f"{_KEY}.PC.{name}_WEIGHT", node.PC[f"{name}_WEIGHT"], 0)
        check_between(f"{_KEY}.PC.{name}_MARGIN", node.PC[f"{name}_MARGIN"], 0, 1)
        if node.PC[f"{name}_WEIGHT"] and not node.SIBLING_LOSS_WEIGHT:
            raise ValueError(
                f"{_KEY}.PC.{name}_WEIGHT is {node.PC[f'{name}_WEIGHT']} and "
                f"{_KEY}.SIBLING_LOSS_WEIGHT is 0: there is no sibling head to be better than; "
                "allowed: 0"
            )
    if node.LEGACY_BOXES:
        check_legacy_pooler(cfg, f"{_KEY}.LEGACY_BOXES")
    heads = {"MODEL.ROI_BOX_HEAD.NAME": box_head.NAME, f"{_KEY}.REG_HEAD.NAME": node.REG_HEAD.NAME}
    check_box_heads(heads)
    check_deformable_convolution(cfg)
