"""Images as their headers say: sizes, EXIF, bits; and errors that name the image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image

from doublehead_d2.data import image_files
from doublehead_d2.data.resize import build_mapper
from doublehead_d2.engine import Trainer, check_run
from places import Data, Edit, Place, cfg_for, notes_of, refusal, replace, set_in


def oriented(orientation: int, size: tuple[int, int] = (120, 100)) -> Callable[[Path], None]:
    """Save an image that EXIF turns."""

    def edit(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(path, exif=exif)

    return edit


def sized(width: int, height: int) -> Edit:
    return lambda data: data["images"][0].update(width=width, height=height)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_size_that_only_exif_explains(place: Place, orientation: int) -> None:
    images = place.changed_images(oriented(orientation))
    message = refusal(place, place.coco("train", sized(120, 100), images), ())
    assert (
        f"'{images}/train_000001.jpg' has 120 x 100 pixels, as annotated, and its EXIF orientation "
        f"{orientation} turns it to 100 x 120 pixels, which is how detectron2 reads it"
    ) in message
    right = place.coco("train", sized(100, 120), images)
    notes = notes_of(place, right, ())
    assert "turned image): 1, the first is " in notes and "train_000001.jpg" in notes
    batch = next(iter(Trainer.build_train_loader(cfg_for(place, right, ()))))
    assert all(image["instances"] is not None for image in batch)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_images_that_exif_mirrors_are_noted(place: Place, orientation: int) -> None:
    images = place.changed_images(oriented(orientation))
    notes = notes_of(place, place.coco("train", sized(120, 100), images), ())
    assert "their EXIF orientation turns" in notes


def test_upright_images_are_not_noted(place: Place) -> None:
    images = place.changed_images(oriented(1))
    assert notes_of(place, place.coco("train", sized(120, 100), images), ()) == ""


def test_sizes_that_disagree(place: Place) -> None:
    message = refusal(place, place.coco("train", sized(99, 128)), ())
    assert "train_000001.jpg' has 128 x 128 pixels, annotated are 99 x 128 pixels" in message
    voc = place.voc(lambda d: replace(d / "Annotations/train_000001.xml", "<width>128", "<width>9"))
    assert "has 128 x 128 pixels, annotated are 9 x 128 pixels" in refusal(place, voc[0], ())


def test_images_that_training_leaves_out_are_not_looked_at(place: Place) -> None:
    def edit(data: Data) -> None:
        sized(99, 128)(data)
        data["annotations"] = [x for x in data["annotations"] if x["image_id"] != 1]

    name = place.coco("train", edit)
    assert notes_of(place, name, ()) == ""
    assert "annotated are 99 x 128" in refusal(
        place, name, (), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False
    )
    assert "annotated are 99 x 128" in refusal(place, (), name, eval_only=True)


def test_images_that_are_not_there_or_not_readable(place: Place) -> None:
    images = place.changed_images(lambda path: path.unlink())
    assert f"'{images}/train_000001.jpg' is not there" in refusal(
        place, place.coco("train", None, images), ()
    )
    (images / "train_000001.jpg").write_bytes(b"")
    assert "train_000001.jpg' cannot be read: UnidentifiedImageError" in refusal(
        place, place.coco("train", None, images), ()
    )


def test_gray_images_of_16_bits_are_read_by_the_upper_8(place: Place) -> None:
    """Pillow makes 255 of 300, detectron2's `read_image` so white of all; 300 / 256 is 1."""
    gray = np.full((128, 128), 300, np.uint16)
    images = place.changed_images(lambda path: Image.fromarray(gray).save(path.with_suffix(".png")))
    assert (read_image(str(images / "train_000001.png"), "BGR") == 255).all()
    name = place.coco("train", set_in("images", "file_name", "train_000001.png"), images)
    notes = notes_of(place, name, ())
    assert "gray images of 16 bits, of which the upper 8 are read: 1, the first is " in notes
    assert "train_000001.png'" in notes
    mapped = build_mapper(cfg_for(place, name, ()), False)(DatasetCatalog.get(name)[0])
    assert mapped["image"].shape[0] == 3 and (mapped["image"] == 1).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_32_bits_are_refused(place: Place, kind: type) -> None:
    deep = Image.fromarray(np.full((128, 128), 3, kind))
    images = place.changed_images(lambda path: deep.save(path.with_suffix(".tif")))
    name = place.coco("train", set_in("images", "file_name", "train_000001.tif"), images)
    assert "train_000001.tif' has values of 32 bits or floats" in refusal(place, name, ())


def test_images_of_16_bits_a_colour(place: Place) -> None:
    import cv2

    colours = np.full((128, 128, 3), 300, np.uint16)
    images = place.changed_images(lambda p: cv2.imwrite(str(p.with_suffix(".png")), colours))
    assert (read_image(str(images / "train_000001.png"), "BGR") == 300 // 256).all()
    name = place.coco("train", set_in("images", "file_name", "train_000001.png"), images)
    assert "16 bits a colour, of which the upper 8 are read: 1," in notes_of(place, name, ())


def test_of_many_images_some_are_looked_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST", 3)  # of 6: the first, the third, the fifth
    name = place.coco("train", lambda d: d["images"][1].update(width=99))
    assert "of 6 images, the sizes of 3 were looked at" in notes_of(place, name, ())
    name = place.coco("train", lambda d: d["images"][2].update(width=99))
    assert "train_000003.jpg' has 128 x 128" in refusal(place, name, ())
    # That they are there is looked up for all.
    images = place.changed_images(lambda path: path.with_name("train_000002.jpg").unlink())
    message = refusal(place, place.coco("train", None, images), ())
    assert f"'{images}/train_000002.jpg' is not there" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(place: Place, workers: int) -> None:
    images = place.changed_images(lambda path: path.write_bytes(path.read_bytes()[:-200]))
    name = place.coco("train", None, images)
    cfg = cfg_for(place, name, name, "DATALOADER.NUM_WORKERS", workers)
    assert check_run(cfg) == []  # it takes all of the file to see it
    expected = r"image '.*/images/train_000001.jpg': OSError: image file is truncated"
    with pytest.raises(ValueError, match=expected):
        for _, _batch in zip(range(100), Trainer.build_train_loader(cfg), strict=False):
            pass
    with pytest.raises(ValueError, match=expected):
        list(Trainer.build_test_loader(cfg, name))
