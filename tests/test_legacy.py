"""What imported models do otherwise: anchors, the RPN, boxes clipped to pixels, least sizes."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from builders import STRIDES, default_cfg, random_features
from doublehead_d2.modeling import LegacyRPN
from doublehead_d2.modeling.legacy import (
    clip_to_pixels,
    legacy_cell_anchors,
    mmdet1_cell_anchors,
    with_least_sizes,
)

NAME = ("MODEL.ANCHOR_GENERATOR.NAME", "LegacyAnchorGenerator")
FPN = ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]])
LEVELS = {**STRIDES, "p6": 64}


def test_cell_anchors_by_hand() -> None:
    # Stride 4: a 4 x 4 anchor of ratio 0.5 is round(sqrt(16 / 0.5)) = 6 wide and 3 high, 8 times
    # that for size 32; ratio 2 is round(sqrt(8)) = 3 wide, 6 high. All about (2, 2).
    expected = torch.tensor(
        [[-22.0, -10, 26, 14], [-14, -14, 18, 18], [-10, -22, 14, 26]]  # 48x24, 32x32, 24x48
    )
    torch.testing.assert_close(legacy_cell_anchors(4, [32], [0.5, 1.0, 2.0]), expected)


def test_the_example_of_the_first_faster_rcnn() -> None:
    # Ratio 0.5 at stride 16: round(sqrt(512)) = 23, round(11.5) = 12 to the even number: 184 x 96
    # for size 128. The Matlab code's list begins with this one: -83 -39 100 56, from 1 and with
    # the last pixel in the box; here from 0 and ending after it.
    anchors = legacy_cell_anchors(16, [128, 256], [0.5, 1.0])
    expected = torch.tensor(
        [[-84.0, -40, 100, 56], [-176, -88, 192, 104], [-56, -56, 72, 72], [-120, -120, 136, 136]]
    )
    torch.testing.assert_close(anchors, expected)


def test_grid_is_that_of_detectron2() -> None:
    cfg = default_cfg(*NAME, *FPN)
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=4), ShapeSpec(stride=8)])
    assert generator.num_anchors == [3, 3] and not generator.state_dict()
    p2, p3 = generator([torch.zeros(1, 8, 2, 3), torch.zeros(1, 8, 1, 1)])
    assert len(p2) == 2 * 3 * 3 and len(p3) == 3
    first_cells = torch.tensor([[2.0, 2], [6, 2], [10, 2], [2, 6]])
    torch.testing.assert_close(p2.get_centers()[::3][:4], first_cells)
    torch.testing.assert_close(p3.get_centers(), torch.full((3, 2), 4.0))
    assert len(generator([torch.zeros(1, 8, 0, 3), torch.zeros(1, 8, 0, 0)])[0]) == 0


def test_offset_is_refused() -> None:
    cfg = default_cfg(*NAME, "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5)
    with pytest.raises(ValueError, match=r"OFFSET is 0.5; .*allowed: 0.0"):
        build_anchor_generator(cfg, [ShapeSpec(stride=4)])


def rpn(name: str, *opts: object) -> nn.Module:
    torch.manual_seed(0)
    cfg = default_cfg(
        *("MODEL.PROPOSAL_GENERATOR.NAME", name),
        *("MODEL.ANCHOR_GENERATOR.NAME", "LegacyAnchorGenerator"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
        *("MODEL.RPN.IN_FEATURES", list(LEVELS)),
        *opts,
    )
    shapes = {name: ShapeSpec(channels=8, stride=s) for name, s in LEVELS.items()}
    return build_proposal_generator(cfg, shapes).eval()


def features() -> dict:
    maps = random_features(1)
    return {**maps, "p6": maps["p5"][:, :, ::2, ::2]}


def images(height: int = 64, width: int = 64) -> ImageList:
    return ImageList(torch.zeros(1, 3, 64, 64), [(height, width)])


def test_boxes_keep_a_pixel_by_hand() -> None:
    # image 20 high, 10 wide: inside, over two borders, right of it, above it
    boxes = [[1.0, 2, 3, 4], [-5, 3, 12, 30], [15, 5, 18, 9], [2, -9, 6, -4]]
    expected = [[1.0, 2, 3, 4], [0, 3, 10, 20], [9, 5, 10, 9], [2, 0, 6, 1]]
    clipped = clip_to_pixels(torch.tensor(boxes), (20, 10))
    torch.testing.assert_close(clipped, torch.tensor(expected))
    by_class = clip_to_pixels(torch.tensor(boxes).reshape(2, 8), (20, 10))
    torch.testing.assert_close(by_class, torch.tensor(expected).reshape(2, 8))
    assert clip_to_pixels(torch.zeros(0, 8), (20, 10)).shape == (0, 8)


@torch.no_grad()
def test_proposals_outside_the_image_stay_as_slivers() -> None:
    """Of a padded image, whose anchors lie beyond its 40 x 30 pixels, too."""
    legacy, _ = rpn("LegacyRPN")(images(40, 30), features())
    boxes = legacy[0].proposal_boxes.tensor
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert sizes.min() >= 1 and (sizes == 1).any()
    assert boxes[:, 2].max() <= 30 and boxes[:, 3].max() <= 40
    logits = legacy[0].objectness_logits
    assert torch.equal(logits, logits.sort(descending=True)[0])


@torch.no_grad()
def test_proposals_inside_the_image_are_detectron2s() -> None:
    """No anchor of a deltaless RPN is outside an image without padding."""
    for name in ("LegacyRPN", "RPN"):
        model = rpn(name)
        nn.init.zeros_(model.rpn_head.anchor_deltas.weight)
        proposals, _ = model(images(), features())
        if name == "LegacyRPN":
            expected = proposals[0]
    torch.testing.assert_close(proposals[0].proposal_boxes.tensor, expected.proposal_boxes.tensor)
    torch.testing.assert_close(proposals[0].objectness_logits, expected.objectness_logits)


@pytest.mark.parametrize(("threshold", "inside"), [(0, [True, True, False]), (-1, [True] * 3)])
def test_anchors_may_end_with_the_image_in_training(threshold: int, inside: list) -> None:
    # In an image 64 wide the authors keep an anchor whose last pixel is 63: it ends at 64.
    anchors = Boxes(torch.tensor([[0.0, 0, 32, 32], [32, 32, 64, 64], [33, 32, 65, 64]]))
    gt = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[30.0, 30, 40, 40]])))
    model = rpn("LegacyRPN", "MODEL.RPN.BOUNDARY_THRESH", threshold)
    labels, _ = model.label_and_sample_anchors([anchors], [gt])
    assert (labels[0] >= 0).tolist() == inside


def test_training_gives_the_losses_of_the_rpn() -> None:
    gt = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[10.0, 10, 40, 40]])))
    with EventStorage():
        proposals, losses = rpn("LegacyRPN").train()(images(), features(), [gt])
    assert isinstance(rpn("LegacyRPN"), LegacyRPN) and len(proposals[0]) > 0
    assert not proposals[0].proposal_boxes.tensor.requires_grad
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())


# ------------------------------------------------------------------------------- mmdetection 1

# Last pixel included, scale 8, ratios 0.5, 1, 2. For stride 4 and ratio 0.5: width 32 * sqrt(2) =
# 45.25, height 22.63, centre 1.5; corners 1.5 -+ 44.25 / 2 = -20.63 and 23.63, 1.5 -+ 21.63 / 2 =
# -9.31 and 12.31, rounded -21, 24, -9, 12.
MMDET1_ANCHORS = {
    4: [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]],
    8: [[-41, -19, 48, 26], [-28, -28, 35, 35], [-19, -41, 26, 48]],
    16: [[-83, -37, 98, 52], [-56, -56, 71, 71], [-37, -83, 52, 98]],
    32: [[-165, -75, 196, 106], [-112, -112, 143, 143], [-75, -165, 106, 196]],
    64: [[-330, -149, 393, 212], [-224, -224, 287, 287], [-149, -330, 212, 393]],
}


@pytest.mark.parametrize("stride", MMDET1_ANCHORS)
def test_cell_anchors_of_mmdetection_1_by_hand(stride: int) -> None:
    expected = torch.tensor(MMDET1_ANCHORS[stride]) + torch.tensor([0.0, 0, 1, 1])
    anchors = mmdet1_cell_anchors(stride, [8.0 * stride], [0.5, 1.0, 2.0])
    torch.testing.assert_close(anchors, expected, rtol=0, atol=0)


def test_cell_anchors_of_mmdetection_1_round_halves_to_even() -> None:
    # Size 33 about pixel 1.5: -14.5 and 17.5, rounded to the even -14 and 18. Ratio first, then
    # size: 16 x 64 and 16.5 x 66 of ratio 4 are 1.5 -+ 7.5, -+ 31.5 and 1.5 -+ 7.75, -+ 32.5.
    anchors = mmdet1_cell_anchors(4, [32.0, 33.0], [1.0, 4.0])
    expected = torch.tensor(
        [[-14.0, -14, 18, 18], [-14, -14, 19, 19], [-6, -30, 10, 34], [-6, -31, 10, 35]]
    )
    torch.testing.assert_close(anchors, expected, rtol=0, atol=0)


def test_grid_of_mmdetection_1() -> None:
    cfg = default_cfg("MODEL.ANCHOR_GENERATOR.NAME", "Mmdet1AnchorGenerator", *FPN)
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=4), ShapeSpec(stride=8)])
    assert generator.num_anchors == [3, 3] and not generator.state_dict()
    p2, _ = generator([torch.zeros(1, 8, 2, 3), torch.zeros(1, 8, 1, 1)])
    first = torch.tensor(MMDET1_ANCHORS[4]) + torch.tensor([0.0, 0, 1, 1])
    torch.testing.assert_close(p2.tensor[:3], first)
    # the third cell of the second row
    torch.testing.assert_close(p2.tensor[-3:], first + torch.tensor([8.0, 4, 8, 4]))
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    with pytest.raises(ValueError, match=r"NAME 'Mmdet1AnchorGenerator', .* allowed: 0.0"):
        build_anchor_generator(cfg, [ShapeSpec(stride=4)])


def test_least_sizes_by_hand() -> None:
    # log(1000 / 16) = 4.135: of a box 1000 wide 16 remain; times the weight 5 of the box coder.
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    deltas = torch.tensor([[-50.0, -50, -50, -20, 0, 0, -21, 50], [1.0, 2, 3, 4, -1, -2, -3, -4]])
    expected = deltas.clone()
    expected[0, 2] = expected[0, 6] = -5 * math.log(1000 / 16)
    torch.testing.assert_close(with_least_sizes(deltas, transform), expected)
    box = torch.tensor([[0.0, 0, 1000, 1000]])
    least = with_least_sizes(torch.tensor([[0.0, 0, -99, -99]]), transform)
    decoded = transform.apply_deltas(least, box)
    torch.testing.assert_close(decoded, torch.tensor([[492.0, 492, 508, 508]]))
    assert with_least_sizes(torch.zeros(0, 8), transform).shape == (0, 8)


@torch.no_grad()
def test_proposals_of_mmdetection_1_have_a_least_size() -> None:
    """Of an anchor 16 / 1000 remain; detectron2 leaves less. All else is `LegacyRPN`'s."""
    sizes = {}
    for name in ("LegacyRPN", "Mmdet1RPN"):
        model = rpn(name)
        nn.init.zeros_(model.rpn_head.anchor_deltas.weight)
        at_rest = model(images(), features())[0][0].proposal_boxes.tensor
        # (dx, dy, dw, dh) of three anchors
        model.rpn_head.anchor_deltas.bias.view(3, 4)[:, 2:] = -8.0
        boxes = model(images(), features())[0][0].proposal_boxes.tensor
        inside = (boxes[:, :2] > 0).all(dim=1) & (boxes[:, 2:] < 64).all(dim=1)
        sizes[name] = (boxes[inside, 2:] - boxes[inside, :2]).amin()
        sizes[f"{name} at rest"] = at_rest
    # The smallest anchor of LegacyAnchorGenerator is 24 wide.
    assert sizes["LegacyRPN"] < 0.02
    torch.testing.assert_close(sizes["Mmdet1RPN"], torch.tensor(24 * 0.016), rtol=1e-3, atol=0)
    torch.testing.assert_close(sizes["Mmdet1RPN at rest"], sizes["LegacyRPN at rest"])
