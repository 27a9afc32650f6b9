"""What people are shown: thresholds by hand, one label an object."""

import pytest
import torch
from detectron2.modeling import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import nn

from builders import small_heads
from doublehead_d2.inference.display import display_threshold, select_for_display


def detector(heads: nn.Module) -> nn.Module:
    model = nn.Module()
    model.roi_heads = heads
    return model


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("complementary", 0.75),  # 1 - (1 - 0.5)^2
        ("average", 0.5),
        ("max", 0.5),
        ("cls_head", 0.5),
        ("reg_head", 0.5),
    ],
)
def test_the_threshold_suits_the_fusion(fusion: str, expected: float) -> None:
    lambdas = ["MODEL.ROI_DOUBLE_HEAD.CLS_HEAD.LAMBDA", 0.7]
    lambdas += ["MODEL.ROI_DOUBLE_HEAD.REG_HEAD.LAMBDA", 0.8]
    heads = small_heads(*lambdas, "MODEL.ROI_DOUBLE_HEAD.SCORE_FUSION", fusion)
    assert display_threshold(detector(heads)) == expected


def test_models_that_fuse_nothing_keep_the_threshold_of_one_head() -> None:
    assert display_threshold(detector(StandardROIHeads.__new__(StandardROIHeads))) == 0.5
    assert display_threshold(nn.Linear(1, 1)) == 0.5


def detections() -> Instances:
    boxes = [
        [0.0, 0, 10, 10],
        [50, 50, 60, 60],
        [0, 0, 10, 9],  # IoU 90 / 100 with the first, of another class
        [0, 0, 10, 5],  # IoU 50 / 100 with the first, of another class
        [52, 50, 62, 60],  # IoU 80 / 120 with the second
        [80, 80, 90, 90],
    ]
    return Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor([0.99, 0.95, 0.92, 0.85, 0.75, 0.74]),
        pred_classes=torch.tensor([1, 0, 0, 2, 2, 1]),
        index=torch.arange(6),
    )


def test_an_object_has_one_label() -> None:
    shown = select_for_display(detections(), 0.75, 0.5)
    # Of scores of at least 0.75; IoU of 0.5 is not above 0.5.
    assert shown.instances.index.tolist() == [0, 1, 3]
    assert (shown.low_scores, shown.second_labels) == (1, 2)
    torch.testing.assert_close(shown.instances.scores, torch.tensor([0.99, 0.95, 0.85]))


def test_all_labels_on_demand() -> None:
    shown = select_for_display(detections(), 0.75, None)
    assert shown.instances.index.tolist() == [0, 1, 2, 3, 4]
    assert (shown.low_scores, shown.second_labels) == (1, 0)


def test_what_is_not_likely_suppresses_nothing() -> None:
    shown = select_for_display(detections()[2:], 0.9, 0.4)
    assert shown.instances.index.tolist() == [2]
    assert (shown.low_scores, shown.second_labels) == (3, 0)


@pytest.mark.parametrize("overlap", [0.5, None])
def test_no_detections(overlap: float | None) -> None:
    shown = select_for_display(detections()[:0], 0.5, overlap)
    assert len(shown.instances) == shown.low_scores == shown.second_labels == 0
    assert shown.instances.has("index")
