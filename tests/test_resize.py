"""Resize rules of other code bases: sizes by hand, pixels against OpenCV and PIL, and who obeys."""

import copy
import json
import random
from pathlib import Path

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from PIL import Image

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.data.resize import (
    RESIZE_RULES,
    Cv2ResizeTransform,
    KeepPixels,
    ResizeByRule,
    build_mapper,
    build_test_resize,
    maskrcnn_benchmark_size,
    mmdet_size,
)
from doublehead_d2.engine import Trainer
from doublehead_d2.inference import Predictor


def cfg_with(rule: str, *opts: object) -> CfgNode:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "INPUT.RESIZE_RULE", rule, *opts])
    return cfg


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    values = np.random.RandomState(0).randint(0, 256, (height, width, channels))
    return values.astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "mmdet", "authors"),
    [
        # 640 * 800 / 480 = 1066.67: rounded, truncated
        (480, 640, (800, 1067), (800, 1066)),
        (640, 480, (1067, 800), (1066, 800)),
        # The long side decides: 1333 / 1000 of 100 is 133.3. The authors scale by the rounded 133.
        (100, 1000, (133, 1333), (133, 1330)),
        # 1333 * 333 / 666 = 666.5 is rounded up by mmdetection, to the even number by the authors.
        (333, 666, (667, 1333), (666, 1332)),
        (800, 1100, (800, 1100), (800, 1100)),
        (612, 612, (800, 800), (800, 800)),
    ],
)
def test_sizes_by_hand(height: int, width: int, mmdet: tuple, authors: tuple) -> None:
    assert mmdet_size(height, width, 800, 1333) == mmdet
    assert maskrcnn_benchmark_size(height, width, 800, 1333) == authors


def test_sizes_are_those_of_the_original_code() -> None:
    sizes = json.loads((Path(__file__).parent / "golden" / "resize_sizes.json").read_text())
    assert len(sizes) == 60
    for size in sizes:
        width, height = size["image"]
        assert list(mmdet_size(height, width, 800, 1333))[::-1] == size["mmdet"]
        ours = maskrcnn_benchmark_size(height, width, 800, 1333)
        assert list(ours) == size["maskrcnn_benchmark"]


@pytest.mark.parametrize("flipped", [False, True])
def test_mmdet_resizes_with_opencv(flipped: bool) -> None:
    image = noise(48, 64)[:, :, ::-1] if flipped else noise(48, 64)
    resize = build_test_resize(cfg_with("mmdet", "INPUT.MIN_SIZE_TEST", 30))
    resized = resize.get_transform(image).apply_image(image)
    expected = cv2.resize(image.copy(), (40, 30), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resized, expected)
    assert not np.array_equal(resized, T.ResizeTransform(48, 64, 30, 40).apply_image(image))


def test_authors_resize_with_pil() -> None:
    image = noise(48, 64)
    resize = build_test_resize(cfg_with("maskrcnn_benchmark", "INPUT.MIN_SIZE_TEST", 31))
    resized = resize.get_transform(image).apply_image(image)
    expected = Image.fromarray(image).resize((41, 31), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized, np.asarray(expected))


def test_opencv_transform_of_all_else_is_detectron2s() -> None:
    ours, theirs = Cv2ResizeTransform(8, 6, 4, 3), T.ResizeTransform(8, 6, 4, 3)
    segmentation = noise(8, 6)[:, :, 0]
    np.testing.assert_array_equal(
        ours.apply_segmentation(segmentation), theirs.apply_segmentation(segmentation)
    )
    boxes = np.array([[1.0, 2, 5, 7]])
    np.testing.assert_array_equal(ours.apply_box(boxes), theirs.apply_box(boxes))
    assert ours.apply_image(noise(8, 6, 1)).shape == (4, 3, 1)
    assert ours.apply_image(segmentation).shape == (4, 3)


def test_short_edges_are_sampled_as_detectron2_does() -> None:
    random.seed(0)
    image = noise(50, 50)

    def sizes(style: str, lengths: tuple) -> set:
        resize = ResizeByRule(T.ResizeShortestEdge(lengths, 1000, style), "mmdet")
        return {resize.get_transform(image).apply_image(image).shape[0] for _ in range(60)}

    assert sizes("choice", (10, 20)) == {10, 20}
    assert sizes("range", (10, 13)) == {10, 11, 12, 13}
    assert sizes("choice", (0,)) == {50}  # 0 leaves the image as it is


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_training_and_testing_obey(rule: str, shapes: Path) -> None:
    cfg = cfg_with(rule, "INPUT.MIN_SIZE_TEST", 90, "DATALOADER.NUM_WORKERS", 0)
    record = DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]
    image = cv2.imread(record["file_name"])
    batch = next(iter(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])))
    resized = batch[0]["image"].permute(1, 2, 0).numpy()
    expected = build_test_resize(cfg).get_transform(image).apply_image(image)
    np.testing.assert_array_equal(resized, expected)
    by_opencv = cv2.resize(image, (resized.shape[1], resized.shape[0]))
    assert np.array_equal(resized, by_opencv) == (rule == "mmdet")
    train_batch = next(iter(Trainer.build_train_loader(cfg)))
    assert train_batch[0]["image"].shape[0] == 3


def test_mapper_keeps_crop_and_flip() -> None:
    def resize_of(mapper: DatasetMapper, index: int, length: int) -> type:
        augmentations = mapper.augmentations.augs
        types = [T.RandomCrop, KeepPixels, T.RandomFlip]
        assert [type(x) for x in augmentations] == types[1 - index :][:length]
        return type(augmentations[index].resize)

    cfg = cfg_with("mmdet", "INPUT.CROP.ENABLED", True)
    assert resize_of(build_mapper(cfg, is_train=True), 1, 3) is ResizeByRule
    assert resize_of(build_mapper(cfg, is_train=False), 0, 1) is ResizeByRule
    cfg = cfg_with("detectron2")
    assert resize_of(build_mapper(cfg, is_train=False), 0, 1) is T.ResizeShortestEdge


# 1333 / 20000 of 3 pixels is 0.2
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 20000)])
@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_a_side_keeps_a_pixel(rule: str, size: tuple) -> None:
    cfg = cfg_with(rule, "INPUT.MIN_SIZE_TEST", 800, "INPUT.MAX_SIZE_TEST", 1333)
    image = np.full((*size, 3), 7, np.uint8)
    transform = build_test_resize(cfg).get_transform(image)
    resized = transform.apply_image(image)
    assert min(resized.shape[:2]) == 1 and 1320 <= max(resized.shape[:2]) <= 1333
    assert (resized == 7).all()
    box = transform.apply_box(np.array([[0.0, 0, size[1], size[0]]]))
    np.testing.assert_array_equal(box, [[0, 0, resized.shape[1], resized.shape[0]]])


@pytest.mark.parametrize("size", [(2, 9000), (9000, 2)])
@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_a_thin_image_is_trained_on(rule: str, size: tuple, tmp_path: Path) -> None:
    file = str(tmp_path / "thin.png")
    cv2.imwrite(file, np.zeros((*size, 3), np.uint8))
    annotation = {"bbox": [0, 0, size[1], size[0]], "bbox_mode": 0, "category_id": 0}
    record = {"file_name": file, "height": size[0], "width": size[1], "annotations": [annotation]}
    mapper = build_mapper(cfg_with(rule), is_train=True)
    for _ in range(8):  # half of them are flipped
        inputs = mapper(copy.deepcopy(record))
        assert min(inputs["image"].shape[1:]) == 2 and len(inputs["instances"]) == 1


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_predictor_obeys(rule: str) -> None:
    cfg = cfg_with(rule, "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", 90)
    predictor, seen = Predictor(cfg), []
    predictor.model.preprocess_image = lambda batch: seen.append(batch[0]["image"]) or 1 / 0
    image = noise(120, 161)
    with pytest.raises(ZeroDivisionError):
        predictor([image])
    # 161 * 90 / 120 = 120.75
    width = 120 if rule == "maskrcnn_benchmark" else 121
    assert tuple(seen[0].shape) == (3, 90, width)
    by_opencv = torch.as_tensor(cv2.resize(image, (width, 90)).transpose(2, 0, 1))
    assert torch.equal(seen[0].byte(), by_opencv) == (rule == "mmdet")


@pytest.mark.parametrize(
    "use",
    [
        build_test_resize,
        Predictor,
        lambda cfg: build_mapper(cfg, is_train=True),
        lambda cfg: Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]),
    ],
)
def test_unknown_rule_is_refused(use: object) -> None:
    message = "RESIZE_RULE is 'mmcv'; allowed: 'detectron2', 'mmdet', 'maskrcnn_benchmark'"
    with pytest.raises(ValueError, match=message):
        use(cfg_with("mmcv"))
