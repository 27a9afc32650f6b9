"""Pictures of what each head says alone and both together, and of ground truth beside them."""

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from doublehead_d2.inference import pictures
from doublehead_d2.inference.pictures import Painter, heads_alone

GRAY = np.full((384, 384, 3), 128, dtype=np.uint8)
EXT = {
    "reg_head": ("reg_head", "reg_head"),
    "cls_head": ("cls_head", "cls_head"),
    "unfused": ("cls_head", "reg_head"),
    "fused": ("complementary", "reg_head"),
}


class Heads(nn.Module):
    """RoI heads that say how they can be scored."""

    def __init__(self, modes: dict, scoring: tuple) -> None:
        super().__init__()
        self.modes: dict = {}
        self.scoring = scoring
        self.score_fusion = scoring[0]
        self.scoring_modes = lambda: dict(modes)


class FakePredictor:
    metadata = Metadata(thing_classes=["circle", "rectangle"])
    display_threshold = 0.75

    def __init__(self, modes: dict = EXT, scoring: tuple = EXT["fused"]) -> None:
        self.model = nn.Module()
        self.model.roi_heads = Heads(modes, scoring)


def detections(*rows: tuple) -> Instances:
    """Of rows (mode, score, left edge), squares of 60 pixels, 100 from above."""
    found = Instances((384, 384))
    found.pred_boxes = Boxes(torch.tensor([[x, 100.0, x + 60, 160] for _, _, x in rows]))
    found.scores = torch.tensor([score for _, score, _ in rows])
    found.pred_classes = torch.zeros(len(rows), dtype=torch.int64)
    found.modes = torch.tensor([mode for mode, _, _ in rows])
    return found


def drawn(picture: np.ndarray, columns: int) -> list[list[int]]:
    """For each column, which left edges (100, 200, 300) have a box."""
    assert picture.shape == (384 + 28, columns * 384 + (columns - 1) * 6, 3)
    starts = [index * (384 + 6) for index in range(columns)]
    rows = picture[28 + 120 : 28 + 140]  # within the boxes, below their labels
    return [
        [x for x in (100, 200, 300) if (rows[:, s + x - 3 : s + x + 4] != 128).any()]
        for s in starts
    ]


def test_each_head_has_its_column_and_its_threshold() -> None:
    painter = Painter(FakePredictor(), heads=True)
    found = detections((0, 0.6, 100), (1, 0.6, 200), (2, 0.6, 300), (2, 0.8, 100), (0, 0.4, 300))
    assert drawn(painter.paint(GRAY, found), 3) == [[100], [200], [100]]
    given = Painter(FakePredictor(), heads=True, score_threshold=0.3)
    assert drawn(given.paint(GRAY, found), 3) == [[100, 300], [200], [100, 300]]


def test_ground_truth_stands_on_the_left() -> None:
    painter = Painter(FakePredictor(), heads=True)
    annotation = {"bbox": [200, 100, 260, 160], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    # An outline elsewhere, which is not drawn beside boxes
    record = {"annotations": [{**annotation, "segmentation": [[300, 100, 330, 150, 300, 150]]}]}
    picture = painter.paint(GRAY, detections((2, 0.9, 100)), record)
    assert drawn(picture, 4) == [[200], [], [], [100]]
    assert "segmentation" in record["annotations"][0]
    alone = Painter(FakePredictor())
    instances = detections((0, 0.9, 100))
    instances.remove("modes")
    assert drawn(alone.paint(GRAY, instances, record), 2) == [[200], [100]]
    assert alone.paint(GRAY, instances).shape == (384, 384, 3)


def test_what_is_written_down_is_what_the_model_is_configured_to() -> None:
    found = detections((0, 0.9, 100), (2, 0.8, 200), (2, 0.3, 300))
    painter = Painter(FakePredictor(), heads=True)
    configured = painter.configured(found)
    assert configured.scores.tolist() == pytest.approx([0.8, 0.3])
    assert not configured.has("modes")
    shown = painter.select(configured)
    assert len(shown.instances) == 1 and shown.low_scores == 1
    # A model whose regression head is all that it is scored by
    alone = Painter(FakePredictor(scoring=EXT["reg_head"]), heads=True)
    assert alone.configured(found).scores.tolist() == pytest.approx([0.9])


def test_the_model_scores_in_these_ways_only_while_it_is_drawn() -> None:
    predictor = FakePredictor()
    heads = predictor.model.roi_heads
    with Painter(predictor, heads=True).scoring():
        assert list(heads.modes.values()) == [EXT["reg_head"], EXT["cls_head"], EXT["fused"]]
    assert heads.modes == {}
    with Painter(predictor).scoring():
        assert heads.modes == {}


def test_which_ways_there_are() -> None:
    both = pictures.BOTH
    assert list(heads_alone(FakePredictor().model)) == [
        "regression head alone",
        "classification head alone",
        both,
    ]
    unfused = {"cls_head": EXT["cls_head"], "unfused": EXT["unfused"]}
    found = heads_alone(FakePredictor(unfused, EXT["unfused"]).model)
    assert found == {"classification head alone": EXT["cls_head"], both: EXT["unfused"]}
    found = heads_alone(FakePredictor(EXT, EXT["cls_head"]).model)
    assert found[both] == EXT["fused"]
    found = heads_alone(FakePredictor({"reg_head": EXT["reg_head"]}, EXT["reg_head"]).model)
    assert found == {"regression head alone": EXT["reg_head"]}


def test_models_without_such_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="--heads: each head of this model learned one task"):
        Painter(FakePredictor({"unfused": EXT["unfused"]}, EXT["unfused"]), heads=True)
    predictor = FakePredictor()
    predictor.model.roi_heads = nn.Identity()
    message = (
        "--heads: MODEL.ROI_HEADS.NAME is 'Identity', whose heads do not detect alone; allowed"
    )
    with pytest.raises(ValueError, match=message):
        Painter(predictor, heads=True)
