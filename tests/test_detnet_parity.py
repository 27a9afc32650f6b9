"""DetNet against two public implementations with the same weights (golden/README.md)."""

import numpy as np
import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor

from builders import default_cfg, small_cfg
from doublehead_d2.checkpoint import convert_checkpoint
from doublehead_d2.modeling.detnet import DetNetFPN, build_detnet_classifier
from doublehead_d2.modeling.levels import StandardROIHeadsByLevel
from foreign import GOLDEN

ARRAYS = {k: torch.as_tensor(v) for k, v in np.load(GOLDEN / "detnet_backbone.npz").items()}
IMAGE = ARRAYS["in/image"].float()
CLASSIFIER = {k.removeprefix("sd/"): v for k, v in ARRAYS.items() if k.startswith("sd/")}
STAGES = range(2, 7)
FPN = (
    *("MODEL.BACKBONE.NAME", "build_detnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5", "res6"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5", "res6"]),
    *("MODEL.RESNETS.STRIDE_IN_1X1", False),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", 0),
)


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def weights() -> dict[str, Tensor]:
    """The reference's weights by our names in the backbone."""
    state = convert_checkpoint(floats(CLASSIFIER))
    for stage in STAGES:
        for theirs, ours in ((f"fpn_p{stage}_1x1", "lateral"), (f"fpn_p{stage}", "output")):
            for name in ("weight", "bias"):
                value = ARRAYS[f"sd_fpn/{theirs}.{name}"].float()
                state[f"backbone.fpn_{ours}{stage}.{name}"] = value
    return {k.removeprefix("backbone."): v for k, v in state.items()}


def backbone(norm: str = "FrozenBN") -> DetNetFPN:
    cfg = default_cfg(*FPN, "MODEL.RESNETS.NORM", norm)
    model = build_backbone(cfg, ShapeSpec(channels=3))
    missing, unexpected = model.load_state_dict(weights(), strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing)
    return model


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_maps_of_the_stages(norm: str) -> None:
    model = backbone(norm).bottom_up.eval()
    with torch.no_grad():
        maps = model(IMAGE)
    for stage in STAGES:
        torch.testing.assert_close(maps[f"res{stage}"], ARRAYS[f"eval/C{stage}"], atol=1e-4, rtol=0)


def test_batch_statistics() -> None:
    with torch.no_grad():
        maps = backbone("BN").bottom_up.train()(IMAGE)
    torch.testing.assert_close(maps["res6"], ARRAYS["train/C6"], atol=1e-4, rtol=0)


def test_maps_of_the_pyramid() -> None:
    with torch.no_grad():
        maps = backbone().eval()(IMAGE)
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    for stage in STAGES:
        torch.testing.assert_close(maps[f"p{stage}"], ARRAYS[f"eval/P{stage}"], atol=5e-4, rtol=0)


def test_logits_of_the_classifier() -> None:
    model = build_detnet_classifier(10, width=4).eval()
    state = {k.removeprefix("bottom_up."): v for k, v in weights().items() if "fpn" not in k}
    linear = {f"linear.{name}": CLASSIFIER[f"fc.{name}"].float() for name in ("weight", "bias")}
    missing, unexpected = model.load_state_dict({**state, **linear}, strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    with torch.no_grad():
        logits = model(IMAGE)
    torch.testing.assert_close(logits, ARRAYS["eval/logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("last", [5, 6])
def test_levels_of_rois(last: int) -> None:
    cfg = small_cfg("MODEL.ROI_HEADS.IN_FEATURES", [f"p{k}" for k in range(2, last + 1)])
    heads = StandardROIHeadsByLevel._init_box_head(cfg, backbone().output_shape())
    pooler = heads["box_pooler"]
    levels = assign_boxes_to_levels(
        [Boxes(ARRAYS["roi/boxes"])],
        *(pooler.min_level, pooler.max_level),
        *(pooler.canonical_box_size, pooler.canonical_level),
    )
    torch.testing.assert_close(levels + 2, ARRAYS[f"roi/levels_P2_P{last}"], rtol=0, atol=0)
