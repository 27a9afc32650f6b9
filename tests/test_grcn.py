"""G-RCN. No code of the paper exists: identities with detectron2's models stand for an oracle."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import create_ddp_model
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ROI_BOX_HEAD_REGISTRY,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    build_backbone,
    build_model,
    build_roi_heads,
)
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import doublehead_d2
from builders import (
    default_cfg,
    grcn_cfg,
    grcn_model,
    random_boxes,
    read_once,
    sampled_proposals,
)
from conftest import RUN, once
from doublehead_d2 import DoubleHeadConvHead, GRCNROIHeads
from doublehead_d2.benchmark.complexity import model_complexity
from doublehead_d2.config import check_config
from doublehead_d2.engine.launch import launch
from doublehead_d2.modeling import AveragePoolHead
from doublehead_d2.modeling.grcn import pool_whole_images
from doublehead_d2.modeling.output_layers import DoubleHeadPredictions, ZeroPredictor
from doublehead_d2.modeling.pooling import ParallelROIAlign

NODE = "MODEL.ROI_GRCN"
GRCN = "COCO-Detection/grcn_R_50_C5_1x.yaml"
CORRECTED = "COCO-Detection/faster_rcnn_R_50_C5_1x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"
GRCN_VGG = "COCO-Detection/grcn_VGG_16_1x.yaml"
FASTER_VGG = "COCO-Detection/faster_rcnn_VGG_16_1x.yaml"
RESNET, VGG = "build_grcn_resnet_backbone", "build_grcn_vgg16_backbone"
NO_CONTEXT = (f"{NODE}.CLS_HEAD.CONTEXT", "none")
EQUAL = (f"{NODE}.CLS_HEAD.STRIDE", 16, *NO_CONTEXT)
EQUAL_VGG = (f"{NODE}.REG_HEAD.STRIDE", 16, *NO_CONTEXT)
AGNOSTIC = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
FC = (
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, f"{NODE}.REG_HEAD.NAME", "FastRCNNConvFCHead"),
)
CONV_HEAD = (f"{NODE}.REG_HEAD.NAME", "DoubleHeadConvHead")
REG_CONTEXT = (f"{NODE}.REG_HEAD.CONTEXT", "concat")
IMAGE_SIZE = (64, 96)
STRIDES = {"res4": 16, "res5": 32, "res5_reg": 16}
CHANNELS = 8
LOSSES = ["loss_cls", "loss_box_reg"]


@pytest.fixture
def storage() -> Iterator[EventStorage]:
    with EventStorage() as storage:
        yield storage


def small_heads(*opts: object, seed: int = 0) -> GRCNROIHeads:
    torch.manual_seed(seed)
    shapes = {name: ShapeSpec(channels=CHANNELS, stride=s) for name, s in STRIDES.items()}
    heads = build_roi_heads(grcn_cfg(GRCN, *opts), shapes)
    assert type(heads) is GRCNROIHeads
    return heads


def random_maps(num_images: int = 2, size: tuple = IMAGE_SIZE, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(num_images, CHANNELS, size[0] // s, size[1] // s, generator=generator)
        for name, s in STRIDES.items()
    }


def proposals_of(*counts: int, size: tuple = IMAGE_SIZE) -> list[Instances]:
    return [
        Instances(size, proposal_boxes=random_boxes(n, seed=i), objectness_logits=torch.zeros(n))
        for i, n in enumerate(counts)
    ]


def sampled(*counts: int, num_foreground: int = 2) -> list[Instances]:
    return sampled_proposals(counts or (6, 4), num_foreground=num_foreground)


def learn(heads: GRCNROIHeads, proposals: list[Instances], seed: int = 0) -> dict[str, Tensor]:
    features = {name: x.requires_grad_() for name, x in random_maps(len(proposals)).items()}
    with EventStorage():
        return heads.train()._forward_box(features, proposals)


def images_of(*sizes: tuple[int, int], objects: int = 2) -> list[dict]:
    """Images of noise with objects."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for height, width in sizes:
        instances = Instances((height, width))
        boxes = torch.tensor([[5.0, 8, 40, 50], [20, 10, 60, 60]])[:objects]
        instances.gt_boxes, instances.gt_classes = Boxes(boxes), torch.arange(len(boxes))
        pixels = torch.randint(0, 256, (3, height, width), generator=generator).float()
        inputs.append({"image": pixels, "instances": instances, "height": height, "width": width})
    return inputs


def step(model: GeneralizedRCNN, inputs: list[dict]) -> tuple[dict, dict]:
    """Losses, and gradients by name, with the same samples for all models."""
    torch.manual_seed(7)
    with EventStorage():
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return losses, gradients


def detections(model: GeneralizedRCNN, inputs: list[dict]) -> list[tuple[Tensor, ...]]:
    with torch.no_grad():
        found = [x["instances"] for x in model.eval()(inputs)]
    assert all(len(x) for x in found)
    return [(x.pred_boxes.tensor, x.scores, x.pred_classes) for x in found]


def test_is_public() -> None:
    assert doublehead_d2.GRCNROIHeads is GRCNROIHeads and "GRCNROIHeads" in doublehead_d2.__all__
    assert ROI_BOX_HEAD_REGISTRY.get("AveragePoolHead") is AveragePoolHead


# ------------------------------------------------------------------------- C4, corrected, G-RCN


@cache
def counts(name: str) -> dict:
    return model_complexity(read_once(name))


# Weights and biases by hand. Conv5 of a ResNet: three bottlenecks of 512 and 2048 channels, the
# first on 1024; of VGG16: three 3x3 of 512 channels with biases.
CONV5 = 1024 * 512 + 9 * 512 * 512 + 512 * 2048 + 1024 * 2048
CONV5 += 2 * (2048 * 512 + 9 * 512 * 512 + 512 * 2048)
VGG_CONV5 = 3 * (9 * 512 * 512 + 512)
FC6_FC7 = 512 * 49 * 4096 + 4096 + 4096 * 4096 + 4096


@pytest.mark.parametrize(
    ("name", "parameters", "more_than", "by"),
    [
        (C4, 33_791_644, None, 0),
        (CORRECTED, 33_791_644, C4, 0),
        (GRCN, 48_899_740, CORRECTED, CONV5 + 2048 * 81),
        ("Ablations/grcn_context_add.yaml", 48_733_852, CORRECTED, CONV5),
        ("Ablations/grcn_separate.yaml", 48_733_852, CORRECTED, CONV5),
        ("Ablations/grcn_context_reg.yaml", 48_899_740 + 2048 * 320, GRCN, 2048 * 320),
        ("COCO-Detection/grcn_R_101_C5_1x.yaml", 67_839_644, None, 0),
        ("COCO-Detection/faster_rcnn_R_101_C5_1x.yaml", 52_731_548, None, 0),
        ("COCO-Detection/faster_rcnn_R_101_C4_1x.yaml", 52_731_548, None, 0),
        (FASTER_VGG, 138_301_724, None, 0),
        (GRCN_VGG, 265_258_780, FASTER_VGG, VGG_CONV5 + FC6_FC7 + 4096 * 81),
        ("COCO-Detection/double_head_grcn_VGG_16_1x.yaml", 154_580_764, None, 0),
    ],
)
def test_parameters(name: str, parameters: int, more_than: str | None, by: int) -> None:
    assert (CONV5, VGG_CONV5) == (14_942_208, 7_079_424)
    found = counts(name)["parameters"]["total"]
    assert found == parameters
    if more_than is not None:
        assert found - counts(more_than)["parameters"]["total"] == by


@pytest.mark.parametrize(
    ("name", "backbone", "rpn", "heads", "total"),
    [
        (C4, 60.6, 36.2, 733.0, 829.7),
        (CORRECTED, 117.3, 36.2, 0.8, 154.3),
        (GRCN, 131.5, 36.2, 1.0, 168.7),
        ("Ablations/grcn_separate_context.yaml", 174.1, 36.2, 1.0, 211.3),
        ("Ablations/grcn_context_add.yaml", 131.5, 36.2, 0.8, 168.5),
        (FASTER_VGG, 297.5, 9.1, 121.2, 427.8),
        (GRCN_VGG, 405.1, 9.1, 241.2, 655.4),
        ("COCO-Detection/double_head_grcn_VGG_16_1x.yaml", 405.1, 9.1, 607.3, 1021.5),
    ],
)
def test_multiply_adds(name: str, backbone: float, rpn: float, heads: float, total: float) -> None:
    flops = {part: count / 1e9 for part, count in counts(name)["flops"].items()}
    of_heads = flops["box_head"] + flops.get("reg_head", 0)
    found = [flops["backbone"], flops["rpn"], of_heads, flops["total"]]
    # Sums of rounded terms may be 0.1 off.
    assert found == pytest.approx([backbone, rpn, heads, total], abs=0.1)


def test_multiply_adds_of_the_heads_by_hand() -> None:
    """1,000 RoIs, and the image as one more: 2D -> K + 1 and D -> 4K."""
    flops = counts(GRCN)["flops"]
    assert (flops["box_head"], flops["reg_head"]) == (1000 * 4096 * 81, 1000 * 2048 * 320)
    fc = 512 * 49 * 4096 + 4096 * 4096
    flops = counts(GRCN_VGG)["flops"]
    assert flops["box_head"] == 1001 * fc + 1000 * 8192 * 81
    assert flops["reg_head"] == 1000 * fc + 1000 * 4096 * 320


def zoo_file(name: str) -> Path:
    """A config of detectron2's zoo."""
    path = Path(detectron2.__file__).parent / "model_zoo" / "configs" / name
    if not path.is_file():
        pytest.skip("this detectron2 is installed without the configs of its zoo")
    return path


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (C4, "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"),
        (
            "PascalVOC-Detection/faster_rcnn_R_50_C4_0712.yaml",
            "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
        ),
        (
            "COCO-Detection/faster_rcnn_R_101_C4_1x.yaml",
            "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
        ),
    ],
)
def test_c4_is_detectron2s_key_by_key(ours: str, theirs: str) -> None:
    expected, found = get_cfg(), read_once(ours).clone()
    expected.merge_from_file(str(zoo_file(theirs)))
    found.MODEL.DEVICE = expected.MODEL.DEVICE  # the CPU where there is no GPU
    if "R_101" in ours:  # of which detectron2 has another schedule alone
        expected.MODEL.RESNETS.DEPTH = 101
        expected.MODEL.WEIGHTS = expected.MODEL.WEIGHTS.replace("R-50", "R-101")

    def differing(a: CfgNode, b: CfgNode, prefix: str = "") -> list[str]:
        return [
            key
            for name, value in a.items()
            for key in (
                differing(value, b[name], f"{prefix}{name}.")
                if isinstance(value, CfgNode)
                else [f"{prefix}{name}"] * (value != b[name])
            )
        ]

    assert differing(expected, found) == []
    assert differing(expected, read_once(CORRECTED)) != []


def test_c4_is_detectron2s_model() -> None:
    """Bitwise: keys, losses and detections."""
    cfg = grcn_cfg(C4)
    stock = get_cfg()
    stock.merge_from_file(str(zoo_file("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")))
    for section in ("RESNETS", "RPN", "ROI_HEADS", "ROI_BOX_HEAD"):
        stock.MODEL[section] = cfg.MODEL[section]
    stock.MODEL.DEVICE, stock.MODEL.WEIGHTS, stock.MODEL.PIXEL_STD = "cpu", "", cfg.MODEL.PIXEL_STD
    torch.manual_seed(0)
    theirs, ours = build_model(stock), grcn_model(C4)
    assert type(ours.roi_heads) is Res5ROIHeads
    theirs.load_state_dict(ours.state_dict(), strict=True)
    inputs = images_of((64, 96), (80, 70))
    assert step(ours, inputs)[0] == step(theirs, inputs)[0]
    for x, y in zip(detections(ours, inputs), detections(theirs.eval(), inputs), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(x, y, strict=True))


def test_corrected_is_c4_with_its_conv5_elsewhere() -> None:
    c4, corrected = grcn_model(C4), grcn_model(CORRECTED)
    assert type(corrected.roi_heads) is StandardROIHeads
    assert type(corrected.roi_heads.box_head) is AveragePoolHead
    assert not list(corrected.roi_heads.box_head.parameters())
    moved = {k.replace("roi_heads.res5", "backbone.res5") for k in c4.state_dict()}
    assert moved == set(corrected.state_dict())
    assert list(corrected.proposal_generator.in_features) == ["res4"]
    assert corrected.roi_heads.box_pooler.output_size == (7, 7)


IDENTITIES = {"ResNet": (CORRECTED, GRCN, EQUAL), "VGG16": (FASTER_VGG, GRCN_VGG, EQUAL_VGG)}


@pytest.mark.parametrize("backbone", IDENTITIES)
def test_grcn_of_equal_branches_is_the_corrected_protocol(backbone: str) -> None:
    """The same strides, weights and no context: detections, losses and summed gradients."""
    baseline, name, opts = IDENTITIES[backbone]
    unfrozen = ("MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.ROI_GRCN.LAZY_REG_HEAD", False)
    one, two = grcn_model(baseline, *unfrozen), grcn_model(name, *opts, *unfrozen, seed=1)
    two.load_state_dict(one.state_dict(), strict=True)  # fills both branches
    inputs = images_of((64, 96), (96, 64))
    losses, gradients = step(one, inputs)
    found_losses, found = step(two, inputs)
    torch.testing.assert_close(found_losses, losses, atol=1e-6, rtol=0)
    summed = {name: torch.zeros_like(x) for name, x in gradients.items()}
    for key, gradient in found.items():
        key = key.replace("5_reg.", "5.").replace("reg_head.", "box_head.")
        summed[key.replace("reg_predictor.", "box_predictor.")] += gradient
    assert sum(x.any().item() for x in summed.values()) > 20
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            summed[key], gradient, atol=2e-5, rtol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    for x, y in zip(detections(one, inputs), detections(two, inputs), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


# Of what lies above the split, which loss reaches what
ABOVE = {
    "loss_cls": {"backbone.res5", "roi_heads.box_head", "roi_heads.box_predictor"},
    "loss_box_reg": {"backbone.res5_reg", "roi_heads.reg_head", "roi_heads.reg_predictor"},
}
SHARED = {f"backbone.{stage}" for stage in ("stem", "res2", "res3", "res4")}


@pytest.mark.parametrize("loss", LOSSES)
def test_which_loss_teaches_what(loss: str) -> None:
    model = grcn_model(GRCN, *FC, "MODEL.BACKBONE.FREEZE_AT", 0).train()
    torch.manual_seed(0)
    with EventStorage():
        model(images_of((64, 96)))[loss].backward()
    taught = {
        ".".join(name.split(".")[:2])
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert taught == ABOVE[loss] | SHARED


@torch.no_grad()
@pytest.mark.parametrize(("map_", "changed"), [("res5", "scores"), ("res5_reg", "deltas")])
def test_changing_a_map_changes_one_task(map_: str, changed: str) -> None:
    heads, features, boxes = (
        small_heads(*FC).eval(),
        random_maps(),
        [random_boxes(6), random_boxes(3)],
    )
    before = heads.predict(features, boxes, [IMAGE_SIZE] * 2)
    features[map_] = features[map_] + 1
    after = heads.predict(features, boxes, [IMAGE_SIZE] * 2)
    equal = {
        "scores": torch.equal(before.cls_head.scores, after.cls_head.scores),
        "deltas": torch.equal(before.reg_head.deltas, after.reg_head.deltas),
    }
    assert equal == {"scores": changed != "scores", "deltas": changed != "deltas"}


def test_branches_may_share_a_map() -> None:
    """REG_HEAD.IN_FEATURES that of the classification branch: only the heads are separate."""
    opts = (f"{NODE}.REG_HEAD.IN_FEATURES", ["res5"], *FC)
    model = grcn_model(GRCN, *opts, "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"])
    assert not any("res5_reg" in key for key in model.state_dict())
    losses, gradients = step(model, images_of((64, 96)))
    assert all(x is not None for x in gradients.values()) and set(LOSSES) < set(losses)


# ------------------------------------------------------------------------------------------- heads


def test_names_of_parameters() -> None:
    names = {name.rpartition(".")[0] for name, _ in small_heads().named_parameters()}
    assert names == {"box_predictor.cls_score", "reg_predictor.bbox_pred"}
    heads = small_heads(*FC)
    names = {name.rpartition(".")[0] for name, _ in heads.named_parameters()}
    fcs = {f"{head}.fc{i}" for head in ("box_head", "reg_head") for i in (1, 2)}
    assert names == {"box_predictor.cls_score", "reg_predictor.bbox_pred"} | fcs
    assert heads.reg_in_features == ["res5_reg"] and heads.box_in_features == ["res5"]
    scales = [p.level_poolers[0].spatial_scale for p in (heads.box_pooler, heads.reg_pooler)]
    assert scales == [1 / 32, 1 / 16]
    assert all(
        type(pooler.level_poolers[0]) is ParallelROIAlign
        for pooler in (heads.box_pooler, heads.reg_pooler)
    )


def test_average_pool_head_by_hand() -> None:
    head = AveragePoolHead(ShapeSpec(channels=2, height=1, width=2))
    x = torch.tensor([[[[1.0, 3.0]], [[5.0, 0.0]]]], requires_grad=True)
    assert head(x).tolist() == [[2.0, 2.5]] and head.output_shape == ShapeSpec(channels=2)
    assert not list(head.parameters())
    nothing = torch.zeros(0, 2, 1, 2, requires_grad=True)
    head(nothing).sum().backward()
    assert head(nothing).shape == (0, 2) and nothing.grad.shape == nothing.shape


@torch.no_grad()
def test_what_is_predicted() -> None:
    heads = small_heads().eval()
    features, boxes = random_maps(), [random_boxes(6), random_boxes(3)]
    found = heads.predict(features, boxes, [IMAGE_SIZE] * 2)
    assert isinstance(found, DoubleHeadPredictions)
    assert found.cls_head.scores.shape == found.reg_head.scores.shape == (9, 6)
    assert found.cls_head.deltas.shape == found.reg_head.deltas.shape == (9, 20)
    assert found.cls_head.scores.any() and found.reg_head.deltas.any()
    assert not found.cls_head.deltas.any() and not found.reg_head.scores.any()
    assert torch.equal(heads.cls_logits(features, boxes, [IMAGE_SIZE] * 2), found.cls_head.scores)
    # Images that fill their maps need no sizes.
    assert torch.equal(heads.cls_logits(features, boxes), found.cls_head.scores)
    assert isinstance(heads.box_predictor.bbox_pred, ZeroPredictor)
    assert isinstance(heads.reg_predictor.cls_score, ZeroPredictor)


RAMP = torch.tensor([[0.0, 2.0], [4.0, 6.0]])[None, None]  # 2x + 4y in cells


@torch.no_grad()
@pytest.mark.parametrize("context", ["none", "add", "concat"])
@pytest.mark.parametrize(
    ("name", "key", "cell"), [("box_head", "CLS_HEAD", 32), ("reg_head", "REG_HEAD", 16)]
)
def test_context_by_hand(name: str, key: str, cell: int, context: str) -> None:
    """The upper left cell of a map that is 2x + 4y at the centres of its 2 x 2 cells.

    A bin has one sample, at (i + 1/2) / 7 - 1/2 cells, i = 0 to 6; those before the first centre
    count as on it. The others are at 1/7, 2/7 and 3/7, so that the mean of x, and of y, is
    (6/7) / 7 = 6/49, and r = 6 * 6/49 = 36/49. The whole image lies evenly around the middle of the
    map: v = 3.
    """
    heads = small_heads(f"{NODE}.{key}.CONTEXT", context).eval()
    boxes = [Boxes(torch.tensor([[0.0, 0.0, cell, cell]]))]
    maps = {name: RAMP.expand(1, CHANNELS, 2, 2) for name in heads.branch(name).in_features}
    (found,) = heads._vectors(name, maps, boxes, [(2 * cell, 2 * cell)])
    r, v = torch.full((CHANNELS,), 36 / 49), torch.full((CHANNELS,), 3.0)
    expected = {"none": r, "add": r + v, "concat": torch.cat([r, v])}[context]
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_every_roi_has_the_context_of_its_image() -> None:
    heads, features = small_heads(*FC, f"{NODE}.CLS_HEAD.CONTEXT", "concat").eval(), random_maps(3)
    boxes = [random_boxes(n, seed=n) for n in (2, 0, 4)]
    found = heads._vectors("box_head", features, boxes, [IMAGE_SIZE] * 3)
    r = heads.box_head(heads.box_pooler([features["res5"]], boxes))
    whole = [Boxes(torch.tensor([[0.0, 0.0, 96.0, 64.0]])) for _ in range(3)]
    v = heads.box_head(heads.box_pooler([features["res5"]], whole))
    expected = torch.cat([r, v[[0, 0, 2, 2, 2, 2]]], dim=1)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("context", ["add", "concat"])
def test_context_changes_scores_only(context: str) -> None:
    """The same weights for a RoI's own vector, none for the context's."""
    features, boxes, sizes = random_maps(), [random_boxes(5), random_boxes(4)], [IMAGE_SIZE] * 2
    without, heads = (
        small_heads(*NO_CONTEXT).eval(),
        small_heads(f"{NODE}.CLS_HEAD.CONTEXT", context),
    )
    heads.reg_predictor.load_state_dict(without.reg_predictor.state_dict())
    own = heads.box_predictor.cls_score.weight[:, :CHANNELS]
    own.copy_(without.box_predictor.cls_score.weight)
    expected, found = (x.eval().predict(features, boxes, sizes) for x in (without, heads))
    assert torch.equal(found.reg_head.deltas, expected.reg_head.deltas)
    assert (found.cls_head.scores - expected.cls_head.scores).abs().max() > 1e-3
    if context == "concat":
        heads.box_predictor.cls_score.weight[:, CHANNELS:] = 0
        found = heads.predict(features, boxes, sizes)
        torch.testing.assert_close(found.cls_head.scores, expected.cls_head.scores)


@torch.no_grad()
def test_context_of_boxes_changes_boxes_only() -> None:
    features, boxes, sizes = random_maps(), [random_boxes(5), random_boxes(4)], [IMAGE_SIZE] * 2
    heads, without = small_heads(*REG_CONTEXT).eval(), small_heads().eval()
    heads.box_predictor.load_state_dict(without.box_predictor.state_dict())
    found, expected = (x.predict(features, boxes, sizes) for x in (heads, without))
    assert torch.equal(found.cls_head.scores, expected.cls_head.scores)
    assert heads.reg_predictor.bbox_pred.in_features == 2 * CHANNELS
    assert not torch.equal(found.reg_head.deltas, expected.reg_head.deltas)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (40, 70), (33, 95)])
def test_padding_does_not_speak(size: tuple[int, int]) -> None:
    """What lies beyond an image's own cells changes nothing of its context."""
    heads, (height, width) = small_heads(), size
    maps = random_maps(2)["res5_reg"]
    before = pool_whole_images(heads.reg_pooler, [maps], [size, IMAGE_SIZE])
    padded = maps.clone()
    padded[0, :, -(-height // 16) :] = 1e3
    padded[0, :, :, -(-width // 16) :] = 1e3
    after = pool_whole_images(heads.reg_pooler, [padded], [size, IMAGE_SIZE])
    assert torch.equal(before, after)


@torch.no_grad()
def test_an_image_alone_is_the_image_in_a_batch() -> None:
    heads = small_heads(*FC, *REG_CONTEXT).eval()
    sizes = [(64, 64), (128, 96)]
    features, boxes = random_maps(2, sizes[1]), [random_boxes(5), random_boxes(4, seed=3)]
    # RoIs are pooled as ever, from cells of the padding where they come near it.
    boxes[0].tensor[:] = boxes[0].tensor.clamp(max=31)
    together = heads.predict(features, boxes, sizes)
    own = {n: x[:1, :, : 64 // STRIDES[n], : 64 // STRIDES[n]] for n, x in features.items()}
    alone = heads.predict(own, boxes[:1], sizes[:1])
    torch.testing.assert_close(together.cls_head.scores[:5], alone.cls_head.scores)
    torch.testing.assert_close(together.reg_head.deltas[:5], alone.reg_head.deltas)
    other = heads.predict({n: x[1:] for n, x in features.items()}, boxes[1:], sizes[1:])
    torch.testing.assert_close(together.cls_head.scores[5:], other.cls_head.scores)


def test_a_model_sees_images_alone_as_in_a_batch() -> None:
    model, inputs = grcn_model(GRCN), images_of((64, 96), (64, 96))
    together = detections(model, inputs)
    for x, found in zip(inputs, together, strict=True):
        (alone,) = detections(model, [x])
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


def test_gradients_flow_through_the_context() -> None:
    heads, features = small_heads(), random_maps(1)
    maps = features["res5"].requires_grad_()
    boxes = [Boxes(torch.tensor([[0.0, 0.0, 20.0, 20.0]]))]  # the first cell and its neighbours
    scores = heads.train().predict(features, boxes, [IMAGE_SIZE]).cls_head.scores
    scores.square().sum().backward()
    assert maps.grad[0, :, 0, 2].any()  # far from the RoI
    maps.grad = None
    without = small_heads(*NO_CONTEXT).train()
    without.predict(features, boxes, [IMAGE_SIZE]).cls_head.scores.square().sum().backward()
    assert not maps.grad[0, :, 0, 2].any()


@torch.no_grad()
@pytest.mark.parametrize("opts", [(), AGNOSTIC, FC, CONV_HEAD, REG_CONTEXT, NO_CONTEXT])
@pytest.mark.parametrize(("survivors", "shown"), [(None, 42), (0.5, 21), (0.0, 0)])
def test_lazy_detections_are_those_of_all_rois(
    opts: tuple, survivors: float | None, shown: int
) -> None:
    heads = small_heads(*opts).eval()
    heads.box_predictor.cls_score.weight *= 100
    features, proposals = random_maps(), proposals_of(30, 12)
    scores = heads.cls_logits(features, [x.proposal_boxes for x in proposals])
    best = scores.softmax(dim=1)[:, :-1].amax(dim=1)
    threshold = -1.0 if survivors is None else best.quantile(1 - survivors).item()
    heads.box_predictor.test_score_thresh = threshold
    lazy, kept = heads.detect(features, proposals)
    images = 2 if opts == REG_CONTEXT else 0  # the whole images are RoIs, too
    assert heads.rois_shown["reg_head"] == shown + images
    heads.lazy_reg_head = False
    whole, kept_of_all = heads.detect(features, proposals)
    assert heads.rois_shown["reg_head"] == shown + 42 + 2 * images
    for x, y, i, j in zip(lazy, whole, kept, kept_of_all, strict=True):
        assert torch.equal(i, j) and torch.equal(x.scores, y.scores)
        torch.testing.assert_close(x.pred_boxes.tensor, y.pred_boxes.tensor, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("key", "loss"), [("CLS_HEAD", "loss_cls"), ("REG_HEAD", "loss_box_reg")])
def test_weights_weigh_their_losses_alone(key: str, loss: str) -> None:
    once_, thrice = (
        learn(small_heads(*opts), sampled()) for opts in ((), (f"{NODE}.{key}.LOSS_WEIGHT", 3.0))
    )
    assert list(once_) == LOSSES and all(x > 0 for x in once_.values())
    for name, value in once_.items():
        torch.testing.assert_close(thrice[name], (3 if name == loss else 1) * value)


def test_box_loss_weight_of_detectron2_counts() -> None:
    opts = ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0)
    once_, twice = learn(small_heads(), sampled()), learn(small_heads(*opts), sampled())
    torch.testing.assert_close(twice["loss_box_reg"], 2 * once_["loss_box_reg"])
    torch.testing.assert_close(twice["loss_cls"], once_["loss_cls"])


@pytest.mark.parametrize("foreground", [2, 0])
@pytest.mark.parametrize("counts_", [(6, 4), (6, 0), (0, 0)])
@pytest.mark.parametrize("opts", [(), FC, AGNOSTIC, CONV_HEAD, REG_CONTEXT])
def test_every_parameter_has_a_gradient(opts: tuple, counts_: tuple, foreground: int) -> None:
    proposals = sampled(*counts_, num_foreground=foreground)
    if not foreground:
        for x in proposals:  # as detectron2 gives the RoIs of an image without objects
            x.remove("gt_boxes")
    heads = small_heads(*opts)
    losses = learn(heads, proposals)
    assert list(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("opts", [CONV_HEAD, (*CONV_HEAD, *REG_CONTEXT)])
def test_images_are_in_the_batch_of_the_rois(opts: tuple) -> None:
    """Batch norms of a conv-head learn one statistic, in one step."""
    heads = small_heads(*opts, f"{NODE}.REG_HEAD.LOSS_WEIGHT", 1.0)
    learn(heads, sampled())
    norms = [m for m in heads.reg_head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {int(m.num_batches_tracked) for m in norms} == {1}
    # In evaluation they are the same in one batch as in two.
    branch = heads.eval().branch("reg_head")
    pooled, whole = torch.randn(2, 5, CHANNELS, 7, 7)[:, :3]
    rows = [branch.head(x) for x in (pooled, whole, torch.cat([pooled, whole]))]
    torch.testing.assert_close(torch.cat(rows[:2]), rows[2])


@torch.no_grad()
@pytest.mark.parametrize("opts", [(), REG_CONTEXT, FC])
def test_no_proposals_at_all(opts: tuple) -> None:
    heads = small_heads(*opts).eval()
    found, kept = heads.detect(random_maps(), proposals_of(0, 0))
    assert [len(x) for x in found] == [len(x) for x in kept] == [0, 0]


@pytest.mark.parametrize("opts", [(), FC])
def test_mixed_precision_trains(opts: tuple) -> None:
    """Pooled in float32, whatever the maps are in."""
    heads, proposals = small_heads(*opts).train(), sampled()
    maps = {name: x.bfloat16() for name, x in random_maps().items()}
    with torch.autocast("cpu", torch.bfloat16), EventStorage():
        losses = heads._forward_box(maps, proposals)
    expected = learn(small_heads(*opts), sampled())
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], atol=0.05, rtol=0.1)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters())


@torch.no_grad()
def test_half_precision_maps_are_pooled_in_float32() -> None:
    heads, features = small_heads(*REG_CONTEXT).eval(), random_maps()
    halves = {name: x.bfloat16() for name, x in features.items()}
    boxes, sizes = [random_boxes(5), random_boxes(4)], [IMAGE_SIZE] * 2
    found = heads.predict(halves, boxes, sizes)
    expected = heads.predict({n: x.float() for n, x in halves.items()}, boxes, sizes)
    assert torch.equal(found.cls_head.scores, expected.cls_head.scores)
    assert torch.equal(found.reg_head.deltas, expected.reg_head.deltas)


def test_accuracies_are_logged_by_head(storage: EventStorage) -> None:
    features = random_maps()
    small_heads().train()._forward_box(features, sampled())
    assert {name.split("/")[0] for name in storage.latest()} == {"cls_head"}


@torch.no_grad()
def test_traced_heads_predict_the_same_on_other_input() -> None:
    heads = small_heads(*FC).eval().requires_grad_(False)

    def scores_and_deltas(res5: Tensor, res5_reg: Tensor, boxes: Tensor, size: Tensor) -> tuple:
        maps = {"res5": res5, "res5_reg": res5_reg}
        found = heads.predict(maps, [Boxes(boxes)], [(size[0], size[1])])
        return found.cls_head.scores, found.reg_head.deltas

    def inputs(seed: int, count: int, size: tuple) -> tuple:
        maps = random_maps(1, size, seed=seed)
        boxes = random_boxes(count, seed=seed).tensor
        return maps["res5"], maps["res5_reg"], boxes, torch.tensor(size)

    traced = torch.jit.trace(scores_and_deltas, inputs(0, 7, IMAGE_SIZE), check_trace=False)
    others = inputs(1, 19, (128, 64))
    for x, y in zip(traced(*others), scores_and_deltas(*others), strict=True):
        torch.testing.assert_close(x, y)


def test_scored_in_one_way_alone() -> None:
    assert not hasattr(GRCNROIHeads, "scoring_modes")
    cfg = grcn_cfg(GRCN, "TEST.DOUBLE_HEAD_MODES", True)
    with pytest.raises(ValueError, match="'GRCNROIHeads', which can be scored in one way alone"):
        check_config(cfg)


def test_double_head_grcn_has_the_conv_head() -> None:
    model = grcn_model("COCO-Detection/double_head_grcn_VGG_16_1x.yaml")
    assert type(model.roi_heads.reg_head) is DoubleHeadConvHead
    weights = [
        x.loss_weight for x in (model.roi_heads.box_predictor, model.roi_heads.reg_predictor)
    ]
    assert [(x["loss_cls"], x["loss_box_reg"]) for x in weights] == [(2.0, 0.0), (0.0, 2.5)]


def test_other_backbones_give_maps_too() -> None:
    """Of detectron2's ResNet alone: no Conv5 of its own for either task."""
    opts = (
        "MODEL.BACKBONE.NAME",
        "build_resnet_backbone",
        f"{NODE}.REG_HEAD.IN_FEATURES",
        ["res4"],
    )
    model = grcn_model(GRCN, *opts, "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"])
    _, gradients = step(model, images_of((64, 96)))
    assert all(x is not None for x in gradients.values())


@torch.no_grad()
def test_test_time_augmentation() -> None:
    cfg = grcn_cfg(GRCN, "TEST.AUG.MIN_SIZES", (48, 64), "TEST.AUG.MAX_SIZE", 128)
    model = grcn_model(GRCN)
    (sample,) = images_of((64, 96))
    sample = {**sample, "image": sample["image"].to(torch.uint8)}
    (found,) = GeneralizedRCNNWithTTA(cfg, model)([sample])
    assert found["instances"].image_size == (64, 96) and len(found["instances"])


# ------------------------------------------------------------------------------- several processes


class BoxLosses(nn.Module):
    """The box losses as a module of its own, for DDP to wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = small_heads(*FC)

    def forward(self, proposals: list[Instances]) -> dict[str, Tensor]:
        return self.heads._forward_box(random_maps(len(proposals)), proposals)


def report_process(folder: str) -> None:
    """Gradients after two steps of which one process has no RoIs."""
    model = create_ddp_model(BoxLosses().train(), broadcast_buffers=False, device_ids=None)
    for _ in range(2):  # DDP complains about a missing gradient in the next iteration
        with EventStorage():
            losses = model(sampled(0, 0) if comm.get_rank() else sampled(6, 4))
        model.zero_grad()
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    torch.save(gradients, Path(folder, f"{comm.get_rank()}.pth"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_a_process_without_rois_takes_part() -> None:
    for folder in once(RUN / "grcn_processes"):
        folder.mkdir()
        launch(report_process, 2, dist_url="auto", args=(str(folder),))
    first, second = (torch.load(RUN / "grcn_processes" / f"{rank}.pth") for rank in range(2))
    assert all(g is not None and g.isfinite().all() for g in first.values())
    assert any(g.any() for g in first.values())
    torch.testing.assert_close(first, second)


# ---------------------------------------------------------------------------------------- refusals

MAPS = "MODEL.RESNETS.OUT_FEATURES"
REFUSED = [
    (f"{NODE}.CLS_HEAD.STRIDE", 8, f"is 8; with MODEL.BACKBONE.NAME '{RESNET}' allowed: 16 or 32"),
    (
        f"{NODE}.REG_HEAD.STRIDE",
        64,
        f"is 64; with MODEL.BACKBONE.NAME '{RESNET}' allowed: 16 or 32",
    ),
    (f"{NODE}.DILATION", 3, "is 3; allowed: 1 or 2"),
    (f"{NODE}.DILATION", 0, "is 0; allowed: 1 or 2"),
    (f"{NODE}.CLS_HEAD.CONTEXT", "attention", "is 'attention'; allowed: 'none', 'add', 'concat'"),
    (f"{NODE}.REG_HEAD.CONTEXT", "", "is ''; allowed: 'none', 'add', 'concat'"),
    (f"{NODE}.CLS_HEAD.LOSS_WEIGHT", 0.0, "is 0.0; allowed: a number above 0"),
    (f"{NODE}.REG_HEAD.LOSS_WEIGHT", -1.0, "is -1.0; allowed: a number above 0"),
    (f"{NODE}.REG_HEAD.LOSS_WEIGHT", float("nan"), "is nan; allowed: a number above 0"),
    (f"{NODE}.REG_HEAD.NAME", "Conv", "is 'Conv'; allowed: .*'AveragePoolHead'"),
    ("MODEL.ROI_BOX_HEAD.NAME", "Conv", "is 'Conv'; allowed: .*'AveragePoolHead'"),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 0.0, "is 0.0; allowed: a number above 0"),
    (
        f"{NODE}.REG_HEAD.IN_FEATURES",
        ["res6"],
        r"is \['res6'\]; allowed: maps that the backbone gives, 'res4', 'res5', 'res5_reg'",
    ),
    ("MODEL.ROI_HEADS.IN_FEATURES", [], r"is \[\]; allowed: maps that the backbone gives, 'res4'"),
    ("MODEL.RPN.IN_FEATURES", ["p2"], r"is \['p2'\]; allowed: maps that the backbone gives"),
    (
        MAPS,
        ["res4", "res6"],
        rf"with MODEL.BACKBONE.NAME '{RESNET}' allowed: one or more of 'stem', ",
    ),
    (MAPS, [], rf"is \[\]; with MODEL.BACKBONE.NAME '{RESNET}' allowed: one or more of 'stem', "),
    (
        "MODEL.RESNETS.RES5_DILATION",
        2,
        f"is 2; with MODEL.BACKBONE.NAME '{RESNET}' allowed: 1 .*{NODE}.CLS_HEAD.STRIDE",
    ),
    (
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
        [False, False, False, True],
        f"with MODEL.BACKBONE.NAME '{RESNET}' allowed: False for res5, the last",
    ),
    (
        "MODEL.RESNETS.DEPTH",
        18,
        f"{NODE}.DILATION is 2 and MODEL.RESNETS.DEPTH is 18, whose blocks cannot be dilated; "
        "allowed: 1",
    ),
    (
        "MODEL.RESNETS.DEPTH",
        34,
        f"{NODE}.DILATION is 2 and MODEL.RESNETS.DEPTH is 34, .*allowed: 1",
    ),
    ("MODEL.MASK_ON", True, "is True and .*'GRCNROIHeads', which has no mask head; allowed: False"),
    ("MODEL.KEYPOINT_ON", True, "'GRCNROIHeads', which has no keypoint head; allowed: False"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_bad_settings_are_refused(key: str, value: object, message: str) -> None:
    cfg = grcn_cfg(GRCN, key, value)
    expected = rf"{re.escape(key)}.*{message}" if "DEPTH" not in key else message
    for build in (check_config, build_model):
        if key == "MODEL.RPN.IN_FEATURES" and build is build_model:
            continue  # detectron2's RPN is built from it
        with pytest.raises(ValueError, match=expected):
            build(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            f"{NODE}.CLS_HEAD.STRIDE",
            32,
            f"is 32; with MODEL.BACKBONE.NAME '{VGG}' allowed: 8 or 16",
        ),
        (f"{NODE}.REG_HEAD.STRIDE", 4, f"is 4; with MODEL.BACKBONE.NAME '{VGG}' allowed: 8 or 16"),
        ("MODEL.VGG.OUT_FEATURES", ["res5"], f"'{VGG}' allowed: one or more of 'conv1', "),
    ],
)
def test_bad_settings_of_vgg_are_refused(key: str, value: object, message: str) -> None:
    cfg = grcn_cfg(GRCN_VGG, key, value)
    for build in (check_config, build_backbone):
        with pytest.raises(ValueError, match=f"{key}.*{message}"):
            build(cfg)


def test_bad_settings_of_the_corrected_protocol_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{NODE}.CLS_HEAD.STRIDE is 64"):
        check_config(grcn_cfg(CORRECTED, f"{NODE}.CLS_HEAD.STRIDE", 64))
    with pytest.raises(ValueError, match="ROI_HEADS.IN_FEATURES is .*res5_reg.* allowed: maps"):
        check_config(grcn_cfg(CORRECTED, "MODEL.ROI_HEADS.IN_FEATURES", ["res5_reg"]))


def test_a_copy_that_nobody_reads_is_refused() -> None:
    message = (
        r"MODEL.RESNETS.OUT_FEATURES is \['res4', 'res5', 'res5_reg'\], and 'res5_reg' is in none "
        r"of MODEL.ROI_HEADS.IN_FEATURES, MODEL.RPN.IN_FEATURES, .*REG_HEAD.IN_FEATURES; allowed: m"
    )
    with pytest.raises(ValueError, match=message):
        check_config(grcn_cfg(GRCN, f"{NODE}.REG_HEAD.IN_FEATURES", ["res5"]))


def test_maps_of_other_backbones_are_checked_when_heads_are_built() -> None:
    cfg = grcn_cfg(GRCN, "MODEL.BACKBONE.NAME", "build_resnet_backbone", MAPS, ["res4", "res5"])
    check_config(cfg)
    message = r"REG_HEAD.IN_FEATURES is \['res5_reg'\]; allowed: .*, 'res4', 'res5'$"
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_other_models_are_left_alone() -> None:
    for key, value, _ in REFUSED:
        if key.startswith(NODE):
            cfg = default_cfg(key, value)
            cfg.MODEL.DEVICE = "cpu"
            check_config(cfg)


def test_the_whole_way_of_detectron2() -> None:
    """Proposals in, losses or detections out; images are not looked at."""
    heads, proposals = small_heads(), proposals_of(20, 20)
    images = ImageList(torch.zeros(2, 3, *IMAGE_SIZE), [IMAGE_SIZE] * 2)
    objects = Instances(IMAGE_SIZE, gt_boxes=random_boxes(2), gt_classes=torch.tensor([0, 1]))
    nothing = Instances(
        IMAGE_SIZE, gt_boxes=random_boxes(0), gt_classes=torch.zeros(0, dtype=torch.int64)
    )
    with EventStorage():
        _, losses = heads.train()(images, random_maps(), proposals, [objects, nothing])
    assert list(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        found, _ = heads.eval()(images, random_maps(), proposals)
    assert all(len(x) for x in found)
