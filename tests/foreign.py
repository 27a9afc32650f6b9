"""Checkpoints as the published implementations write them, with weights that anyone can remake.

golden/README.md says where their keys and shapes come from.
"""

import re
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from builders import narrow
from doublehead_d2 import model_zoo

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = {
    "mmdet": "Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml",
    "official": "Imported/official_double_head_ext_rcnn_R_50_FPN_1x.yaml",
    "tsd": "Imported/official_tsd_rcnn_R_50_FPN_1x.yaml",
    "tsd_mask": "Imported/official_tsd_mask_rcnn_R_50_FPN_1x.yaml",
}
WIDTHS = {"R-50": 1, "1/16": 2}  # column of the key files
# Factors on random weights, by the first pattern that is found in a key: logits, deltas and
# features keep the size of a trained model's.
MMDET_TRUNK = [
    (r"layer\d\.\d+\.conv3", 0.4),
    ("lateral_convs.0", -0.75),
    ("fpn_convs.0", -0.52),
    ("lateral_convs.1", -1.15),
    ("fpn_convs.1", -1.09),
    ("lateral_convs.2", -0.75),
    ("fpn_convs.2", 1.18),
    ("lateral_convs.3", 1.39),
    ("fpn_convs.3", 0.84),
    ("rpn_conv", 1.05),
    ("rpn_cls", 0.93),
    ("rpn_reg", -0.14),
]
GAINS = {
    "mmdet": [
        *MMDET_TRUNK,
        ("res_block", 0.74),
        (r"conv_branch\.\d\.conv3", 0.26),
        ("conv_branch", 0.68),
        ("fc_reg", 0.6),
        ("fc_branch.0", 1.11),
        ("fc_branch.1", 1.67),
        ("fc_cls", 2.82),
        ("", 1.4),
    ],
    "official": [
        ("stem.conv1", 0.05),
        (r"layer\d\.\d+\.conv3", 0.5),
        ("fpn_inner|fpn_layer", 1.1),
        ("rpn.head.conv", 1.4),
        ("cls_logits", 1.2),
        ("rpn.head.bbox_pred", 0.12),
        ("nonlocal_conv.top", -1.2),
        ("nonlocal_conv.bottom", 0.8),
        (r"\.(theta|phi|g)\.", 0.4),
        (r"\.W\.", 0.3),
        ("ffconv.bottleneck.0", -1.2),
        ("shared_nonlocal.0.ffconv.bottleneck.6", -1.5),
        ("shared_nonlocal.1.ffconv.bottleneck.6", 0.6),
        ("fc6", -1.2),
        ("predictor.cls_score_fc", 1.5),
        ("predictor.cls_score", -0.6),
        ("predictor.bbox_pred", 0.8),
        ("", 1.2),
    ],
    "tsd": [
        *MMDET_TRUNK,
        (r"shared_fc\.", 1.0),
        (r"delta_\w\.0", 1.0),
        (r"delta_\w\.2", 0.7),
        ("fc_reg", 0.6),
        ("TSD_fc_cls", -1.5),
        ("mask_head", 1.4),
        ("", 1.4),
    ],
}
GAINS["tsd_mask"] = GAINS["tsd"]


def tiny_cfg(source: str, *opts: object) -> CfgNode:
    """The Imported config of a source, its backbone at 1/16 width, with 5 classes, on the CPU."""
    cfg = model_zoo.get_config(CONFIGS[source])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    narrow(cfg, backbone=16, heads=32)
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.merge_from_list(list(opts))
    return cfg


def key_file(source: str) -> list[list[str]]:
    """Of every key of a source's model the columns of the file."""
    name = source.removesuffix("_mask")
    lines = (GOLDEN / f"{name}_keys.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return [row for row in rows if not row[0].startswith("mask_head.") or source != name]


def foreign_state(source: str, width: str = "1/16") -> "OrderedDict[str, Tensor]":
    """A state dict with every key of a source's model, in its order."""
    state = OrderedDict()
    for columns in key_file(source):
        text = columns[WIDTHS[width]]
        shape = tuple(map(int, text.split("x"))) if text != "scalar" else ()
        state[columns[0]] = torch.as_tensor(random_weights(columns[0], shape, GAINS[source]))
    return state


def random_weights(key: str, shape: tuple, gains: list) -> np.ndarray:
    """Weights, norm statistics or a counter, as the key's name tells, seeded by the key."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * random.standard_normal(shape)
    elif len(shape) == 1:  # scale of a norm
        values = random.uniform(0.5, 1.5, shape)
    else:
        gain = next(gain for pattern, gain in gains if re.search(pattern, key))
        values = gain * random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return np.asarray(values, np.float32)


def foreign_checkpoint(source: str, width: str = "1/16") -> dict:
    """What `torch.load` gives for a file of the source."""
    state = foreign_state(source, width)
    if source != "official":
        meta = {"mmdet_version": "2.0.0", "epoch": 12, "CLASSES": ("a", "b"), "config": "..."}
        return {"meta": meta, "state_dict": state}
    # Trained on several GPUs: a state dict of the wrapped model.
    wrapped = OrderedDict((f"module.{key}", value) for key, value in state.items())
    return {"model": wrapped, "iteration": 180000}


def save_foreign(source: str, path: Path, width: str = "1/16") -> Path:
    """Write a file as the source's old PyTorch did."""
    checkpoint = foreign_checkpoint(source, width)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    return path


def image(seed: int, height: int, width: int) -> np.ndarray:
    """A BGR image H x W x 3, uint8: blobs and a little noise."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    picture = np.zeros((height, width, 3))
    for _ in range(12):
        center_y, center_x = random.uniform(0, height), random.uniform(0, width)
        size = random.uniform(6, 40)
        blob = np.exp(-((y - center_y) ** 2 + (x - center_x) ** 2) / (2 * size * size))
        picture += random.uniform(-1, 1, 3) * blob[..., None]
    picture = 127 + 100 * picture + random.uniform(-8, 8, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)
