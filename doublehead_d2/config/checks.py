"""Checks of a config that belong to no system, and the device that a model falls back to."""

import logging

import torch
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def check_tta_config(cfg: CfgNode) -> None:
    """Refuse test-time augmentation of what detectron2 cannot augment.

    Raises:
        ValueError: names the key that stands against it.
    """
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            raise ValueError(
                f"TEST.AUG.ENABLED is True and MODEL.{key} is True: detectron2 has no test-time "
                "augmentation for that; set TEST.AUG.ENABLED False"
            )


def fall_back_to_cpu(cfg: CfgNode) -> None:
    """Where `cfg` asks for CUDA and there is none, set MODEL.DEVICE to the CPU and say so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(
            "MODEL.DEVICE is '%s', but CUDA is not available: using the CPU.", cfg.MODEL.DEVICE
        )
        cfg.MODEL.DEVICE = "cpu"
