"""SAHI's slices through the predictor: what it finds is where it is in the picture."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from sahi import AutoDetectionModel
from sahi.predict import get_prediction, get_sliced_prediction
from sahi.prediction import ObjectPrediction

from builders import default_cfg
from doublehead_d2 import model_zoo
from doublehead_d2.inference import Predictor, sahi_model
from doublehead_d2.inference.sahi_model import SahiDetectionModel

TINY = "Shapes-Detection/double_head_rcnn_tiny.yaml"
COLOURS = ((0, 0, 255), (255, 0, 0))  # BGR by class: red, blue
SCORES = (0.9, 0.6)
# Slices of 64 pixels of a picture of 64 x 160 without overlap: the last is moved into the picture.
STARTS = (0, 64, 96)


class ColourPredictor:
    """Detects the pixels of each class's colour, as one object."""

    def __init__(self, names: list[str] | None = None, masks: bool = False) -> None:
        self.cfg: CfgNode = default_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu")
        self.model = SimpleNamespace(roi_heads=SimpleNamespace(score_fusion="complementary"))
        self.metadata = Metadata(thing_classes=names) if names else Metadata()
        self.masks = masks
        self.batches: list[int] = []

    def __call__(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
        self.batches.append(len(images))
        return [{"instances": self.detect(image)} for image in images]

    def detect(self, image: np.ndarray) -> Instances:
        found = []
        for index, colour in enumerate(COLOURS):
            ys, xs = np.nonzero((image == colour).all(axis=2))
            if len(xs):
                found.append((index, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)))
        instances = Instances(image.shape[:2])
        boxes = [box for _, box in found]
        instances.pred_boxes = Boxes(torch.tensor(np.array(boxes, float).reshape(-1, 4)))
        instances.scores = torch.tensor([SCORES[index] for index, _ in found])
        instances.pred_classes = torch.tensor([index for index, _ in found], dtype=torch.int64)
        if self.masks:
            masks = [(image == COLOURS[index]).all(axis=2) for index, _ in found]
            instances.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, *image.shape[:2]))
        return instances


def picture() -> np.ndarray:
    """RGB: red at x 70 to 80 and y 10 to 20, in the middle slice; blue at 130 to 150, 30 to 40."""
    image = np.zeros((64, 160, 3), np.uint8)
    image[10:20, 70:80] = COLOURS[0][::-1]
    image[30:40, 130:150] = COLOURS[1][::-1]
    return image


def sliced(model: SahiDetectionModel, **options: Any) -> list[ObjectPrediction]:
    sides = {"slice_height": 64, "slice_width": 64}
    sides |= {"overlap_height_ratio": 0, "overlap_width_ratio": 0, "verbose": 0}
    return get_sliced_prediction(picture(), model, **sides, **options).object_prediction_list


def told(predictions: list[ObjectPrediction]) -> list[tuple]:
    return sorted(
        (x.category.id, x.category.name, round(x.score.value, 4), *x.bbox.to_xyxy())
        for x in predictions
    )


RED = (0, "red", 0.9, 70, 10, 80, 20)
BLUE = (1, "blue", 0.6, 130, 30, 150, 40)


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_slices_are_detected_in_batches_and_put_back(batch_size: int, batches: list) -> None:
    predictor = ColourPredictor(["red", "blue"])
    model = SahiDetectionModel(predictor, confidence_threshold=0.5)
    found = sliced(model, batch_size=batch_size, perform_standard_pred=False)
    assert told(found) == [RED, BLUE]
    assert predictor.batches == batches


def test_the_whole_picture_is_looked_at_too() -> None:
    predictor = ColourPredictor(["red", "blue"])
    model = SahiDetectionModel(predictor, confidence_threshold=0.5)
    assert told(sliced(model, batch_size=8)) == [RED, BLUE]
    assert predictor.batches == [3, 1]
    alone = get_prediction(picture(), model).object_prediction_list
    assert told(alone) == [RED, BLUE]


def test_scores_that_pictures_do_not_show_are_left_out() -> None:
    # Complementary fusion makes 0.75 of two heads that both say 0.5.
    model = SahiDetectionModel(ColourPredictor(["red", "blue"]))
    assert model.confidence_threshold == 0.75
    assert told(sliced(model)) == [RED]


def test_classes_without_names_go_by_their_numbers() -> None:
    model = SahiDetectionModel(ColourPredictor(), confidence_threshold=0.5)
    assert model.category_mapping == {"0": "0", "1": "1"} and model.num_categories == 2
    assert [name for _, name, *_ in told(sliced(model))] == ["0", "1"]


def test_masks_are_put_back() -> None:
    model = SahiDetectionModel(ColourPredictor(["red", "blue"], masks=True))
    (red,) = sliced(model, perform_standard_pred=False)
    mask = red.mask.bool_mask
    assert mask.shape == (64, 160) and mask[12:18, 72:78].all()
    assert not mask[:, :69].any() and not mask[:, 82:].any()


def test_nothing_is_found() -> None:
    model = SahiDetectionModel(ColourPredictor(["red", "blue"]), confidence_threshold=0.95)
    assert sliced(model, batch_size=2) == []
    black = np.zeros((64, 64, 3), np.uint8)
    model = SahiDetectionModel(ColourPredictor(["red", "blue"]), confidence_threshold=0.0)
    assert get_prediction(black, model).object_prediction_list == []


def test_original_predictions_are_those_of_all_images() -> None:
    model = SahiDetectionModel(ColourPredictor(["red", "blue"]), confidence_threshold=0.5)
    model.perform_batch_inference([picture(), picture()[:, :64]])
    model.convert_original_predictions([[0, 0], [0, 0]], [[64, 160], [64, 160]])
    assert [len(x["instances"]) for x in model.original_predictions] == [2, 0]
    assert [len(x) for x in model.object_prediction_list_per_image] == [2, 0]


def test_a_model_detects_as_by_sahis_own_class(tmp_path: Path) -> None:
    cfg = model_zoo.get_config(TINY)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = ""
    model = Predictor(cfg).model
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    theirs = AutoDetectionModel.from_pretrained(
        model_type="detectron2",
        config_path=str(tmp_path / "config.yaml"),
        model_path=cfg.MODEL.WEIGHTS,
        confidence_threshold=0.2,
        device="cpu",
    )
    ours = SahiDetectionModel(Predictor(cfg), confidence_threshold=0.2)
    image = np.random.default_rng(0).integers(0, 256, (96, 150, 3), dtype=np.uint8)
    options = {"slice_height": 64, "slice_width": 64, "verbose": 0, "postprocess_type": "NMS"}
    expected = get_sliced_prediction(image, theirs, **options).object_prediction_list
    found = get_sliced_prediction(image, ours, **options, batch_size=4).object_prediction_list
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert one.category.id == other.category.id
        assert one.score.value == pytest.approx(other.score.value, abs=1e-4)
        assert one.bbox.to_xyxy() == pytest.approx(other.bbox.to_xyxy(), abs=1e-2)


def test_without_sahi_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sahi.models.detectron2", None)
    monkeypatch.delitem(sys.modules, sahi_model.__name__)
    with pytest.raises(ImportError, match="sliced inference needs SAHI .*: pip install sahi"):
        importlib.import_module(sahi_model.__name__)
