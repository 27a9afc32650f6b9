"""Images of 16 bits, in training and in inference."""

from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from PIL import Image

from builders import default_cfg
from doublehead_d2.data.image_files import bits_of
from doublehead_d2.data.pixels import DeepMapper, DeepPixelsError, read_pixels, upper_bits
from doublehead_d2.inference.images import read_bgr

DEEP = np.array([[0, 255, 256, 300], [4095, 32_768, 65_279, 65_535]], np.uint16)
UPPER = [[0, 0, 1, 1], [15, 128, 254, 255]]  # divided by 256


def mapper_of(kind: type[DatasetMapper], augmentations: Any = ()) -> DatasetMapper:
    return kind(False, augmentations=list(augmentations), image_format="BGR")


def test_the_upper_bits() -> None:
    got = upper_bits(DEEP.astype(np.float32))
    assert got.dtype == np.uint8 and got.shape == (2, 4, 3)
    for channel in range(3):
        assert got[:, :, channel].tolist() == UPPER
    # TIFF files may have a sign.
    assert upper_bits(np.array([[-5.0, 70_000]])).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm"])
def test_training_and_inference_read_the_same(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    Image.fromarray(DEEP).save(path)
    for image in (read_pixels(path), read_bgr(path)):
        assert image[:, :, 1].tolist() == UPPER and image.dtype == np.uint8
    mapped = mapper_of(DeepMapper)({"file_name": path})
    assert mapped["image"].shape == (3, 2, 4) and mapped["image"][2].tolist() == UPPER
    assert (mapped["height"], mapped["width"]) == (2, 4)


def test_they_are_turned_resized_and_flipped_as_others(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = (np.arange(40)[None, :] * 256 + np.zeros((20, 1))).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png", exif=exif)
    Image.fromarray((ramp // 256).astype(np.uint8)).save(tmp_path / "eight.png", exif=exif)
    steps = [T.ResizeTransform(40, 20, 80, 40), T.HFlipTransform(40)]
    deep, eight = (
        mapper_of(DeepMapper, steps)({"file_name": str(tmp_path / f"{name}.png")})["image"]
        for name in ("deep", "eight")
    )
    assert deep.shape == (3, 80, 40) and deep.unique().numel() > 20
    assert (deep == eight).all()


def test_other_images_are_read_as_by_detectron2(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = str(tmp_path / "a.png")
    Image.fromarray(noise).save(path)
    ours, theirs = (mapper_of(kind)({"file_name": path}) for kind in (DeepMapper, DatasetMapper))
    assert (ours["image"] == theirs["image"]).all()
    np.testing.assert_array_equal(read_pixels(path), read_image(path, "BGR"))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_refused_wherever_they_are_read(kind: type, tmp_path: Path) -> None:
    path = str(tmp_path / "a.tif")
    Image.fromarray(DEEP.astype(kind)).save(path)
    for read in (read_pixels, lambda x: mapper_of(DeepMapper)({"file_name": x})):
        with pytest.raises(DeepPixelsError, match=r"more than 16 bits .* allowed: 8 or 16 bits"):
            read(path)


@pytest.mark.parametrize(
    ("mode", "bits"), [("L", 8), ("RGB", 8), ("I;16", 16), ("I", 32), ("F", 32)]
)
def test_bits(mode: str, bits: int) -> None:
    assert bits_of(Image.new(mode, (1, 1))) == bits


def test_the_mapper_is_made_from_a_config() -> None:
    cfg = default_cfg("INPUT.FORMAT", "RGB")
    assert DeepMapper(cfg, is_train=True).image_format == "RGB"
