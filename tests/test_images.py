"""Image files: read as training reads them, or refused by name with what to do."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from doublehead_d2.inference.images import bgr_of, read_bgr

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_pixels_are_those_of_training(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(NOISE).save(tmp_path / "turned.jpg", exif=exif)
    got = read_bgr(str(tmp_path / "turned.jpg"))
    assert got.shape == (80, 60, 3) and got.dtype == np.uint8
    np.testing.assert_array_equal(got, read_image(str(tmp_path / "turned.jpg"), format="BGR"))


def test_channels_are_in_the_order_blue_green_red(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_bgr(str(tmp_path / "a.png")), NOISE[:, :, ::-1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_eight_bits_are_read(mode: str, tmp_path: Path) -> None:
    Image.fromarray(NOISE).convert(mode).save(tmp_path / "a.tiff")
    assert read_bgr(str(tmp_path / "a.tiff")).shape == (60, 80, 3)


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture
def odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are no images, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Image.fromarray(NOISE).save("whole.jpg")
    data = Path("whole.jpg").read_bytes()
    Path("half.jpg").write_bytes(data[: len(data) // 2])
    Path("half.png").write_bytes(png(80, 60))
    Path("huge.png").write_bytes(png(30_000, 30_000))
    Path("empty.jpg").touch()
    Path("text.jpg").write_text("not an image")
    Path("clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    Image.fromarray(np.full((4, 4), 300, np.int32)).save("deep.tif")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "a folder; give its images: folder/*.jpg"),
        ("*.jpg", "a pattern of 4 files in quotes; give it without"),
        ("*.bmp", "a pattern that no file matches"),
        ("absent.jpg", "there is no such file"),
        ("clip.mp4", "a video; make images of its frames first"),
        ("half.jpg", "damaged: image file is truncated"),
        ("half.png", "damaged: "),
        ("huge.png", "too large: Image size (900000000 pixels)"),
        ("empty.jpg", "the file is empty"),
        ("text.jpg", "not an image, or of a format that Pillow does not read"),
        ("whole.jpg/a.jpg", "cannot be read: Not a directory"),
        ("deep.tif", "its pixels have more than 16 bits (mode 'I'): 32 bits or floats, of which"),
    ],
)
def test_what_is_no_image_is_named_with_the_reason(
    odd_files: None, name: str, reason: str, capfd: pytest.CaptureFixture
) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError) as error:
        warnings.simplefilter("error")
        read_bgr(name)
    assert str(error.value).startswith(f"{name}: {reason}")
    assert capfd.readouterr() == ("", "")  # decoders say nothing of their own


def test_a_decoder_that_fails_with_anything_is_a_damaged_file(
    odd_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match="whole.jpg: damaged: unpack requires a buffer"):
        read_bgr("whole.jpg")


def test_a_large_image_is_read_without_a_word(
    odd_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # Pillow warns above it, up to twice
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_bgr("whole.jpg").shape == (60, 80, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_an_image_of_pillow_is_what_its_file_is(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(NOISE)
    image = image.convert("L").convert("I").point(lambda x: x * 200) if mode == "I;16" else image
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert(mode).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        got = bgr_of(opened)
    np.testing.assert_array_equal(got, read_bgr(str(tmp_path / "a.png")))
    assert got.shape == (80, 60, 3) and got.flags["C_CONTIGUOUS"]


def test_an_image_of_pillow_that_cannot_be_read_is_named(odd_files: None) -> None:
    with Image.open("half.jpg") as opened, pytest.raises(ValueError, match="half.jpg: damaged"):
        bgr_of(opened)
    deep = Image.new("F", (4, 4))
    with pytest.raises(ValueError, match="the image of Pillow: its pixels have more than 16 bits"):
        bgr_of(deep)
