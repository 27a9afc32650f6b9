"""Backbones with two copies of Conv5: the maps and weights of detectron2's and torchvision's."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn
from torchvision.models import vgg16
from torchvision.models.vgg import cfgs, make_layers

from builders import grcn_cfg, grcn_model
from doublehead_d2.checkpoint import convert_checkpoint

NODE = "MODEL.ROI_GRCN"
GRCN = "COCO-Detection/grcn_R_50_C5_1x.yaml"
CORRECTED = "COCO-Detection/faster_rcnn_R_50_C5_1x.yaml"
GRCN_VGG = "COCO-Detection/grcn_VGG_16_1x.yaml"
FASTER_VGG = "COCO-Detection/faster_rcnn_VGG_16_1x.yaml"


def backbone_of(name: str, *opts: object, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(grcn_cfg(name, *opts))


@pytest.mark.parametrize(
    ("name", "opts", "strides"),
    [
        (GRCN, (), {"res4": 16, "res5": 32, "res5_reg": 16}),
        (GRCN, (f"{NODE}.CLS_HEAD.STRIDE", 16), {"res4": 16, "res5": 16, "res5_reg": 16}),
        (GRCN, (f"{NODE}.REG_HEAD.STRIDE", 32), {"res4": 16, "res5": 32, "res5_reg": 32}),
        (CORRECTED, (), {"res4": 16, "res5": 16}),
        (
            CORRECTED,
            ("MODEL.RESNETS.OUT_FEATURES", ["res5_reg", "res2"]),
            {"res5_reg": 16, "res2": 4},
        ),
        (CORRECTED, ("MODEL.RESNETS.OUT_FEATURES", ["stem", "res3"]), {"stem": 4, "res3": 8}),
        (GRCN_VGG, (), {"conv5": 16, "conv5_reg": 8}),
        (GRCN_VGG, (f"{NODE}.REG_HEAD.STRIDE", 16), {"conv5": 16, "conv5_reg": 16}),
        (GRCN_VGG, (f"{NODE}.CLS_HEAD.STRIDE", 8), {"conv5": 8, "conv5_reg": 8}),
        (FASTER_VGG, (), {"conv5": 16}),
        (
            FASTER_VGG,
            ("MODEL.VGG.OUT_FEATURES", ["conv1", "conv2", "conv3", "conv4"]),
            {"conv1": 1, "conv2": 2, "conv3": 4, "conv4": 8},
        ),
    ],
)
@torch.no_grad()
def test_maps_have_the_strides_that_are_asked_for(name: str, opts: tuple, strides: dict) -> None:
    backbone = backbone_of(name, *opts)
    assert {map_: shape.stride for map_, shape in backbone.output_shape().items()} == strides
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert set(maps) == set(strides)
    for map_, features in maps.items():
        channels = backbone.output_shape()[map_].channels
        assert features.shape == (1, channels, 64 // strides[map_], 96 // strides[map_]), map_


@pytest.mark.parametrize(
    ("name", "sizes"), [(GRCN, [(3, 3), (5, 6)]), (GRCN_VGG, [(4, 5), (8, 11)])]
)
@torch.no_grad()
def test_maps_of_odd_images(name: str, sizes: list) -> None:
    """70 x 94 pixels: ResNet's are rounded up, VGG16's down."""
    backbone = backbone_of(name)
    assert backbone.size_divisibility == 0
    maps = backbone(torch.zeros(1, 3, 70, 94))
    copies = [x.shape[2:] for map_, x in maps.items() if map_.startswith(("res5", "conv5"))]
    assert [tuple(size) for size in copies] == sizes


def test_names_of_modules() -> None:
    names = {name for name, _ in backbone_of(GRCN).named_children()}
    assert names == {"stem", "res2", "res3", "res4", "res5", "res5_reg"}
    assert {name for name, _ in backbone_of(CORRECTED).named_children()} == names - {"res5_reg"}
    vgg = {name for name, _ in backbone_of(GRCN_VGG).named_children()}
    assert vgg == {"conv1", "conv2", "conv3", "conv4", "conv5", "conv5_reg"}
    # Both copies name their tensors alike, with or without pool4.
    keys = list(backbone_of(GRCN_VGG).state_dict())
    ours = {key.removeprefix("conv5.") for key in keys if key.startswith("conv5.")}
    theirs = {key.removeprefix("conv5_reg.") for key in keys if key.startswith("conv5_reg.")}
    assert ours == theirs and len(ours) == 6


@torch.no_grad()
@pytest.mark.parametrize(("stride", "dilation"), [(16, 2), (32, 1)])
@pytest.mark.parametrize("copy", ["res5", "res5_reg"])
def test_a_copy_is_detectron2s_res5(copy: str, stride: int, dilation: int) -> None:
    """Bitwise, that of RES5_DILATION 2 where its downsampling is dropped."""
    heads = (f"{NODE}.CLS_HEAD.STRIDE", stride, f"{NODE}.REG_HEAD.STRIDE", stride)
    ours = grcn_model(CORRECTED, *heads, "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5", "res5_reg"])
    cfg = grcn_cfg(CORRECTED, "MODEL.RESNETS.RES5_DILATION", dilation)
    theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    state = ours.backbone.state_dict()
    theirs.load_state_dict(
        {
            key: state[f"{copy}{key.removeprefix('res5')}" if key.startswith("res5") else key]
            for key in theirs.state_dict()
        }
    )
    image = torch.randn(1, 3, 70, 94)
    expected, found = theirs(image), ours.backbone(image)
    assert torch.equal(found["res4"], expected["res4"])
    assert torch.equal(found[copy], expected["res5"])


@torch.no_grad()
def test_a_copy_without_downsampling_need_not_be_dilated() -> None:
    opts = (f"{NODE}.DILATION", 1, f"{NODE}.CLS_HEAD.STRIDE", 16)
    backbone = backbone_of(GRCN, *opts)
    for copy in (backbone.res5, backbone.res5_reg):
        convolutions = {(m.dilation, m.stride) for m in copy.modules() if isinstance(m, nn.Conv2d)}
        assert convolutions == {((1, 1), (1, 1))}
    vgg = backbone_of(GRCN_VGG, f"{NODE}.DILATION", 1)
    assert {m.dilation for m in vgg.conv5_reg if isinstance(m, nn.Conv2d)} == {(1, 1)}


def test_a_copy_that_downsamples_is_never_dilated() -> None:
    backbone, vgg = backbone_of(GRCN), backbone_of(GRCN_VGG)
    for copy, dilations in (
        (backbone.res5, {(1, 1)}),
        (backbone.res5_reg, {(1, 1), (2, 2)}),
        (vgg.conv5, {(1, 1)}),
        (vgg.conv5_reg, {(2, 2)}),
    ):
        assert {m.dilation for m in copy.modules() if isinstance(m, nn.Conv2d)} == dilations


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 34])
def test_shallow_resnets(depth: int) -> None:
    opts = ("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    opts += ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, f"{NODE}.DILATION", 1)
    cfg = grcn_cfg(GRCN, *opts)
    ours = build_backbone(cfg).eval()
    theirs = build_resnet_backbone(grcn_cfg(CORRECTED, *opts), ShapeSpec(channels=3)).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(image)["res5"], theirs(image)["res5"])
    assert ours(image)["res5_reg"].shape == (1, 512, 4, 4)


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_stages(freeze_at: int) -> None:
    frozen = ("MODEL.BACKBONE.FREEZE_AT", freeze_at)
    vgg = backbone_of(GRCN_VGG, *frozen)
    found = {n for n, m in vgg.named_children() if not any(p.requires_grad for p in m.parameters())}
    names = ["conv1", "conv2", "conv3", "conv4"][:freeze_at]
    assert found == {*names, *(["conv5", "conv5_reg"] if freeze_at == 5 else [])}
    resnet = backbone_of(GRCN, *frozen, "MODEL.RESNETS.NORM", "BN")
    found = {
        n for n, m in resnet.named_children() if not any(p.requires_grad for p in m.parameters())
    }
    names = ["stem", "res2", "res3", "res4"][:freeze_at]
    assert found == {*names, *(["res5", "res5_reg"] if freeze_at == 5 else [])}
    norms = {
        type(m) for n in found for m in resnet.get_submodule(n).modules() if "Norm" in repr(type(m))
    }
    assert norms == ({FrozenBatchNorm2d} if found else set())


@torch.no_grad()
def test_vgg16_is_torchvisions() -> None:
    """Features of conv5_3, and fc6 and fc7 on a 7 x 7 map of them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs = vgg16().eval()  # whose classifier has 120 million weights
    theirs.features = make_layers(cfgs["D"])
    for x in theirs.features.parameters():
        nn.init.kaiming_normal_(x) if x.ndim > 1 else nn.init.normal_(x, std=0.1)
    theirs.classifier = nn.Sequential(
        *(nn.Linear(512 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU())
    )
    state = {
        **theirs.state_dict(),
        **{f"classifier.6.{n}": torch.zeros(1) for n in ("weight", "bias")},
    }
    ours = grcn_model(GRCN_VGG)
    ours.load_state_dict(convert_checkpoint(state), strict=False)
    image = torch.randn(1, 3, 112, 112)
    expected = theirs.features[:30](image)
    torch.testing.assert_close(ours.backbone(image)["conv5"], expected, atol=1e-5, rtol=1e-5)
    vectors = theirs.classifier.eval()(expected.flatten(1))
    for head in (ours.roi_heads.box_head, ours.roi_heads.reg_head):
        torch.testing.assert_close(head(expected), vectors, atol=1e-5, rtol=1e-5)
