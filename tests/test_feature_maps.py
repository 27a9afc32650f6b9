"""Pictures of the maps that heads pool their RoIs from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.tools import feature_maps
from doublehead_d2.visualize import draw_map

TINY = "Shapes-Detection/grcn_tiny.yaml"


def tiny(tmp_path: Path, name: str = TINY) -> str:
    """Config file of a random model whose weights lie beside it."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(tmp_path / "model.pth")
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 64
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return str(tmp_path / "config.yaml")


def picture_of(path: Path, size: tuple[int, int] = (64, 64)) -> str:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        (TINY, {"box_head: res5, stride 32": (2, 2), "reg_head: res5_reg, stride 16": (4, 4)}),
        ("Shapes-Detection/faster_rcnn_c4_tiny.yaml", {"box_head: res4, stride 16": (4, 4)}),
        (
            TINY_EXT,
            {
                f"{head}: p{i}, stride {2**i}": (64 // 2**i,) * 2
                for head in ("box_head", "reg_head")
                for i in range(2, 6)
            },
        ),
    ],
)
def test_maps_of_the_heads(name: str, maps: dict, tmp_path: Path) -> None:
    model = build_model(model_zoo.get_config(tiny(tmp_path, name))).eval()
    image = torch.rand(3, 64, 64) * 255
    found = feature_maps.head_maps(model, image)
    assert {key: activity.shape for key, (activity, _) in found.items()} == maps
    assert all(key.endswith(f"stride {stride}") for key, (_, stride) in found.items())
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
    key = next(iter(found))
    first = features[key.split(": ")[1].split(",")[0]][0]
    expected = first.square().sum(dim=0).sqrt()  # by hand, the norm over channels
    torch.testing.assert_close(torch.as_tensor(found[key][0]), expected)


def test_cells_are_drawn_where_they_lie() -> None:
    """A map of 2 x 3 cells of 200 pixels whose middle lower one is active."""
    activity = np.array([[0.0, 0, 0], [0, 2, 0]])
    image = np.zeros((400, 500, 3), np.uint8)  # the last column is cut
    picture = draw_map(image, activity, 200)
    assert picture.shape == image.shape
    dark, bright = picture[100, 300].astype(int), picture[300, 300].astype(int)
    assert dark.max() < 10 and bright.min() > 80
    assert np.abs(picture[300, 450].astype(int) - dark).max() <= 2
    # Pixels beyond the last cell look like it.
    longer = draw_map(np.zeros((450, 600, 3), np.uint8), activity, 200)
    assert np.abs(longer[440, 300].astype(int) - bright).max() <= 2


def test_a_map_of_one_value_can_be_drawn() -> None:
    assert draw_map(np.zeros((400, 400, 3), np.uint8), np.ones((1, 1)), 400).shape == (400, 400, 3)


def test_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    words = ["--config-file", tiny(tmp_path), "--output", str(output), "--input", "a.jpg"]
    assert feature_maps.main([*words, picture_of(tmp_path / "b.png")]) == 1
    said = capsys.readouterr()
    assert "not readable as an image: a.jpg: there is no such file" in said.err
    (path,) = output.iterdir()
    assert said.out == f"{path}\n" and path.name == "002_b.png"
    # Three pictures of 384 pixels with gaps of 6, and a bar with titles
    assert Image.open(path).size == (3 * 384 + 2 * 6, 384 + 28)


def test_other_heads_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-file", tiny(tmp_path), "--input", picture_of(tmp_path / "b.png")]
    words += ["--output", str(tmp_path / "out"), "--opts", "MODEL.ROI_HEADS.NAME"]
    opts = ["CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    opts += ["MODEL.RESNETS.OUT_FEATURES", "['res4', 'res5']"]
    assert feature_maps.main([*words, *opts]) == 1
    assert "MODEL.ROI_HEADS.NAME is 'CascadeROIHeads'" in capsys.readouterr().err
