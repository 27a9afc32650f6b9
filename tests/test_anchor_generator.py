"""The anchors of the authors' code, by hand and against what detectron2 makes of them."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator

from builders import default_cfg
from doublehead_d2.modeling.anchor_generator import legacy_cell_anchors

NAME = ("MODEL.ANCHOR_GENERATOR.NAME", "LegacyAnchorGenerator")
FPN = ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]])


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
