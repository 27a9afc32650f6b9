"""Files, patterns, folders and pixels: which images, in which order, how far ahead."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doublehead_d2.inference.sources import ahead, expand


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with files of no content."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.jpg", "a.PNG", "a[1].jpg", "text.txt", "in/2.jpg", "in/1.webp", "in/notes.txt",
        "in/.hidden.jpg", "in/.cache/3.jpg", "in/z/4.tif", "in/y/5.bmp", "empty/text.txt",
    ):  # fmt: skip
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).touch()


IN = ["in/1.webp", "in/2.jpg", "in/y/5.bmp", "in/z/4.tif"]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["b.jpg", "a.PNG"], ["b.jpg", "a.PNG"]),  # as given
        (["in"], IN),
        (["in", "b.jpg", "in/2.jpg"], [*IN, "b.jpg", "in/2.jpg"]),
        (["*.jpg"], ["a[1].jpg", "b.jpg"]),
        (["*.???"], ["a.PNG", "a[1].jpg", "b.jpg", "text.txt"]),  # asked for by name
        (["i*"], IN),
        (["in/**/*.tif"], ["in/z/4.tif"]),
        (["a[1].jpg"], ["a[1].jpg"]),  # there is such a file
        (["*.gif", "absent.jpg", "empty"], ["*.gif", "absent.jpg", "empty"]),  # said by the reader
        (["s3://bucket/*.jpg"], ["s3://bucket/*.jpg"]),
        ("in", IN),
        (Path("b.jpg"), ["b.jpg"]),
        ((p for p in (Path("in"), "b.jpg")), [*IN, "b.jpg"]),
        ([], []),
    ],
)
def test_files_patterns_and_folders(sources: object, expected: list[str]) -> None:
    assert list(expand(sources)) == expected


def test_pixels_stay_what_they_are() -> None:
    array, image = np.zeros((2, 3, 3), np.uint8), Image.new("RGB", (3, 2))
    first, second, third = expand([array, "b.jpg", image])
    assert first is array and second == "b.jpg" and third is image
    assert next(expand(array)) is array and next(expand(image)) is image


def test_another_type_is_refused_when_it_is_its_turn() -> None:
    found = expand(["b.jpg", 5])
    assert next(found) == "b.jpg"
    with pytest.raises(TypeError, match=r"source 1 is int; allowed: a path, numpy.ndarray, PIL"):
        next(found)


def test_a_thread_is_ahead_by_no_more_than_it_may() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    threads = set()

    def square(number: int) -> int:
        threads.add(threading.current_thread())
        return number**2

    results = ahead(square, items(), 3)
    assert next(results) == 0 and taken == [0, 1, 2, 3]
    assert next(results) == 1 and taken == [0, 1, 2, 3, 4]
    assert list(results) == [4, 9, 16, 25, 36, 49, 64, 81]
    assert len(threads) == 1 and threading.main_thread() not in threads
    assert not threads.pop().is_alive()


def test_who_stops_early_ends_the_thread() -> None:
    before = threading.active_count()
    results = ahead(str, iter(range(100)), 8)
    assert next(results) == "0"
    results.close()
    assert threading.active_count() == before


def test_an_error_reaches_who_takes_the_result() -> None:
    results = ahead(lambda x: 1 // x, [1, 0], 1)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
