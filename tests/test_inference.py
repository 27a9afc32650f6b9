"""The batched predictor against detectron2's own, and what it refuses."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from doublehead_d2 import model_zoo
from doublehead_d2.data.resize import build_test_resize
from doublehead_d2.inference import Predictor
from doublehead_d2.inference import predictor as module

TINY = "Shapes-Detection/double_head_rcnn_tiny.yaml"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(model_zoo.get_config(TINY))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((9, 9, 3), np.uint8), TypeError, r"call it with \[image\]"),
        (["photo.jpg"], TypeError, "image 0 is str; allowed: numpy.ndarray"),
        ([np.zeros((9, 9), np.uint8)], ValueError, r"image 0 has shape \(9, 9\)"),
        ([np.zeros((9, 9, 3))], ValueError, "type float64; allowed: H x W x 3"),
        ([np.zeros((0, 9, 3), np.uint8)], ValueError, r"image 0 has shape \(0, 9, 3\)"),
    ],
)
def test_bad_images_are_refused(
    predictor: Predictor, images: object, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        predictor(images)


def test_no_images(predictor: Predictor) -> None:
    assert predictor([]) == []


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3, 20000)])
def test_an_image_of_which_a_side_would_vanish_is_detected_on(
    predictor: Predictor, size: tuple
) -> None:
    rng = np.random.default_rng(0)
    thin = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    (alone,) = predictor([thin])
    assert alone["instances"].image_size == size and len(alone["instances"])
    boxes = alone["instances"].pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()
    assert len(predictor([thin, np.zeros((60, 80, 3), np.uint8)])) == 2


def test_default_predictor_detects_on_it_with_our_resize(
    predictor: Predictor, tmp_path: Path
) -> None:
    cfg = predictor.cfg.clone()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": predictor.model.state_dict()}, cfg.MODEL.WEIGHTS)
    default, image = DefaultPredictor(cfg), np.full((1, 500, 3), 99, np.uint8)
    with pytest.raises(ValueError):  # detectron2's own, before the model is asked
        default(image)
    default.aug = build_test_resize(cfg)
    got, expected = default(image)["instances"], predictor([image])[0]["instances"]
    torch.testing.assert_close(got.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_unknown_input_format_is_refused() -> None:
    cfg = model_zoo.get_config(TINY)
    cfg.INPUT.FORMAT = "GRAY"
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'GRAY'; allowed: 'BGR', 'RGB'"):
        Predictor(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("input_format", ["BGR", "RGB"])
def test_equals_default_predictor(trained: Path, shapes: Path, input_format: str) -> None:
    cfg = model_zoo.get_config(str(trained / "config.yaml"))
    cfg.INPUT.FORMAT = input_format
    image = cv2.imread(str(next((shapes / "coco" / "val").glob("*.jpg"))))
    image = cv2.resize(image, (200, 150))
    expected = DefaultPredictor(cfg)(image)["instances"]
    predictor = Predictor(cfg)
    got = predictor([image])[0]["instances"]
    assert got.image_size == (150, 200)
    assert len(got) == len(expected) > 0
    torch.testing.assert_close(got.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(got.scores, expected.scores)
    batch = predictor([image, image])
    for result in batch:
        torch.testing.assert_close(
            result["instances"].pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=1e-5
        )
    assert predictor.metadata.thing_classes == ["circle", "rectangle", "triangle"]


def test_a_wrong_config_is_refused_before_the_model_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "build_model", lambda cfg: pytest.fail("built first"))
    cfg = model_zoo.get_config("Shapes-Detection/double_head_rcnn_tiny.yaml")
    cfg.MODEL.ROI_DOUBLE_HEAD.REG_HEAD.LAMBDA = 2.0
    with pytest.raises(ValueError, match="REG_HEAD.LAMBDA is 2.0; allowed: 0 to 1"):
        Predictor(cfg)
