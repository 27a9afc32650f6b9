"""What the authors' code does otherwise: anchors, the RPN, boxes clipped to pixels."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from builders import STRIDES, default_cfg, random_features
from doublehead_d2.modeling import LegacyRPN
from doublehead_d2.modeling.legacy import clip_to_pixels, legacy_cell_anchors

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
