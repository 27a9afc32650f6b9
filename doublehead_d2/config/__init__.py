"""Config keys and their checks: a system a file, and what all systems share."""

from doublehead_d2.config.checks import (
    check_config,
    check_model,
    check_tta_config,
    fall_back_to_cpu,
)
from doublehead_d2.config.defaults import add_doublehead_config
from doublehead_d2.config.detnet import check_detnet_config
from doublehead_d2.config.double_head import (
    BLOCKS,
    BOX_SOURCES,
    SCORE_FUSIONS,
    TRAIN_REG_HEAD_ON,
    check_conv_head_config,
    check_doublehead_config,
)
from doublehead_d2.config.grcn import check_conv5_config, check_grcn_config, check_map_names
from doublehead_d2.config.keys import merge_opts
from doublehead_d2.config.shared import NORMS, check_deformable_convolution
from doublehead_d2.config.tsd import check_tsd_config

__all__ = [
    "BLOCKS",
    "BOX_SOURCES",
    "NORMS",
    "SCORE_FUSIONS",
    "TRAIN_REG_HEAD_ON",
    "add_doublehead_config",
    "check_config",
    "check_conv5_config",
    "check_conv_head_config",
    "check_deformable_convolution",
    "check_detnet_config",
    "check_doublehead_config",
    "check_grcn_config",
    "check_map_names",
    "check_model",
    "check_tsd_config",
    "check_tta_config",
    "fall_back_to_cpu",
    "merge_opts",
]
