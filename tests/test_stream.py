"""Streams of images through the predictor: batches, order, errors, options."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances
from PIL import Image

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.inference import Predictor


class FakeModel(torch.nn.Module):
    """Detects in each image, of each class, a box as large as the image and its mean as score."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.size_divisibility = 32
        self.batches: list[list[tuple[int, ...]]] = []  # sizes of the images by call
        self.dtypes: list[torch.dtype] = []

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not torch.is_grad_enabled()
        self.batches.append([tuple(x["image"].shape[1:]) for x in inputs])
        self.dtypes.append(torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype)
        return [{"instances": self._detect(x)} for x in inputs]

    def _detect(self, given: dict[str, Any]) -> Instances:
        found = Instances((given["height"], given["width"]))
        corner = torch.tensor([[0.0, 0, given["width"], given["height"]]])
        found.pred_boxes = Boxes(corner.repeat(3, 1))
        found.scores = (given["image"].mean() / 255 * torch.tensor([1, 0.5, 0.1])).to(
            self.dtypes[-1]
        )
        found.pred_classes = torch.arange(3)
        return found


@pytest.fixture(scope="module")
def real() -> Predictor:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.DATASETS.TEST = ()
    cfg.DATASETS.CLASS_NAMES = ["circle", "rectangle", "triangle"]
    return Predictor(cfg)


@pytest.fixture
def predictor(real: Predictor, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.setattr(real, "model", FakeModel())
    return real


def image(height: int, width: int, value: int = 255) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


# The longer side becomes 128: 128 x 64, 64 x 128, 128 x 60, 60 x 128. What is 60 is padded to 64, a
# multiple of 32.
TALL, WIDE, NEARLY_TALL, NEARLY_WIDE = (40, 20), (20, 40), (128, 60), (60, 128)


def test_only_images_padded_to_one_size_share_a_batch(predictor: Predictor) -> None:
    images = [image(*size) for size in (TALL, WIDE, NEARLY_TALL, NEARLY_WIDE)]
    outputs = predictor(images)
    assert predictor.model.batches == [[(128, 64), (128, 60)], [(64, 128), (60, 128)]]
    assert [x["instances"].image_size for x in outputs] == [TALL, WIDE, NEARLY_TALL, NEARLY_WIDE]
    results = list(predictor.stream(images, batch_size=2))
    assert predictor.model.batches[2:] == predictor.model.batches[:2]
    assert [(r.height, r.width) for r in results] == [TALL, WIDE, NEARLY_TALL, NEARLY_WIDE]
    assert [tuple(r.instances.pred_boxes.tensor[0].tolist()) for r in results] == [
        (0, 0, width, height) for height, width in (TALL, WIDE, NEARLY_TALL, NEARLY_WIDE)
    ]


def test_a_model_that_pads_to_more_or_not_at_all(predictor: Predictor) -> None:
    images = [image(*TALL), image(*NEARLY_TALL)]
    predictor.model.backbone.size_divisibility = 0
    predictor(images)
    assert predictor.model.batches == [[(128, 64)], [(128, 60)]]
    predictor.model.backbone.padding_constraints = {"size_divisibility": 128, "square_size": 0}
    predictor([image(*TALL), image(*NEARLY_TALL)])
    assert predictor.model.batches[2:] == [[(128, 64), (128, 60)]]


def test_order_errors_and_kinds_of_sources(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "empty").mkdir()
    for name, value in (("1.png", 200), ("2.png", 100)):
        cv2.imwrite(str(folder / name), image(*WIDE, value))
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    pixels = Image.fromarray(np.array([[[255, 0, 0]] * 40] * 20, np.uint8))
    sources = [image(*TALL, 50), broken, folder, pixels, image(3, 3)[:, :, 0], tmp_path / "empty"]
    results = list(predictor.stream(sources, batch_size=2))
    assert [r.error for r in results] == [
        None,
        f"{broken}: not an image, or of a format that Pillow does not read",
        None,
        None,
        None,
        "the array has shape (3, 3) and type uint8; allowed: H x W x 3 (BGR), uint8",
        f"{tmp_path / 'empty'}: a folder without images",
    ]
    scores = [r.instances.scores[0].item() * 255 if len(r) else None for r in results]
    # Red has the mean 85.
    assert [x and round(x) for x in scores] == [50, None, 200, 100, 85, None, None]
    assert [r.source for r in results[2:4]] == [str(folder / "1.png"), str(folder / "2.png")]
    assert results[4].source is pixels and results[0].class_names[2] == "triangle"


def test_memory_is_bounded_by_a_window(predictor: Predictor) -> None:
    drawn = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal drawn
        while True:
            drawn += 1
            # An image of a rare size, then many of another
            yield image(*(WIDE if drawn == 1 else TALL), 40)

    results = predictor.stream(endless(), batch_size=2)
    assert next(results).width == WIDE[1]
    # Four batches may wait, a thread is one batch and the next image ahead.
    assert drawn <= 4 * 2 + 2 + 1
    results.close()


def test_thresholds_and_classes(predictor: Predictor) -> None:
    # Scores are 1, 0.5 and 0.1.
    (found,) = predictor.stream(image(*TALL))
    assert found.instances.pred_classes.tolist() == [0, 1, 2]
    (found,) = predictor.stream(image(*TALL), score_threshold=0.5)
    assert found.instances.pred_classes.tolist() == [0, 1]
    (found,) = predictor.stream(image(*TALL), classes=["triangle", 1])
    assert found.instances.pred_classes.tolist() == [1, 2]
    (found,) = predictor.stream(image(*TALL), classes="circle")
    assert [row["class"] for row in found.rows()] == ["circle"]
    (found,) = predictor.stream(image(*TALL), classes=[])
    assert len(found) == 0


def test_precision_is_that_of_the_model_not_of_the_results(predictor: Predictor) -> None:
    (found,) = predictor.stream(image(*TALL), precision="bfloat16")
    assert predictor.model.dtypes == [torch.bfloat16]
    assert found.instances.scores.dtype == torch.float32
    list(predictor.stream(image(*TALL)))
    assert predictor.model.dtypes[1:] == [torch.float32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; allowed: a whole number, 1 or more"),
        ({"score_threshold": 50}, "score_threshold is 50; allowed: 0 to 1"),
        ({"precision": "float8"}, "precision is 'float8'; allowed: 'bfloat16', 'float16'"),
        ({"classes": ["circel"]}, r"classes has 'circel'; allowed: names such as \['circle'\]"),
        ({"classes": [3]}, "classes is 3; allowed: a whole number, 0 to 2"),
    ],
)
def test_options_are_refused_before_anything_is_read(
    predictor: Predictor, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.stream(image(*TALL), **options)


def test_class_names_that_only_the_config_has(real: Predictor) -> None:
    assert real.metadata.thing_classes == ["circle", "rectangle", "triangle"]
    assert real.display_threshold == 0.75  # 1 - (1 - 0.5)^2


@pytest.mark.slow
def test_images_are_detected_in_as_alone(trained: Path, shapes: Path) -> None:
    cfg = model_zoo.get_config(str(trained / "config.yaml"))
    rng = np.random.default_rng(0)
    files = sorted((shapes / "coco" / "val").glob("*.jpg"))[:24]
    images = []
    for file in files:
        height, width = (int(x) for x in rng.integers(60, 260, 2))
        images.append(cv2.resize(cv2.imread(str(file)), (width, height)))
    default, predictor = DefaultPredictor(cfg), Predictor(cfg)
    expected = [default(image)["instances"] for image in images]
    assert sum(map(len, expected)) > 24
    streamed = [r.instances for r in predictor.stream(images, batch_size=4)]
    called = [x["instances"] for x in predictor(images)]
    for alone, *others in zip(expected, streamed, called, strict=True):
        for got in others:
            assert torch.equal(got.pred_classes, alone.pred_classes)
            torch.testing.assert_close(
                got.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-3, rtol=0
            )
            torch.testing.assert_close(got.scores, alone.scores, atol=1e-5, rtol=0)
