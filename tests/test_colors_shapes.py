"""The shapes data with more classes: the same images, classes of shape and colour."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from doublehead_d2.data import COLORS_SHAPES_CLASSES, SHAPES_CLASSES, write_shapes
from doublehead_d2.data.shapes import colors
from doublehead_d2.data.shapes.easy import Shape, draw_image
from doublehead_d2.tools import make_shapes


def test_classes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of BGR colours; a shape's class is three times the shape's plus the channel."""
    outline = np.array([[0.0, 0.0], [9.0, 0.0], [9.0, 9.0]])
    drawn = (
        Shape(0, outline, (200.0, 10.0, 199.0)),
        Shape(1, outline, (0.0, 1.0, 0.5)),
        Shape(2, outline, (3.0, 4.0, 250.0), truncated=True),
    )
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(colors, "draw_image", lambda rng: (image, drawn))
    same_image, shapes = colors.draw_colors_image(np.random.default_rng(0))
    assert same_image is image
    assert [COLORS_SHAPES_CLASSES[shape.category] for shape in shapes] == [
        "blue circle",
        "green rectangle",
        "red triangle",
    ]
    for before, after in zip(drawn, shapes, strict=True):
        assert replace(after, category=before.category) == before
    monkeypatch.setattr(colors, "draw_image", lambda rng: (image, ()))
    assert colors.draw_colors_image(np.random.default_rng(0)) == (image, ())


def test_images_are_those_of_the_easy_data() -> None:
    """And what is seen in the middle of an object has the colour of its class."""
    assert len(COLORS_SHAPES_CLASSES) == 9
    seen, clear = set(), 0
    for seed in range(40):
        image, shapes = colors.draw_colors_image(np.random.default_rng(seed))
        easy_image, easy_shapes = draw_image(np.random.default_rng(seed))
        np.testing.assert_array_equal(image, easy_image)
        for shape, easy_shape in zip(shapes, easy_shapes, strict=True):
            name = COLORS_SHAPES_CLASSES[shape.category]
            seen.add(name)
            assert name.endswith(SHAPES_CLASSES[easy_shape.category])
            x, y = shape.outline.mean(axis=0).astype(int)
            pixel = image[y, x].astype(float)
            if np.diff(np.sort(pixel))[-1] > 2:
                clear += 1
                assert name.startswith(colors.CHANNELS[int(pixel.argmax())])
    assert seen == {*COLORS_SHAPES_CLASSES} and clear > 80


def test_files_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "colors"
    words = ["--colors", "--output", str(root), "--num-train", "2", "--num-val", "3"]
    assert make_shapes.main(words) == 0
    assert json.loads((root / "shapes.json").read_text())["colors"] is True
    coco = COCO(str(root / "coco" / "annotations" / "instances_val.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(COLORS_SHAPES_CLASSES)
    with pytest.raises(FileExistsError, match="colors True, but .* was asked for"):
        write_shapes(root, num_train=2, num_val=3)
    with pytest.raises(SystemExit):
        make_shapes.main(["--colors", "--hard"])
    assert "not allowed with" in capsys.readouterr().err


def test_builtin_names_are_registered() -> None:
    for name in ("train", "val", "voc_trainval", "voc_test"):
        metadata = MetadataCatalog.get(f"shapes_colors_{name}")
        assert list(metadata.thing_classes) == list(COLORS_SHAPES_CLASSES)
        assert metadata.written_by == "python -m doublehead_d2.tools.make_shapes --colors"
