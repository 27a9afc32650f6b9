"""The images of the built-in shapes data set and the folder they are written to."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from doublehead_d2.data import write_shapes
from doublehead_d2.data.shapes import easy, layouts
from doublehead_d2.data.shapes.easy import SHAPES_CLASSES, Shape
from doublehead_d2.tools import make_shapes

COUNTS = {"num_train": 6, "num_val": 8}
BLACK = (0.0, 0.0, 0.0)


def files(root: Path) -> dict[str, bytes]:
    """All files below a folder with their content."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    assert write_shapes(root, **COUNTS)
    return root


# -- images ------------------------------------------------------------------------------------


def test_an_image_depends_on_its_generator_only() -> None:
    first, first_shapes = easy.draw_image(np.random.default_rng((0, 1, 2)))
    again, again_shapes = easy.draw_image(np.random.default_rng((0, 1, 2)))
    other, _ = easy.draw_image(np.random.default_rng((0, 1, 3)))
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert [shape.box for shape in first_shapes] == [shape.box for shape in again_shapes]
    assert not np.array_equal(first, other)


def test_ground_truth_is_what_is_seen() -> None:
    """Leaving out an object changes the pixels of its box, to within a pixel, and no others."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        background, color = easy.draw_background(rng, 128)
        objects = easy.sample_shapes(rng, color, 128)
        image = easy.render(background, objects)
        np.testing.assert_array_equal(image, easy.draw_image(np.random.default_rng(seed))[0])
        for i, shape in enumerate(objects):
            without = easy.render(background, objects[:i] + objects[i + 1 :])
            change = np.abs(image.astype(float) - without).max(axis=2)
            contrast = np.abs(background - np.asarray(shape.color)).max(axis=2)
            # A pixel of which less than a tenth is covered belongs to the object in name only.
            rows, columns = np.nonzero(change > 0.1 * contrast)
            seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(shape.box, seen, rtol=0, atol=1)
            covered = (change / contrast).sum()
            assert covered == pytest.approx(shape.area, rel=0.08), (seed, i)


def test_objects_are_inside_apart_and_of_the_stated_size() -> None:
    numbers, categories = set(), set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        _, color = easy.draw_background(rng, 128)
        objects = easy.sample_shapes(rng, color, 128)
        numbers.add(len(objects))
        # None hides another, not even an edge.
        covered = [easy.coverage(shape.outline, 128) > 0 for shape in objects]
        assert np.sum(covered, axis=0).max() == 1
        for i, shape in enumerate(objects):
            x0, y0, x1, y1 = shape.box
            assert x0 >= 0 and y0 >= 0 and x1 <= 128 and y1 <= 128
            assert 15.9 <= max(x1 - x0, y1 - y0) <= 64.1
            assert min(x1 - x0, y1 - y0) >= 8
            assert np.linalg.norm(np.asarray(shape.color) - color) >= 90
            assert all(easy.box_overlap(shape.box, o.box) <= 0.1 for o in objects[:i])
            categories.add(shape.category)
    assert numbers == {1, 2, 3, 4, 5}
    assert categories == {0, 1, 2}


def test_classes_have_the_outlines_they_are_named_after() -> None:
    vertices = {0: 32, 1: 4, 2: 3}
    for seed in range(20):
        for shape in easy.draw_image(np.random.default_rng(seed))[1]:
            assert len(shape.outline) == vertices[shape.category]
            x0, y0, x1, y1 = shape.box
            if SHAPES_CLASSES[shape.category] == "circle":
                radii = np.linalg.norm(shape.outline - [(x0 + x1) / 2, (y0 + y1) / 2], axis=1)
                np.testing.assert_allclose(radii, (x1 - x0) / 2, atol=0.02)
            elif SHAPES_CLASSES[shape.category] == "rectangle":
                sides = np.diff(shape.outline, axis=0)
                cosine = sides[0] @ sides[1] / np.prod(np.linalg.norm(sides[:2], axis=1))
                assert abs(cosine) < 0.01


def test_shape_by_hand() -> None:
    # A right triangle with legs 4 and 3, hence area 6.
    shape = Shape(2, np.array([[1.0, 2.0], [5.0, 2.0], [1.0, 5.0]]), BLACK)
    assert shape.box == (1.0, 2.0, 5.0, 5.0)
    assert shape.area == 6.0
    # The intersection is 1 x 2, the smaller box 2 x 2.
    assert easy.box_overlap((0, 0, 4, 4), (3, 1, 5, 3)) == 0.5
    assert easy.box_overlap((0, 0, 2, 2), (3, 0, 5, 2)) == 0.0
    assert easy.box_overlap((0, 0, 8, 8), (1, 1, 2, 2)) == 1.0


def test_coverage_by_hand() -> None:
    # x from 2 to 4.5, y from 3 to 6: columns 2 and 3 whole, column 4 half.
    outline = np.array([[2.0, 3.0], [4.5, 3.0], [4.5, 6.0], [2.0, 6.0]])
    expected = np.zeros((8, 8))
    expected[3:6, 2:4] = 1.0
    expected[3:6, 4] = 0.5
    # Half a fine pixel of rounding, and half that the boundary itself is filled.
    np.testing.assert_allclose(easy.coverage(outline, 8), expected, rtol=0, atol=0.13)


# -- files -------------------------------------------------------------------------------------


def test_same_parameters_give_the_same_files(data: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "again", **COUNTS)
    assert files(tmp_path / "again") == files(data)


def test_an_image_does_not_depend_on_how_many_there_are(data: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "more", num_train=9, num_val=8)
    write_shapes(tmp_path / "other", num_train=6, num_val=8, seed=1)
    ours, more, other = files(data), files(tmp_path / "more"), files(tmp_path / "other")
    images = [name for name in ours if name.endswith(".jpg")]
    assert len(images) == 2 * (6 + 8)
    assert all(ours[name] == more[name] for name in images)
    assert all(ours[name] != other[name] for name in images)
    assert len({ours[name] for name in images}) == 14  # once per layout, never the same again


def test_coco_file_is_valid(data: Path) -> None:
    for split, count in (("train", 6), ("val", 8)):
        coco = COCO(str(data / f"coco/annotations/instances_{split}.json"))
        assert coco.dataset["info"]  # some releases of pycocotools cannot do without
        categories = coco.loadCats(sorted(coco.getCatIds()))
        assert [c["name"] for c in categories] == list(SHAPES_CLASSES)
        assert [c["id"] for c in categories] == [1, 2, 3]
        assert sorted(coco.imgs) == list(range(1, count + 1))
        assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
        for image in coco.imgs.values():
            pixels = cv2.imread(str(data / "coco" / split / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3) == (128, 128, 3)
        for annotation in coco.anns.values():
            (polygon,) = annotation["segmentation"]
            x, y = polygon[0::2], polygon[1::2]
            box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
            np.testing.assert_allclose(annotation["bbox"], box, atol=1e-6)
            mask = coco.annToMask(annotation)
            assert mask.sum() == pytest.approx(annotation["area"], rel=0.08)
            assert annotation["iscrowd"] == 0


def test_voc_boxes_by_hand() -> None:
    # Pixels 10 to 19 (0-based) are 11 to 20 (1-based); 29.6 rounds to 30.
    outline = np.array([[10.2, 0.0], [20.4, 0.0], [20.4, 29.6]])
    picture = layouts.Picture(1, "train_000001", b"", 128, 100, (Shape(2, outline, BLACK),))
    tree = layouts.voc_tree(picture)
    texts = {e.tag: e.text for e in tree.iter() if e.text and e.text.strip()}
    expected = {"xmin": "11", "ymin": "1", "xmax": "20", "ymax": "30", "name": "triangle"}
    expected |= {"width": "100", "height": "128", "depth": "3", "segmented": "0"}
    expected |= {"folder": "voc", "filename": "train_000001.jpg"}
    assert texts == expected | {"pose": "Unspecified", "truncated": "0", "difficult": "0"}


# -- writing -----------------------------------------------------------------------------------


def _draw_by(monkeypatch: pytest.MonkeyPatch, draw: Callable) -> None:
    monkeypatch.setitem(layouts.KINDS, "shapes", replace(layouts.KINDS["shapes"], draw=draw))


def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shapes"
    draw = easy.draw_image
    calls = 0

    def draw_some(rng: np.random.Generator) -> tuple[np.ndarray, tuple[Shape, ...]]:
        nonlocal calls
        calls += 1
        assert not root.exists()  # so that a killed process leaves no such folder either
        if calls == 10:
            raise KeyboardInterrupt
        return draw(rng)

    _draw_by(monkeypatch, draw_some)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(root, **COUNTS)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert write_shapes(root, **COUNTS)


def test_second_call_skips(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "shapes"
    assert write_shapes(root, num_train=2, num_val=2) is True
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_shapes(root, num_train=2, num_val=2) is False
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    assert [path.name for path in root.parent.iterdir()] == ["shapes"]


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    root.mkdir()  # an empty folder is as good as none
    write_shapes(root, num_train=2, num_val=2)
    before = files(root)
    with pytest.raises(FileExistsError, match=r"num_train 2,.*seed 0, but.* num_train 3,.*force"):
        write_shapes(root, num_train=3, num_val=2)
    with pytest.raises(FileExistsError, match=r"seed 0, but .*seed 5 was asked for"):
        write_shapes(root, num_train=2, num_val=2, seed=5)
    assert files(root) == before
    assert write_shapes(root, num_train=3, num_val=2, force=True)
    assert json.loads((root / "shapes.json").read_text())["num_train"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_a_deleted_file_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    write_shapes(root, num_train=2, num_val=2)
    (root / "voc/Annotations/val_000002.xml").unlink()
    with pytest.raises(FileExistsError, match=r"val_000002\.xml is missing"):
        write_shapes(root, num_train=2, num_val=2)


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="not a shapes data set"):
            write_shapes(tmp_path, num_train=2, num_val=2, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_two_writers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "shapes"
    draw = easy.draw_image

    def draw_late(rng: np.random.Generator) -> tuple[np.ndarray, tuple[Shape, ...]]:
        monkeypatch.undo()
        write_shapes(root, num_train=2, num_val=2)  # the other process, which is faster
        return draw(rng)

    _draw_by(monkeypatch, draw_late)
    assert write_shapes(root, num_train=2, num_val=2) is False
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_bad_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2, got 1 and 5"):
        write_shapes(tmp_path / "shapes", num_train=1, num_val=5)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        write_shapes(tmp_path / "shapes", seed=-1)
    with pytest.raises(ValueError, match="one of shapes, shapes_hard.*, got 'harder'"):
        write_shapes(tmp_path / "shapes", kind="harder")
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "shapes"
    arguments = ["--output", str(root), "--num-train", "2", "--num-val", "3", "--seed", "4"]
    assert make_shapes.main(arguments) == 0
    assert capsys.readouterr().out == f"Wrote 2 training and 3 validation images to {root}.\n"
    assert make_shapes.main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert make_shapes.main([*arguments, "--num-val", "2"]) == 1
    assert "--force" in capsys.readouterr().err
    assert make_shapes.main([*arguments, "--num-val", "2", "--force"]) == 0
    parameters = json.loads((root / "shapes.json").read_text())
    assert parameters == {"format": 1, "num_train": 2, "num_val": 2, "seed": 4}
