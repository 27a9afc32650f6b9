"""Where TSD's tasks look: geometry and numbers by hand, pictures, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.analysis.sampling import Looks, look, summarize
from doublehead_d2.tools import sampling
from doublehead_d2.visualize import draw_sampling

TINY = "Shapes-Detection/tsd_rcnn_tiny.yaml"


def looks(offsets: list, shift: list, boxes: list) -> Looks:
    """Of one proposal of 40 x 20 pixels at (10, 10), with 1 x 2 bins."""
    proposals = torch.tensor([[10.0, 10.0, 50.0, 30.0]])
    cls_offsets = torch.tensor(offsets).T.reshape(1, 2, 1, 2)
    return Looks(torch.tensor([boxes]), proposals, cls_offsets, torch.tensor([shift]))


def test_places_by_hand() -> None:
    found = looks([[-0.1, 0.0], [0.1, 0.5]], [0.25, -0.5], [20.0, 0.0, 60.0, 20.0])
    regular, moved = found.bins
    assert regular.tolist() == [[[20.0, 20.0], [40.0, 20.0]]]
    assert moved.tolist() == [[[16.0, 20.0], [44.0, 30.0]]]
    assert found.moved_proposals.tolist() == [[20.0, 0.0, 60.0, 20.0]]


def test_bins_are_counted_row_by_row() -> None:
    offsets = torch.zeros(1, 2, 2, 3)
    offsets[0, :, 1, 0] = 0.5
    regular, moved = Looks(*[torch.tensor([[0.0, 0.0, 6.0, 4.0]])] * 2, offsets, None).bins
    assert regular[0, 3].tolist() == [1.0, 3.0]
    assert (moved - regular)[0].tolist() == [[0, 0]] * 3 + [[3.0, 2.0]] + [[0, 0]] * 2


def test_summary_by_hand() -> None:
    # Bins at -1/4 and 1/4 of the width move out by 1/10: 0.35 / 0.25 = 1.4 times as wide.
    # The proposal moves by (10, -10) pixels of the (20, -20) to the detected box.
    found = summarize(looks([[-0.1, 0.0], [0.1, 0.0]], [0.25, -0.5], [30.0, -10.0, 70.0, 10.0]))
    assert found.detections == 1
    assert found.cls_distance == pytest.approx(0.1)
    assert found.cls_spread == pytest.approx(1.4)
    assert found.cls_towards == pytest.approx(0)
    assert found.reg_distance == pytest.approx((0.25**2 + 0.5**2) ** 0.5)
    assert found.reg_towards == pytest.approx(0.5)
    assert "0.100 of the proposal's sides" in str(found) and "50 % of the way" in str(found)


def test_a_shift_of_all_bins_spreads_none() -> None:
    # (8, 2) pixels of the (16, 4) to the detected box
    found = summarize(looks([[0.2, 0.1], [0.2, 0.1]], [0.0, 0.0], [26.0, 14.0, 66.0, 34.0]))
    assert found.cls_spread == 1.0 and found.reg_towards == 0.0
    assert found.cls_towards == pytest.approx(0.5)


def tiny(tmp_path: Path, name: str = TINY) -> str:
    """Config file of a random model whose weights lie beside it."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(tmp_path / "model.pth")
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return str(tmp_path / "config.yaml")


def test_looks_are_those_of_the_detections(tmp_path: Path) -> None:
    cfg = model_zoo.get_config(tiny(tmp_path))
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = torch.rand(3, 96, 128) * 255
    found = look(model, image)
    with torch.no_grad():
        (expected,) = model.inference([{"image": image}], do_postprocess=False)
    torch.testing.assert_close(found.boxes, expected.pred_boxes.tensor)
    assert len(found.proposals) == len(found.cls_offsets) == len(found.boxes) > 0
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        again = model.roi_heads.predict(features, [Boxes(found.proposals)])
    torch.testing.assert_close(found.cls_offsets, 0.1 * again.delta_c)
    torch.testing.assert_close(found.reg_offsets, 0.1 * again.delta_r)


def test_pictures_and_numbers(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-file", tiny(tmp_path), "--dataset", "shapes_val", "--num-images", "2"]
    output = tmp_path / "out"
    words += ["--score-threshold", "0", "--output", str(output)]
    assert sampling.main(words) == 0
    assert "2 pictures are in" in capsys.readouterr().out
    assert len(list(output.glob("*.png"))) == 2
    assert sampling.main([*words[:-3], "1", *words[-2:]]) == 0
    assert "no detection of a score above 1: no picture" in capsys.readouterr().out


def test_an_odd_file_ends_nothing(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((shapes / "coco" / "val").glob("*.jpg"))
    words = ["--config-file", tiny(tmp_path), "--score-threshold", "0", "--input", "a.jpg"]
    assert sampling.main([*words, str(image), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "not readable as an image: a.jpg: there is no such file" in said.err
    assert "1 pictures are in" in said.out and len(list((tmp_path / "out").iterdir())) == 1


def test_heads_without_offsets_are_refused(
    tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-file", tiny(tmp_path, TINY_EXT), "--dataset", "shapes_val"]
    assert sampling.main([*words, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "'DoubleHeadROIHeads', whose heads have no offsets; allowed: 'TSDROIHeads'" in said
    assert not (tmp_path / "out").exists()


def test_what_is_drawn() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    picture = draw_sampling(
        image, [50, 50, 150, 150], [[100, 100]], [[300, 100]], [250, 250, 350, 350]
    ).astype(int)
    blue, green, red = picture[300, 250]
    assert blue > 150 and red < 80  # deep sky blue, an edge of what localisation pools
    assert picture[100, 50].min() > 150  # white, an edge of the proposal
    blue, green, red = picture[100, 300]
    assert red > 200 and 100 < green < 200 and blue < 80  # orange, a moved bin
    assert picture[100, 200].sum() > 100 and picture[200, 200].sum() == 0
