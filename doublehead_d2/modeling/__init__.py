"""The models, one system a file; importing this package registers their parts in detectron2."""

from doublehead_d2.modeling.box_head import DoubleHeadConvHead
from doublehead_d2.modeling.conv5_copies import (
    build_grcn_resnet_backbone,
    build_grcn_vgg16_backbone,
)
from doublehead_d2.modeling.detnet import (
    build_detnet_backbone,
    build_detnet_classifier,
    build_detnet_fpn_backbone,
)
from doublehead_d2.modeling.double_head import DoubleHeadROIHeads
from doublehead_d2.modeling.grcn import AveragePoolHead, GRCNROIHeads
from doublehead_d2.modeling.legacy import (
    LegacyAnchorGenerator,
    LegacyRPN,
    Mmdet1AnchorGenerator,
    Mmdet1RPN,
)
from doublehead_d2.modeling.levels import StandardROIHeadsByLevel
from doublehead_d2.modeling.tsd import TSDROIHeads

__all__ = [
    "AveragePoolHead",
    "DoubleHeadConvHead",
    "DoubleHeadROIHeads",
    "GRCNROIHeads",
    "LegacyAnchorGenerator",
    "LegacyRPN",
    "Mmdet1AnchorGenerator",
    "Mmdet1RPN",
    "StandardROIHeadsByLevel",
    "TSDROIHeads",
    "build_detnet_backbone",
    "build_detnet_classifier",
    "build_detnet_fpn_backbone",
    "build_grcn_resnet_backbone",
    "build_grcn_vgg16_backbone",
]
