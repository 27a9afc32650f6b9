"""DetNet: counts by hand and of the paper, what it shares with ResNet, its pyramid, refusals."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNNWithTTA, build_backbone, build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.resnet import BottleneckBlock, build_resnet_backbone
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage
from test_configs import random_image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models._api import register_model
from torchvision.ops import roi_align

from builders import default_cfg, narrow, random_boxes, read_once
from doublehead_d2 import model_zoo
from doublehead_d2.checkpoint import DoubleHeadCheckpointer, convert_checkpoint
from doublehead_d2.checkpoint.convert import ForeignModel, read_foreign
from doublehead_d2.config import check_model
from doublehead_d2.modeling import build_detnet_classifier
from doublehead_d2.modeling.detnet import DetNetFPN, ProjectionBottleneckBlock
from doublehead_d2.modeling.levels import StandardROIHeadsByLevel
from foreign import GOLDEN

FASTER = "COCO-Detection/faster_rcnn_DetNet_59_FPN_1x.yaml"
HEADS = ["StandardROIHeadsByLevel", "DoubleHeadROIHeads", "TSDROIHeads"]
MAPS = ["res2", "res3", "res4", "res5", "res6"]
IMAGE = ShapeSpec(channels=3)


def detnet_cfg(*opts: object) -> CfgNode:
    """Faster R-CNN on DetNet-59 on the CPU, without weights."""
    cfg = read_once(FASTER).clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.merge_from_list(list(opts))
    return cfg


def small_cfg(*opts: object) -> CfgNode:
    """At an eighth of the width, with batch norms, which no width stands against."""
    cfg = detnet_cfg("MODEL.DETNET.NORM", "BN", "MODEL.RESNETS.NORM", "BN")
    narrow(cfg, backbone=8, heads=16)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.merge_from_list(list(opts))
    return cfg


def small_backbone(*opts: object) -> DetNetFPN:
    torch.manual_seed(0)
    return build_backbone(small_cfg(*opts), IMAGE)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, height: int = 224, width: int = 224) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        module.to("meta").eval()(torch.empty(1, 3, height, width))
    return counter.get_total_flops() // 2


def bottom_up(*opts: object) -> nn.Module:
    """The whole backbone without a pyramid, with all batch norms, at full width."""
    norms = ("MODEL.DETNET.NORM", "", "MODEL.RESNETS.NORM", "BN")
    cfg = detnet_cfg(*norms, "MODEL.BACKBONE.FREEZE_AT", 0, *opts)
    cfg.MODEL.BACKBONE.NAME = "build_detnet_backbone"
    with torch.device("meta"):
        return build_backbone(cfg, IMAGE)


def test_blocks_by_hand() -> None:
    kwargs = {"bottleneck_channels": 256, "dilation": 2, "norm": "BN"}
    # 1x1 1024 x 256, 3x3 9 x 256 x 256, 1x1 256 x 1024; scales and shifts of 256, 256 and 1024
    block_a = 262_144 + 589_824 + 262_144 + 2 * (256 + 256 + 1024)
    assert parameters(BottleneckBlock(1024, 1024, **kwargs)) == block_a == 1_117_184
    # and 1x1 1024 x 1024 on the shortcut, with its norm
    block_b = block_a + 1_048_576 + 2 * 1024
    assert parameters(ProjectionBottleneckBlock(1024, 1024, **kwargs)) == block_b == 2_167_808


def test_projections_start_as_the_other_convolutions() -> None:
    torch.manual_seed(0)
    block = ProjectionBottleneckBlock(64, 64, bottleneck_channels=16, norm="BN")
    # He: 2 / 64 outputs is the variance; PyTorch's own start has a sixth of it.
    assert block.shortcut.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_a_projection_that_is_there_already_stays_one() -> None:
    kwargs = {"bottleneck_channels": 4, "norm": "BN"}
    names = [n for n, _ in BottleneckBlock(8, 16, **kwargs).named_parameters()]
    assert [n for n, _ in ProjectionBottleneckBlock(8, 16, **kwargs).named_parameters()] == names


CLASSIFIER_OF_1000 = 1024 * 1000  # and 1000 biases


@pytest.mark.parametrize(
    ("opts", "count", "in_1x1", "in_3x3"),
    [
        # with the classifier: the paper's 4.8 G, stride in the 1x1
        ((), 18_372_648, 4_846_018_560, 5_000_159_232),
        (("MODEL.DETNET.PROJECTION", False), 16_271_400, 4_434_976_768, 4_589_117_440),
        (("MODEL.RESNETS.DEPTH", 101), 37_364_776, 8_558_239_744, 8_712_380_416),
    ],
)
def test_counts_of_the_paper(opts: tuple, count: int, in_1x1: int, in_3x3: int) -> None:
    model = bottom_up(*opts)
    assert parameters(model) == count - CLASSIFIER_OF_1000 - 1000
    assert multiply_adds(model) == in_1x1 - CLASSIFIER_OF_1000
    other = bottom_up(*opts, "MODEL.RESNETS.STRIDE_IN_1X1", False)
    assert multiply_adds(other) == in_3x3 - CLASSIFIER_OF_1000


@pytest.mark.parametrize(
    ("kwargs", "count"),
    [({}, 18_372_648), ({"projection": False}, 16_271_400), ({"depth": 101}, 37_364_776)],
)
def test_counts_of_the_classifier(kwargs: dict, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build_detnet_classifier(1000, **kwargs)) == count


def test_classifier_of_an_unknown_depth() -> None:
    with pytest.raises(ValueError, match="depth is 18; allowed: 50, 101"):
        build_detnet_classifier(10, depth=18)


def test_the_classifier_in_the_zoo_of_torchvision() -> None:
    """What docs/GETTING_STARTED.md shows."""

    def detnet59(weights: None = None, progress: bool = True, num_classes: int = 1000) -> nn.Module:
        return build_detnet_classifier(num_classes, width=8)

    register_model("detnet59_of_a_test")(detnet59)
    model = torchvision.models.get_model("detnet59_of_a_test", weights=None, num_classes=7)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)


def test_counts_of_the_pyramid_and_the_detector() -> None:
    cfg = detnet_cfg("MODEL.DETNET.NORM", "", "MODEL.RESNETS.NORM", "BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    pyramid = parameters(model.backbone) - parameters(model.backbone.bottom_up)
    # 1x1 of 256, 512 and three times 1024 channels to 256; five 3x3; a bias each
    assert pyramid == (256 + 512 + 3 * 1024) * 256 + 5 * 9 * 256 * 256 + 10 * 256 == 3_934_720
    assert parameters(model.backbone.bottom_up) == 17_347_648
    assert parameters(model) == 36_183_008


def test_anchors_of_five_levels() -> None:
    cfg = detnet_cfg()
    shapes = [ShapeSpec(channels=256, stride=stride) for stride in (4, 8, 16, 16, 16)]
    generator = DefaultAnchorGenerator(cfg, shapes)
    anchors = generator([torch.empty(1, 1, 800 // s.stride, 1216 // s.stride) for s in shapes])
    assert [len(a) for a in anchors] == [182_400, 45_600, 11_400, 11_400, 11_400]
    assert sum(map(len, anchors)) == 262_200
    # 512 pixels of area's root, 16 pixels apart
    assert anchors[4].area()[1].sqrt() == 512
    steps = anchors[4].tensor[3] - anchors[4].tensor[0]
    assert steps.tolist() == [16, 0, 16, 0]


@pytest.mark.parametrize("in_1x1", [False, True])
@pytest.mark.parametrize("depth", [50, 101])
def test_first_stages_are_those_of_resnet(depth: int, in_1x1: bool) -> None:
    stride = ("MODEL.RESNETS.STRIDE_IN_1X1", in_1x1, "MODEL.RESNETS.DEPTH", depth)
    ours = small_backbone(*stride).bottom_up.eval()
    cfg = small_cfg(*stride, "MODEL.RESNETS.OUT_FEATURES", MAPS[:3])
    theirs = build_resnet_backbone(cfg, IMAGE).eval()
    shared = {k: v for k, v in ours.state_dict().items() if not k.startswith(("res5", "res6"))}
    assert set(shared) == set(theirs.state_dict())
    theirs.load_state_dict(shared)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, maps = theirs(image), ours(image)
    for name in MAPS[:3]:
        torch.testing.assert_close(maps[name], expected[name], rtol=0, atol=0)


def test_widths_and_strides() -> None:
    shapes = bottom_up().output_shape()
    assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {
        **{"res2": (256, 4), "res3": (512, 8), "res4": (1024, 16)},
        **{"res5": (1024, 16), "res6": (1024, 16)},
    }
    block = bottom_up().res6[1]
    assert block.conv2.in_channels == block.conv2.out_channels == 256
    assert block.conv2.dilation == block.conv2.padding == (2, 2)
    assert block.shortcut is None and bottom_up().res6[0].shortcut is not None
    assert bottom_up("MODEL.DETNET.PROJECTION", False).res6[0].shortcut is None


def test_keys_of_the_config() -> None:
    model = bottom_up("MODEL.DETNET.BLOCKS", 1, "MODEL.DETNET.DILATION", 3)
    assert len(model.res5) == len(model.res6) == 1 and len(model.res4) == 6
    assert model.res5[0].conv2.dilation == (3, 3)
    norms = bottom_up("MODEL.DETNET.NORM", "GN")
    assert isinstance(norms.res4[0].conv1.norm, nn.BatchNorm2d)
    assert isinstance(norms.res5[0].shortcut.norm, nn.GroupNorm)


@pytest.mark.parametrize("last", [2, 4, 5, 6])
def test_stages_behind_the_last_output_are_left_out(last: int) -> None:
    """They would have no gradient, and stop training with several processes."""
    model = bottom_up("MODEL.RESNETS.OUT_FEATURES", [f"res{last}"])
    assert list(model.output_shape()) == [f"res{last}"]
    assert [hasattr(model, name) for name in MAPS] == [k <= last for k in range(2, 7)]


@pytest.mark.parametrize("freeze_at", range(7))
def test_frozen_stages(freeze_at: int) -> None:
    model = bottom_up("MODEL.BACKBONE.FREEZE_AT", freeze_at)
    parts = ("stem", *MAPS)
    trained = [any(p.requires_grad for p in model.get_submodule(n).parameters()) for n in parts]
    assert trained == [index >= freeze_at for index in range(6)]


def merged_maps(model: DetNetFPN, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The maps of the pyramid, and by stage what its 3x3 convolutions were given (M) and the 1x1
    convolutions gave (L)."""
    found: dict[str, Tensor] = {}
    hooks = []
    for stage in model.stages:

        def keep(_: nn.Module, inputs: tuple, output: Tensor, stage: int = stage) -> None:
            found[f"M{stage}"] = inputs[0]

        def keep_lateral(_: nn.Module, inputs: tuple, output: Tensor, stage: int = stage) -> None:
            found[f"L{stage}"] = output

        hooks.append(getattr(model, f"fpn_output{stage}").register_forward_hook(keep))
        hooks.append(getattr(model, f"fpn_lateral{stage}").register_forward_hook(keep_lateral))
    with torch.no_grad():
        maps = model(image)
    for hook in hooks:
        hook.remove()
    return maps, found


def test_sums_where_strides_agree_and_nearest_elsewhere() -> None:
    _, x = merged_maps(small_backbone().eval(), torch.randn(1, 3, 64, 96))
    torch.testing.assert_close(x["M6"], x["L6"], rtol=0, atol=0)
    torch.testing.assert_close(x["M4"], x["L4"] + (x["L5"] + x["L6"]), rtol=0, atol=0)
    for finer, coarser in ((3, 4), (2, 3)):
        twice = x[f"M{coarser}"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        torch.testing.assert_close(x[f"M{finer}"], x[f"L{finer}"] + twice, rtol=0, atol=0)


def test_averages() -> None:
    _, x = merged_maps(
        small_backbone("MODEL.FPN.FUSE_TYPE", "avg").eval(), torch.randn(1, 3, 32, 32)
    )
    torch.testing.assert_close(x["M6"], x["L6"], rtol=0, atol=0)
    torch.testing.assert_close(x["M5"], (x["L5"] + x["L6"]) / 2, rtol=0, atol=0)
    torch.testing.assert_close(x["M4"], x["L4"] / 2 + x["L5"] / 4 + x["L6"] / 4)


@pytest.mark.parametrize("changed", range(2, 7))
def test_what_a_stage_reaches(changed: int) -> None:
    model = small_backbone().eval()
    image = torch.randn(1, 3, 64, 64)
    before, _ = merged_maps(model, image)

    def change(_: nn.Module, inputs: tuple, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**maps, f"res{changed}": maps[f"res{changed}"] + 1}

    model.bottom_up.register_forward_hook(change)
    after, _ = merged_maps(model, image)
    moved = [not torch.equal(before[f"p{k}"], after[f"p{k}"]) for k in range(2, 7)]
    assert moved == [k <= changed for k in range(2, 7)]


def test_norms_of_the_pyramid() -> None:
    model = small_backbone("MODEL.FPN.NORM", "BN")
    assert model.fpn_lateral6.bias is None and isinstance(model.fpn_output2.norm, nn.BatchNorm2d)
    assert small_backbone().fpn_lateral6.bias is not None


def test_a_pyramid_of_some_stages() -> None:
    model = small_backbone("MODEL.FPN.IN_FEATURES", MAPS[1:4])
    assert {name: shape.stride for name, shape in model.output_shape().items()} == {
        **{"p3": 8, "p4": 16, "p5": 16}
    }
    maps, _ = merged_maps(model.eval(), torch.randn(2, 3, 32, 48))
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(4, 6), (2, 3), (2, 3)]


def box_of(size: float, left: float = 32.0) -> Boxes:
    return Boxes(torch.tensor([[left, left, left + size, left + size]]))


@pytest.mark.parametrize("name", HEADS)
def test_every_pooler_pools_by_level_at_its_stride(name: str) -> None:
    cfg = small_cfg("MODEL.ROI_HEADS.NAME", name, "MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True)
    heads = build_model(cfg).roi_heads
    poolers = [m for m in heads.modules() if isinstance(m, ROIPooler)]
    assert len(poolers) == 3
    for pooler in poolers:
        assert [p.spatial_scale for p in pooler.level_poolers] == [1 / 4, 1 / 8, 1 / 16, 1 / 16]
        assert (pooler.min_level, pooler.max_level) == (2, 5)


@pytest.mark.parametrize("size, name", [(112, "p3"), (224, "p4"), (447, "p4"), (448, "p5")])
def test_level_of_a_roi(size: float, name: str) -> None:
    """Equal to torchvision's RoIAlign on the map of its level, at the true stride."""
    cfg, strides = small_cfg(), {"p2": 4, "p3": 8, "p4": 16, "p5": 16, "p6": 16}
    shapes = {n: ShapeSpec(channels=16, stride=s) for n, s in strides.items()}
    heads = StandardROIHeadsByLevel._init_box_head(cfg, shapes)
    torch.manual_seed(0)
    maps = {n: torch.randn(1, 16, 640 // s, 640 // s) for n, s in strides.items()}
    boxes = box_of(size)
    pooled = heads["box_pooler"]([maps[n] for n in heads["box_in_features"]], [boxes])
    rois = torch.cat([torch.zeros(1, 1), boxes.tensor], dim=1)
    expected = roi_align(maps[name], rois, (7, 7), 1 / strides[name], 0, aligned=True)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)


def poolers_of(used: list[str], shapes: dict[str, ShapeSpec]) -> ROIPooler:
    cfg = small_cfg("MODEL.ROI_HEADS.IN_FEATURES", used)
    return StandardROIHeadsByLevel._init_box_head(cfg, shapes)["box_pooler"]


def test_all_five_maps() -> None:
    shapes = small_backbone().output_shape()
    pooler = poolers_of(["p2", "p3", "p4", "p5", "p6"], shapes)
    assert (pooler.min_level, pooler.max_level) == (2, 6)
    assert [p.spatial_scale for p in pooler.level_poolers] == [1 / 4, 1 / 8, *[1 / 16] * 3]
    # A map keeps its level when those before it are not used.
    assert poolers_of(["p5", "p6"], shapes).min_level == 5


@pytest.mark.parametrize("strides", [(4, 8, 16, 32, 64), (16,), (8, 32), (4, 16, 32)])
def test_strides_that_do_not_repeat_are_left_to_detectron2(strides: tuple) -> None:
    shapes = {f"p{i}": ShapeSpec(channels=16, stride=s) for i, s in enumerate(strides)}
    pooler = poolers_of(["p0"], shapes)
    assert pooler.min_level == pooler.max_level == {4: 2, 8: 3, 16: 4}[strides[0]]
    if len(strides) > 1 and strides[1] != 2 * strides[0]:
        with pytest.raises(AssertionError, match="do not form a pyramid"):
            poolers_of(["p0", "p1"], shapes)


def test_stock_pyramids_are_pooled_bitwise_as_by_detectron2() -> None:
    shapes = {f"p{k}": ShapeSpec(channels=16, stride=2**k) for k in range(2, 7)}
    ours = poolers_of(["p2", "p3", "p4", "p5"], shapes)
    theirs = ROIPooler((7, 7), [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2")
    assert repr(ours) == repr(theirs)
    assert (ours.min_level, ours.max_level) == (theirs.min_level, theirs.max_level)
    maps = [torch.randn(1, 16, 512 >> k, 512 >> k) for k in range(2, 6)]
    boxes = [Boxes(torch.cat([random_boxes(20).tensor * s for s in (0.5, 4, 8)]))]
    torch.testing.assert_close(ours(maps, boxes), theirs(maps, boxes), rtol=0, atol=0)


@cache
def detector(name: str, *opts: object) -> nn.Module:
    torch.manual_seed(0)
    cfg = small_cfg("MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    cfg.merge_from_list(list(opts))
    return build_model(cfg)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [(97, 131), (16, 16)])
def test_odd_sizes(name: str, size: tuple[int, int]) -> None:
    image = {"image": torch.rand(3, *size) * 255, "height": size[0], "width": size[1]}
    with torch.no_grad():
        (output,) = detector(name).eval()([image])
    assert output["instances"].image_size == size


@pytest.mark.parametrize("name", HEADS)
def test_half_precision(name: str) -> None:
    model = detector(name).train()
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        losses = model([random_image(), random_image(with_objects=False)])
    sum(losses.values()).backward()
    grads = [p.grad for p in model.backbone.parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    model.zero_grad()


def test_images_without_objects() -> None:
    model = detector(HEADS[0]).train()
    with EventStorage():
        losses = model([random_image(with_objects=False)])
    sum(losses.values()).backward()
    grads = [p.grad for p in model.backbone.parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    model.zero_grad()


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_test_time_augmentation(name: str) -> None:
    model = detector(name).eval()
    cfg = small_cfg("TEST.AUG.MIN_SIZES", [64, 96], "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    threshold = model.roi_heads.box_predictor.test_score_thresh
    model.roi_heads.box_predictor.test_score_thresh = 0.2
    image = torch.randint(0, 256, (3, 80, 64), generator=torch.Generator().manual_seed(0))
    (output,) = GeneralizedRCNNWithTTA(cfg, model)(
        [{"image": image.byte(), "height": 80, "width": 64}]
    )
    model.roi_heads.box_predictor.test_score_thresh = threshold
    assert len(output["instances"]) > 0
    assert output["instances"].pred_boxes.tensor.isfinite().all()


def test_tracing() -> None:
    model = small_backbone().eval()
    other = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 3, 64, 64), strict=False)
        torch.testing.assert_close(traced(other), model(other))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("MODEL.DETNET.BLOCKS", 0),
            "DETNET.BLOCKS is 0; allowed: a whole number, 1 or more",
        ),
        (("MODEL.DETNET.DILATION", 0), "MODEL.DETNET.DILATION is 0; allowed: a whole number, 1"),
        (("MODEL.DETNET.NORM", "LN"), "MODEL.DETNET.NORM is 'LN'; allowed: '', 'BN', 'SyncBN'"),
        (("MODEL.RESNETS.DEPTH", 18), "MODEL.RESNETS.DEPTH is 18; .* allowed: 50, 101"),
        (("MODEL.RESNETS.DEPTH", 152), "MODEL.RESNETS.DEPTH is 152; .* allowed: 50, 101"),
        (("MODEL.RESNETS.OUT_FEATURES", ["res7"]), "OUT_FEATURES is 'res7'; allowed: 'stem', .*6'"),
        (("MODEL.RESNETS.OUT_FEATURES", []), r"OUT_FEATURES is \[\]; allowed: some of 'stem'"),
        (("MODEL.RESNETS.OUT_FEATURES", ["stem"]), r"OUT_FEATURES is \['stem'\]; allowed: some of"),
        (("MODEL.RESNETS.RES5_DILATION", 2), "RES5_DILATION is 2; .* allowed: 1; stages 5 and 6"),
        (
            ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]),
            r"DEFORM_ON_PER_STAGE is \[False, False, False, True\]; allowed: False in the last",
        ),
        (("MODEL.BACKBONE.FREEZE_AT", 7), "FREEZE_AT is 7; allowed: a whole number, 0 to 6"),
        (("MODEL.BACKBONE.FREEZE_AT", -1), "FREEZE_AT is -1; allowed: a whole number, 0 to 6"),
        (("MODEL.FPN.FUSE_TYPE", "max"), "FUSE_TYPE is 'max'; allowed: 'sum', 'avg'"),
        (("MODEL.FPN.IN_FEATURES", ["res2", "res4"]), "IN_FEATURES is .*one after another"),
        (("MODEL.FPN.IN_FEATURES", ["res3", "res2"]), "IN_FEATURES is .*finest first"),
        (("MODEL.FPN.IN_FEATURES", []), r"IN_FEATURES is \[\]; allowed: stages of"),
        (
            ("MODEL.RESNETS.OUT_FEATURES", MAPS[:4]),
            r"FPN.IN_FEATURES is .*'res6'\]; allowed",
        ),
        (("MODEL.RESNETS.RES2_OUT_CHANNELS", 0), "RES2_OUT_CHANNELS is 0; allowed: multiples of"),
        (
            ("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.DETNET.NORM", "GN"),
            "RES2_OUT_CHANNELS is 16; allowed: multiples of 32, for the groups of MODEL.DET",
        ),
    ],
)
def test_refused(opts: tuple, message: str) -> None:
    cfg = small_cfg(*opts)
    with pytest.raises(ValueError, match=message):
        check_model(cfg)
    with pytest.raises(ValueError, match=message):  # by whoever builds it without our checks, too
        build_backbone(cfg, IMAGE)


@pytest.mark.parametrize("name", ["StandardROIHeads", "CascadeROIHeads"])
def test_heads_that_cannot_pool_are_refused(name: str) -> None:
    allowed = "allowed: .*'StandardROIHeadsByLevel'.*'TSDROIHeads'"
    with pytest.raises(ValueError, match=f"ROI_HEADS.NAME is '{name}', .*{allowed}"):
        check_model(small_cfg("MODEL.ROI_HEADS.NAME", name))
    # where no stride repeats they can
    check_model(
        small_cfg("MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"])
    )


def test_other_backbones_are_not_looked_at() -> None:
    check_model(default_cfg("MODEL.DETNET.BLOCKS", 0, "MODEL.DEVICE", "cpu"))


def test_frozen_norms_without_weights_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_model(detnet_cfg("MODEL.DETNET.NORM", "", "MODEL.WEIGHTS", "detnet59.pth"))
        assert "normalises nothing" not in caplog.text
        check_model(detnet_cfg("MODEL.DETNET.NORM", ""))
    assert "MODEL.DETNET.NORM is '' and MODEL.RESNETS.NORM 'FrozenBN': without" in caplog.text


def port_state(counters: bool = True, depth: int = 50) -> dict[str, Tensor]:
    """A classifier's state dict by the keys of DetNet_pytorch, at an eighth of the width."""
    rows = [line.split("\t") for line in (GOLDEN / "detnet_keys.tsv").read_text().splitlines()]
    ours = build_detnet_classifier(10, width=8).state_dict()
    state = {}
    for theirs, _, name in rows:
        if name != "(dropped)":
            state[theirs] = torch.randn_like(ours[name.removeprefix("backbone.bottom_up.")])
        elif theirs.endswith("num_batches_tracked") and counters:
            state[theirs] = torch.tensor(1)
    for name in ("weight", "bias"):
        state[f"fc.{name}"] = ours[f"linear.{name}"]
    return {k: v.abs() if k.endswith("running_var") else v for k, v in state.items()}


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_key_of_the_port(counters: bool, prefix: str) -> None:
    state = port_state(counters)
    converted = convert_checkpoint({f"{prefix}{k}": v for k, v in state.items()})
    rows = [line.split("\t") for line in (GOLDEN / "detnet_keys.tsv").read_text().splitlines()]
    expected = {name: state[theirs] for theirs, _, name in rows if name != "(dropped)"}
    assert len(expected) == 315
    torch.testing.assert_close(converted, expected, rtol=0, atol=0)
    assert read_foreign(state)[1] == ForeignModel("detnet", 50, num_classes=10, masks=False)


@pytest.mark.parametrize("depth", [50, 101])
def test_our_classifier_fills_the_detector(depth: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = build_detnet_classifier(10, width=8, depth=depth)
    image = torch.randn(2, 3, 64, 96)
    classifier.train()(image)  # statistics of its own
    torch.save({"model": classifier.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    cfg = small_cfg("MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.DEPTH", depth)
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.DETNET.NORM = "FrozenBN"
    model = build_model(cfg).eval()
    checkpointer = DoubleHeadCheckpointer(model)
    checkpointer.load(str(tmp_path / "a.pth"))
    assert not [key for key in checkpointer.missing_keys if "bottom_up" in key]
    found: dict[str, Tensor] = {}
    classifier.eval().res6.register_forward_hook(lambda m, i, output: found.update(res6=output))
    with torch.no_grad():
        classifier(image)
        maps = model.backbone.bottom_up(image)
    torch.testing.assert_close(maps["res6"], found["res6"])


@pytest.mark.parametrize("old_format", [False, True])
def test_the_file_of_the_port_in_a_detector(
    old_format: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of PyTorch 0.2, that is in the old format and without counters."""
    state = port_state(counters=not old_format)
    path = tmp_path / "detnet59.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    model = build_model(small_cfg("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.DETNET.NORM", ""))
    with caplog.at_level(logging.INFO):
        DoubleHeadCheckpointer(model).load(str(path))
    ours = model.backbone.bottom_up.res6[0].shortcut.weight
    torch.testing.assert_close(ours.data, state["layer5.0.extra_conv.0.weight"], rtol=0, atol=0)
    assert "INPUT.FORMAT is 'BGR' and was 'RGB'" in caplog.text
    assert "MODEL.RESNETS.STRIDE_IN_1X1 is True and was False" in caplog.text
    assert "roi_heads.box_head: none of 4 tensors, the rest as initialised" in caplog.text


def test_the_settings_of_the_imported_config_suit_its_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(port_state(), tmp_path / "detnet59.pth")
    cfg = model_zoo.get_config("Imported/detnet_faster_rcnn_DetNet_59_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    narrow(cfg, backbone=8, heads=16)
    model = build_model(cfg)
    with caplog.at_level(logging.WARNING):
        DoubleHeadCheckpointer(model).load(str(tmp_path / "detnet59.pth"))
    assert not [r for r in caplog.records if r.name.endswith("checkpointer")]


def test_frozen_norms_that_a_file_leaves_idle_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resnet = build_resnet_backbone(small_cfg("MODEL.RESNETS.OUT_FEATURES", MAPS[:3]), IMAGE)
    state = {f"backbone.bottom_up.{k}": v for k, v in resnet.state_dict().items()}
    torch.save({"model": state}, tmp_path / "resnet.pth")
    frozen = ("MODEL.RESNETS.NORM", "FrozenBN")
    for norm, idle in (("GN", False), ("FrozenBN", True)):
        caplog.clear()
        model = build_model(small_cfg(*frozen, "MODEL.DETNET.NORM", norm))
        with caplog.at_level(logging.WARNING):
            DoubleHeadCheckpointer(model).load(str(tmp_path / "resnet.pth"))
        assert (
            "has nothing for 20 frozen batch norms, backbone.bottom_up.res5.0" in caplog.text
        ) == idle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer5.2.conv3.weight": None}, "1 of its .* keys missing: layer5.2.conv3.weight"),
        ({"layer5.3.conv1.weight": torch.ones(1)}, "1 keys left over: layer5.3.conv1.weight"),
        ({"bn1.running_mean": None}, "1 of its .* keys missing: bn1.running_mean"),
    ],
)
def test_other_files_are_refused(change: dict[str, Any], message: str) -> None:
    state = {**port_state(counters=False), **change}
    with pytest.raises(ValueError, match=f"does not fit DetNet classifier R-50 .*{message}"):
        convert_checkpoint({k: v for k, v in state.items() if v is not None})


def test_a_detnet_without_projections_is_refused() -> None:
    state = {k: v for k, v in port_state().items() if "extra_conv" not in k}
    with pytest.raises(ValueError, match="not a DetNet classifier of DetNet_pytorch: no key"):
        convert_checkpoint(state)


def test_a_torchvision_resnet_is_not_taken_for_one() -> None:
    state = {k: v for k, v in port_state().items() if not k.startswith("layer5")}
    state = {k: v for k, v in state.items() if "extra_conv" not in k}
    with pytest.raises(ValueError, match="from none of the known sources"):
        convert_checkpoint(state)


def test_published_backbone_is_no_published_detector() -> None:
    with pytest.raises(ValueError, match="has no published weights"):
        model_zoo.get("Imported/detnet_faster_rcnn_DetNet_59_FPN_1x.yaml", weights="published")


def test_gradients_reach_every_stage() -> None:
    model = small_backbone().train()
    maps = model(torch.randn(2, 3, 32, 48))
    sum(m.square().mean() for m in maps.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_image_list_is_padded_to_sixteen() -> None:
    images = ImageList.from_tensors([torch.rand(3, 17, 33)], small_backbone().size_divisibility)
    assert tuple(images.tensor.shape[2:]) == (32, 48)
