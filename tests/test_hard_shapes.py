"""The images of the harder shapes data and the folder they are written to."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from doublehead_d2.data import HARD_SHAPES_CLASSES, write_shapes
from doublehead_d2.data.shapes import hard
from doublehead_d2.data.shapes.builtin import register_shapes
from doublehead_d2.data.shapes.easy import coverage
from doublehead_d2.tools import make_shapes


def draw(seed: int) -> tuple:
    return hard.draw_hard_image(np.random.default_rng(seed))


@pytest.fixture(scope="module")
def many() -> list:
    """The objects of 150 images."""
    return [draw(seed)[1] for seed in range(150)]


def test_an_image_depends_on_its_generator_only() -> None:
    (first, shapes), (again, same_shapes), (other, _) = draw(0), draw(0), draw(1)
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert [shape.box for shape in shapes] == [shape.box for shape in same_shapes]
    assert not np.array_equal(first, other)


def test_objects_are_as_hard_as_they_are_said_to_be(many: list) -> None:
    objects = [shape for shapes in many for shape in shapes]
    sides = [max(s.box[2] - s.box[0], s.box[3] - s.box[1]) for s in objects]
    assert min(sides) < 14 and max(sides) > 90  # scale range
    assert {s.category for s in objects} == set(range(4))
    assert 0.1 < np.mean([s.truncated for s in objects]) < 0.5  # partial objects
    overlapping = [
        hard.box_overlap(a.box, b.box) > 0.2
        for shapes in many
        for i, a in enumerate(shapes)
        for b in shapes[i + 1 :]
    ]
    assert np.mean(overlapping) > 0.02  # occlusion
    assert min(map(len, many)) >= 1 and max(map(len, many)) <= 9


def test_boxes_are_inside_and_enclose_what_is_inside(many: list) -> None:
    for shapes in many:
        for shape in shapes:
            x0, y0, x1, y1 = shape.box
            assert 0 <= x0 < x1 <= 128 and 0 <= y0 < y1 <= 128
            touches = min(x0, y0) == 0 or max(x1, y1) == 128
            assert touches or not shape.truncated


def test_hidden_objects_stay_half_visible(many: list) -> None:
    hidden = 0
    for shapes in many:
        masks = [coverage(shape.outline, 128) > 0.5 for shape in shapes]
        for i, mask in enumerate(masks):
            seen = mask & ~np.logical_or.reduce([np.zeros_like(mask), *masks[i + 1 :]])
            assert seen.sum() >= 0.5 * mask.sum()
            hidden += seen.sum() < 0.9 * mask.sum()
    assert hidden > 20


def test_classes_have_the_outlines_they_are_named_after() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for name, ratio, vertices in (
            ("circle", (1.0, 1.0), 40),
            ("ellipse", hard.ELONGATION, 40),
            ("square", (1.0, 1.0), 4),
            ("rectangle", hard.ELONGATION, 4),
        ):
            outline = hard._OUTLINES[name](rng)
            assert len(outline) == vertices
            (_, (w, h), _) = cv2.minAreaRect((outline * 100).astype(np.float32))
            # A circle's polygon of 40 corners is not wholly round.
            assert ratio[0] - 0.02 <= max(w, h) / min(w, h) <= ratio[1] + 0.02
    assert tuple(hard._OUTLINES) == HARD_SHAPES_CLASSES


def test_files_of_both_layouts(tmp_path: Path) -> None:
    root = tmp_path / "hard"
    assert write_shapes(root, num_train=5, num_val=4, kind="shapes_hard")
    coco = COCO(str(root / "coco" / "annotations" / "instances_val.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(HARD_SHAPES_CLASSES)
    for image in coco.imgs.values():
        truth = coco.imgToAnns[image["id"]]
        tree = ET.parse(root / "voc" / "Annotations" / image["file_name"].replace("jpg", "xml"))
        objects = tree.findall("object")
        names = [coco.cats[a["category_id"]]["name"] for a in truth]
        assert [o.findtext("name") for o in objects] == names
        assert {o.findtext("truncated") for o in objects} <= {"0", "1"}
    assert not write_shapes(root, num_train=5, num_val=4, kind="shapes_hard")
    with pytest.raises(FileExistsError, match="hard True, but .* was asked for"):
        write_shapes(root, num_train=5, num_val=4)


def test_command_line_and_registration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "hard"
    words = ["--hard", "--output", str(root), "--num-train", "2", "--num-val", "3"]
    assert make_shapes.main(words) == 0
    assert f"Wrote 2 training and 3 validation images to {root}" in capsys.readouterr().out
    assert json.loads((root / "shapes.json").read_text())["hard"] is True
    register_shapes(str(root), "test_hard_shapes", "shapes_hard")
    try:
        assert len(DatasetCatalog.get("test_hard_shapes_val")) == 3
        metadata = MetadataCatalog.get("test_hard_shapes_val")
        assert metadata.thing_classes == list(HARD_SHAPES_CLASSES)
        assert "make_shapes --hard --output" in metadata.written_by
    finally:
        for name in [n for n in DatasetCatalog.list() if n.startswith("test_hard_shapes")]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_builtin_names_are_registered() -> None:
    for name in ("train", "val", "voc_trainval", "voc_test"):
        metadata = MetadataCatalog.get(f"shapes_hard_{name}")
        assert list(metadata.thing_classes) == list(HARD_SHAPES_CLASSES)
        assert metadata.written_by == "python -m doublehead_d2.tools.make_shapes --hard"
