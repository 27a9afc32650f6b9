"""What heads say about given boxes is what they detect by, for every system."""

import pytest
import torch
from asked import EXT, THRESHOLD, built_detector, inputs, random_detector
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes

from builders import EXT as EXT_OPTS
from builders import random_boxes
from doublehead_d2.analysis.asking import (
    Answers,
    Mode,
    ask,
    ask_for_classes,
    detections,
    modes_of,
    see,
)
from doublehead_d2.evaluation import score_modes

SYSTEMS = {
    "Shapes-Detection/double_head_ext_rcnn_tiny.yaml": {
        "reg_head": "conv",
        "cls_head": "fc",
        "unfused": "both",
        "fused": "both",
    },
    "Shapes-Detection/double_head_rcnn_tiny.yaml": {"unfused": "both"},
    "Shapes-Detection/single_fc_rcnn_tiny.yaml": {"configured": "fc"},
    "Shapes-Detection/single_conv_rcnn_tiny.yaml": {"configured": "conv"},
    "Shapes-Detection/tsd_rcnn_tiny.yaml": {"configured": "fc"},
    "Shapes-Detection/double_head_tsd_rcnn_tiny.yaml": {"configured": "both"},
    "Shapes-Detection/grcn_tiny.yaml": {"configured": "other"},
    "Shapes-Detection/faster_rcnn_c4_tiny.yaml": {"configured": "other"},
    "Shapes-Detection/faster_rcnn_c5_tiny.yaml": {"configured": "other"},
    "Shapes-Detection/faster_rcnn_dc5_tiny.yaml": {"configured": "fc"},
    "Shapes-Detection/faster_rcnn_detnet_tiny.yaml": {"configured": "fc"},
    "Shapes-Detection/double_head_ext_rcnn_detnet_tiny.yaml": {
        "reg_head": "conv",
        "cls_head": "fc",
        "unfused": "both",
        "fused": "both",
    },
    "Ablations/double_head_reverse_tuned.yaml": {"unfused": "both"},
    "Ablations/double_fc_w1.yaml": {"unfused": "fc"},
    "Ablations/double_conv_w1.yaml": {"unfused": "conv"},
}


def detect(model: GeneralizedRCNN, answers: Answers, counts: list, sizes: list) -> list:
    layers = model.roi_heads.box_predictor
    thresholds = (layers.test_score_thresh, layers.test_nms_thresh, layers.test_topk_per_image)
    return fast_rcnn_inference(
        answers.boxes.split(counts), answers.scores.split(counts), sizes, *thresholds
    )[0]


def assert_same_detections(found: list, expected: list) -> None:
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.pred_boxes.tensor, other.pred_boxes.tensor)
        torch.testing.assert_close(own.scores, other.scores)
        assert torch.equal(own.pred_classes, other.pred_classes)


@pytest.mark.parametrize("name", SYSTEMS)
def test_detections_follow_from_what_is_said(name: str) -> None:
    model = random_detector(name)
    modes = modes_of(model)
    assert {mode: x.kind for mode, x in modes.items()} == SYSTEMS[name]
    seen = see(model, inputs())
    assert seen.image_sizes == [(96, 128), (128, 80)]
    boxes = [x.proposal_boxes for x in seen.proposals]
    counts = [len(x) for x in boxes]
    said = ask(model, modes, seen.features, boxes, seen.image_sizes)
    after_nms = detections(model, modes, seen)
    with torch.no_grad():
        configured = model.inference(inputs(), do_postprocess=False)
        expected = {}
        if "configured" in modes:
            expected["configured"] = configured
        else:
            scorings = {mode: x.scoring for mode, x in modes.items()}
            with score_modes(model, scorings):
                together = model.inference(inputs(), do_postprocess=False)
            for i, mode in enumerate(modes):
                expected[mode] = [x[x.modes == i] for x in together]
            own = next(m for m, x in scorings.items() if x == model.roi_heads.scoring)
            assert_same_detections(configured, expected[own])
    for mode in modes:
        found = detect(model, said[mode], counts, seen.image_sizes)
        # Some boxes are detected, others are not.
        assert 0 < sum(len(x) for x in found) < sum(counts) * 3
        assert_same_detections(found, expected[mode])
        assert_same_detections(after_nms[mode], expected[mode])
        if mode != "fused":  # fused scores are higher
            assert (said[mode].scores[:, :-1].amax(dim=1) < THRESHOLD).any()


@pytest.mark.parametrize("name", [EXT, "Shapes-Detection/tsd_rcnn_tiny.yaml"])
def test_models_with_the_authors_boxes(name: str) -> None:
    system = "TSD" if "tsd" in name else "DOUBLE_HEAD"
    opts = [f"MODEL.ROI_{system}.LEGACY_BOXES", True, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"]
    model = random_detector(name, *opts)
    modes, seen = modes_of(model), see(model, inputs())
    boxes = [x.proposal_boxes for x in seen.proposals]
    said = ask(model, modes, seen.features, boxes, seen.image_sizes)
    own = "fused" if "fused" in modes else "configured"
    found = detect(model, said[own], [len(x) for x in boxes], seen.image_sizes)
    with torch.no_grad():
        assert_same_detections(found, model.inference(inputs(), do_postprocess=False))


@pytest.mark.parametrize("name", SYSTEMS)
def test_chunks_change_nothing(name: str) -> None:
    model = random_detector(name)
    modes, seen = modes_of(model), see(model, inputs())
    boxes = [random_boxes(7), random_boxes(12, seed=1)]
    arguments = (seen.features, boxes, seen.image_sizes)
    whole = ask(model, modes, *arguments)
    # 5 and 2 | 3 of the first and second image; and one RoI at a time
    for chunk in (5, 1):
        parts = ask(model, modes, *arguments, chunk=chunk)
        for mode in modes:
            assert whole[mode].scores.shape == (19, 4)
            torch.testing.assert_close(parts[mode].scores, whole[mode].scores)
            torch.testing.assert_close(parts[mode].boxes, whole[mode].boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("agnostic", [False, True])
def test_what_is_said_for_a_class(agnostic: bool) -> None:
    model = random_detector(EXT, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic)
    modes, seen = modes_of(model), see(model, inputs())
    boxes = [random_boxes(4), random_boxes(5, seed=1)]
    classes = torch.tensor([0, 1, 2, 0, 2, 2, 1, 0, 1])
    arguments = (model, modes, seen.features, boxes, seen.image_sizes)
    every, own = ask(*arguments), ask_for_classes(*arguments, classes, chunk=2)
    for mode in modes:
        assert every[mode].boxes.shape == (9, 4 if agnostic else 12)
        for row, index in enumerate(classes.tolist()):
            torch.testing.assert_close(own[mode].scores[row], every[mode].scores[row, index])
            at = 0 if agnostic else 4 * index
            expected = every[mode].boxes[row, at : at + 4]
            torch.testing.assert_close(own[mode].boxes[row], expected, rtol=1e-4, atol=1e-3)


def test_boxes_are_clipped_to_their_own_image() -> None:
    model = built_detector(EXT)
    seen = see(model, inputs())
    boxes = [
        Boxes(torch.tensor([[60.0, 60.0, 128.0, 96.0]])),
        Boxes(torch.tensor([[60.0, 60.0, 80.0, 128.0]])),
    ]
    modes = {"unfused": modes_of(model)["unfused"]}
    with torch.no_grad():
        model.roi_heads.reg_predictor.bbox_pred.bias.fill_(5.0)  # to the right, down, larger
    said = ask(model, modes, seen.features, boxes, seen.image_sizes)["unfused"].boxes.view(2, 3, 4)
    assert said[0, :, 2].tolist() == [128.0] * 3 and said[0, :, 3].tolist() == [96.0] * 3
    assert said[1, :, 2].tolist() == [80.0] * 3 and said[1, :, 3].tolist() == [128.0] * 3


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_boxes(name: str) -> None:
    model = random_detector(name)
    modes, seen = modes_of(model), see(model, inputs())
    none = [random_boxes(0), random_boxes(0)]
    arguments = (model, modes, seen.features, none, seen.image_sizes)
    for mode, answers in ask(*arguments).items():
        assert answers.scores.shape == (0, 4) and answers.boxes.shape == (0, 12)
        own = ask_for_classes(*arguments, torch.zeros(0, dtype=torch.int64))[mode]
        assert own.scores.shape == (0,) and own.boxes.shape == (0, 4)


@pytest.mark.parametrize("name", ["double_head_ext", "double_head", "tsd", "grcn"])
def test_heads_see_every_box_once_whatever_the_modes(name: str) -> None:
    name = "grcn_tiny.yaml" if name == "grcn" else f"{name}_rcnn_tiny.yaml"
    # above every score: nothing can be detected
    model = built_detector(f"Shapes-Detection/{name}", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    seen = see(model, inputs())
    boxes = [random_boxes(7), random_boxes(0)]
    before = dict(model.roi_heads.rois_shown)
    ask(model, modes_of(model), seen.features, boxes, seen.image_sizes, chunk=3)
    after = model.roi_heads.rois_shown
    # G-RCN also shows the classification head both images, with each of the 3 chunks.
    shown = 7 + 2 * 3 if "grcn" in name else 7
    assert after["box_head"] - before["box_head"] == shown
    assert after["reg_head"] - before["reg_head"] == 7


def test_a_model_configured_to_none_of_its_modes() -> None:
    opts = ["MODEL.ROI_DOUBLE_HEAD.SCORE_FUSION", "average", "MODEL.ROI_DOUBLE_HEAD.BOX_SOURCE"]
    modes = modes_of(random_detector(EXT, *opts, "cls_head"))
    assert modes["configured"] == Mode("both", ("average", "cls_head"))


def test_what_heads_are_made_of() -> None:
    """With the roles of both heads changed, and with convolutions below the fc layers."""
    reverse = modes_of(built_detector("Ablations/double_head_reverse_tuned.yaml", *EXT_OPTS))
    kinds = {mode: x.kind for mode, x in reverse.items()}
    assert kinds == {"reg_head": "fc", "cls_head": "conv", "unfused": "both", "fused": "both"}
    name = "Shapes-Detection/single_fc_rcnn_tiny.yaml"
    mixed = built_detector(name, "MODEL.ROI_BOX_HEAD.NUM_CONV", 1)
    assert modes_of(mixed)["configured"].kind == "other"


def test_heads_that_cannot_be_asked() -> None:
    agnostic = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    model = built_detector(EXT, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *agnostic)
    with pytest.raises(ValueError, match="'CascadeROIHeads'; allowed: 'StandardROIHeads'"):
        modes_of(model)


def test_a_model_in_training() -> None:
    with pytest.raises(AssertionError, match="training mode"):
        see(built_detector(EXT).train(), inputs())
