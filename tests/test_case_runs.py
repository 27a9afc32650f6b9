"""What detectors say is what they detect; cases of one model and of two."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image

from builders import EXT, grcn_model, small_cfg
from doublehead_d2.analysis.case_book import BOTH, CaseBook
from doublehead_d2.analysis.case_runs import (
    Side,
    find_cases,
    hear,
    objects_of,
    open_book,
    sides_of,
)
from doublehead_d2.data.resize import build_mapper
from doublehead_d2.evaluation import score_modes

NAMES = list("abcde")
SIZE = ["INPUT.MIN_SIZE_TEST", 48, "MODEL.RPN.POST_NMS_TOPK_TEST", 30]
# Scores of an untrained model are some 1/6.
ALL = [*SIZE, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.12]
STOCK = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]


def detector(*opts: object, seed: int = 0) -> tuple:
    """A random model and its mapper; 65 x 96 pixels become 48 x 71."""
    cfg = small_cfg(*ALL, *opts)
    torch.manual_seed(seed)
    return build_model(cfg).eval(), build_mapper(cfg, is_train=False)


@pytest.fixture
def record(tmp_path: Path) -> dict:
    pixels = np.random.default_rng(0).integers(0, 255, (65, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 7,
        "annotations": [
            {"bbox": [10, 20, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2},
            {"bbox": [0, 0, 50, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
            | {"iscrowd": 1},
            {"bbox": [0, 0, 5, 6], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "ignore": 1},
        ],
    }


def test_objects_in_any_mode_of_boxes(record: dict) -> None:
    found = objects_of(record)
    assert found.boxes.tolist() == [[10, 20, 40, 40], [0, 0, 50, 60], [0, 0, 5, 6]]
    assert found.classes.tolist() == [2, 1, 0] and found.ignored.tolist() == [False, True, True]
    assert objects_of({"annotations": []}).boxes.shape == (0, 4)


def test_what_each_side_says_is_what_the_model_detects(record: dict) -> None:
    model, mapper = detector(*EXT)
    sides = sides_of(model, mapper)
    assert [(x.title, x.mode) for x in sides] == [
        *(("conv-head", "reg_head"), ("fc-head", "cls_head"), (BOTH, "fused")),
    ]
    said = hear(sides, record)
    with torch.no_grad(), score_modes(model, model.roi_heads.scoring_modes()):
        (output,) = model([mapper(record)])
    expected, modes = output["instances"], list(model.roi_heads.scoring_modes())
    for side, own in zip(sides, said, strict=True):
        instances = expected[expected.modes == modes.index(side.mode)]
        found = own.detections
        assert len(found.scores) > 5
        torch.testing.assert_close(found.boxes, instances.pred_boxes.tensor)
        torch.testing.assert_close(found.scores, instances.scores)
        assert torch.equal(found.classes, instances.pred_classes)
        # And of which proposals they come from.
        torch.testing.assert_close(own.scores[found.proposals, found.classes], found.scores)
        torch.testing.assert_close(own.boxes[found.proposals, found.classes], found.boxes)
        assert own.boxes.shape == (len(own.proposals), 5, 4) and own.scores.shape[1] == 5
        assert torch.equal(own.proposals, said[0].proposals)
    # In the original image, which is larger than the network's input.
    assert said[0].proposals[:, 0::2].max() > 71 and said[0].proposals[:, 1::2].max() > 48
    assert said[0].proposals[:, 2].max() <= 96 and said[0].proposals[:, 3].max() <= 65


def test_rows_that_are_not_finite_are_no_detections(
    record: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, mapper = detector(*EXT)
    sides = sides_of(model, mapper)
    before = hear(sides, record)[1].detections.proposals
    row = int(before.min())  # the indices of others would be one less without it
    head = model.roi_heads.box_predictor
    said = head.predict_probs

    def broken(*args: object) -> list:
        (probs,) = said(*args)
        probs[row] = float("nan")
        return [probs]

    monkeypatch.setattr(head, "predict_probs", broken)
    after = hear(sides, record)[1]
    found = after.detections
    assert len(found.scores) > 5 and row not in found.proposals
    torch.testing.assert_close(after.scores[found.proposals, found.classes], found.scores)


def planted(model: torch.nn.Module, mapper: Callable, record: dict) -> dict:
    """The record with the objects that both heads of a model together detect best."""
    sides = sides_of(model, mapper)
    found = hear(sides, record)[2].detections
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": class_id}
        for box, class_id in zip(found.boxes.tolist(), found.classes.tolist(), strict=True)
    ]
    return {**record, "annotations": annotations}


def test_cases_of_one_model(record: dict) -> None:
    model, mapper = detector(*EXT)
    record = planted(model, mapper, record)
    sides = sides_of(model, mapper)
    book = open_book(sides, NAMES, score=0.18)
    # Of two such scores fusion makes 0.18 + 0.18 (1 - 0.18).
    assert book.both_score == pytest.approx(0.3276) and book.shared
    assert book.limits == (0.18, 0.5, 0.1, 0.5) and book.names == ["conv-head", "fc-head", BOTH]
    find_cases(sides, [record, record], book)
    counts = book.counts
    assert counts["images"] == 2 and counts["objects"] == 2 * len(record["annotations"])
    for first, second in (("conv-head", "fc-head"), ("fc-head", "conv-head")):
        kind = f"missed by {first}, found by {second}"
        assert counts[kind] == counts[f"missed by {first}"] - counts["missed by each"]
    assert sum(counts[kind] for kind in book.kinds) > 0
    cases = json.loads(json.dumps(book.state()))["cases"]
    assert cases and all(x["image_id"] == 7 and x["class"] in NAMES for x in cases)


def test_cases_of_two_models(record: dict) -> None:
    first, second = detector(*EXT), detector(*STOCK, seed=1)
    record = planted(*first, record)
    sides = [Side("Double-Head", *first, "cls_head"), Side("Single-FC", *second)]
    book = open_book(sides, NAMES, score=0.18)
    assert not book.shared and book.names == ["Double-Head", "Single-FC"]
    assert book.both_score is None
    find_cases(sides, [record], book)
    said = hear(sides, record)
    assert not torch.equal(said[0].proposals, said[1].proposals)
    with torch.no_grad():
        (output,) = second[0]([second[1](record)])
    torch.testing.assert_close(said[1].detections.boxes, output["instances"].pred_boxes.tensor)
    assert book.counts["missed by Single-FC, found by Double-Head"] > 0


def test_a_model_of_another_system_beside_it(record: dict) -> None:
    model = grcn_model("Shapes-Detection/grcn_tiny.yaml")
    mapper = build_mapper(small_cfg(*SIZE), is_train=False)
    (said,) = hear([Side("G-RCN", model, mapper)], record)
    with torch.no_grad():
        (output,) = model([mapper(record)])
    assert len(said.detections.scores) > 5
    torch.testing.assert_close(said.detections.boxes, output["instances"].pred_boxes.tensor)


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        ([], "'DoubleHeadROIHeads', which is scored as unfused here, not as reg_head, cls_head;"),
        (STOCK, "'StandardROIHeads', which is scored as configured here, not as reg_head"),
    ],
)
def test_models_whose_heads_do_not_detect_alone_are_refused(opts: list, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        sides_of(*detector(*opts))
    assert "allowed: 'DoubleHeadROIHeads' whose heads learned both tasks" in str(error.value)


def test_heads_of_one_kind_are_called_by_their_role() -> None:
    model, mapper = detector(*EXT, "MODEL.ROI_DOUBLE_HEAD.REG_HEAD.NAME", "FastRCNNConvFCHead")
    titles = [x.title for x in sides_of(model, mapper)]
    assert titles == ["regression head", "classification head", BOTH]


def test_thresholds_that_stand_against_one_another() -> None:
    sides = sides_of(*detector(*EXT))
    with pytest.raises(ValueError, match="SCORE_THRESH_TEST is 0.12; allowed: below .* 0.1$"):
        open_book(sides, NAMES, score=0.1)
    with pytest.raises(ValueError, match="low_iou is 0.7; allowed: above 0 and at most iou, 0.5"):
        open_book(sides, NAMES, low_iou=0.7)
    with pytest.raises(ValueError, match="1 sides are given; allowed: 2, and a third"):
        open_book(sides[:1], NAMES)
    other = Side("other", *detector(*STOCK, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.6))
    with pytest.raises(ValueError, match="NMS_THRESH_TEST is 0.5, 0.6; allowed: one value"):
        open_book([sides[0], other], NAMES)


def test_a_book_of_other_sides_is_refused(record: dict) -> None:
    with pytest.raises(AssertionError, match=r"the book is of \['a', 'b'\], not of"):
        find_cases(sides_of(*detector(*EXT)), [], CaseBook(["a", "b"], class_names=NAMES))
