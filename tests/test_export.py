"""Detectors as files: what cannot be exported, what agrees, and files that run without us."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

import doublehead_d2.export.formats as formats
from builders import EXT, read_once, small_cfg
from conftest import REPOSITORY, TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.export import FORMATS, Exporter, Parity, check_export, format_of
from doublehead_d2.export.detector import detect
from doublehead_d2.export.exporter import drawn_pictures
from doublehead_d2.export.formats import Format, Run
from doublehead_d2.inference import Predictor
from doublehead_d2.tools import export_model

SMALL = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96]
SMALL += ["MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 30]
SMALL += ["MODEL.PIXEL_STD", [60.0, 60.0, 60.0]]  # random frozen norms let activations grow
MASKS = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
MASKS += ["MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
# Of five classes that a random head gives about a sixth each: some RoIs are detected, others not.
SOME = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.167]
KEYPOINTS = [*SMALL, "MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,)]
TSD = "Shapes-Detection/tsd_rcnn_tiny.yaml"


def cfg_of(*opts: object) -> CfgNode:
    return small_cfg(*SMALL, *opts)


def exporter_of(cfg: CfgNode, file_format: str, seed: int = 0) -> Exporter:
    torch.manual_seed(seed)
    return Exporter(cfg, file_format)


# ------------------------------------------------------------------------ what cannot be exported


@pytest.mark.parametrize(
    ("name", "opts", "file_format", "message"),
    [
        (
            TINY_EXT,
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            "torchscript",
            "MODEL.META_ARCHITECTURE is 'RetinaNet'; allowed: 'GeneralizedRCNN'",
        ),
        (
            TINY_EXT,
            ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
            "onnx",
            "MODEL.PROPOSAL_GENERATOR.NAME is 'PrecomputedProposals'; allowed: 'RPN', ",
        ),
        (
            TINY_EXT,
            ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]],
            "torchscript",
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE is [False, True, True, True]: deformable",
        ),
        (TINY_EXT, ["MODEL.KEYPOINT_ON", True], "onnx", "MODEL.KEYPOINT_ON is True: keypoints"),
        (
            TSD,
            [],
            "onnx",
            "MODEL.ROI_HEADS.NAME is 'TSDROIHeads': it pools every bin of a RoI at its own offset, "
            "in a way that ONNX lacks; allowed: --format torchscript",
        ),
    ],
)
def test_what_cannot_be_exported_is_said(
    name: str, opts: list, file_format: str, message: str
) -> None:
    cfg = read_once(name).clone()
    cfg.merge_from_list(opts)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        check_export(cfg, file_format)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "opts", "file_format"),
    [
        (TINY_EXT, ["MODEL.KEYPOINT_ON", True], "torchscript"),
        (TSD, [], "torchscript"),
        (TINY_EXT, MASKS, "onnx"),
        ("Shapes-Detection/faster_rcnn_c4_tiny.yaml", [], "onnx"),
        ("Imported/official_double_head_ext_rcnn_R_50_FPN_1x.yaml", [], "onnx"),
        ("Imported/official_tsd_rcnn_R_50_FPN_1x.yaml", [], "torchscript"),
    ],
)
def test_what_can_be_exported_is_let_through(name: str, opts: list, file_format: str) -> None:
    cfg = read_once(name).clone()
    cfg.merge_from_list(opts)
    check_export(cfg, file_format)


def test_the_suffix_says_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [format_of(f"a/b.c{s}") for s in (".onnx", ".ts", ".pt")] == [
        "onnx",
        "torchscript",
        "torchscript",
    ]
    assert format_of("model.onnx", "torchscript") == "torchscript"
    with pytest.raises(ValueError, match=r"'model.pth' ends in none of .onnx, .ts, .pt; allowed"):
        format_of("model.pth")
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert format_of("model.ts") == "torchscript"
    with pytest.raises(ValueError, match="onnx needs onnx and onnxruntime: pip install onnx onnx"):
        format_of("model.onnx")


# -------------------------------------------------------------------------------------- agreement


def instances(scores: list, classes: list, boxes: list, **fields: torch.Tensor) -> Instances:
    return Instances(
        (20, 30),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        **fields,
    )


def outputs(scores: list, classes: list, boxes: list, **others: np.ndarray) -> dict:
    return {
        "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "scores": np.array(scores, dtype=np.float32),
        "classes": np.array(classes, dtype=np.int64),
        **others,
    }


A, B = [1.0, 2.0, 9.0, 9.0], [3.0, 4.0, 12.0, 8.0]


def test_equal_detections_agree_in_another_order_of_equal_scores_too() -> None:
    parity = Parity()
    model = instances([0.90002, 0.9], [1, 0], [A, B])
    moved = [A[0] + 0.0005, *A[1:]]
    parity.compare(model, outputs([0.9, 0.90004], [0, 1], [B, moved]))
    parity.compare(instances([], [], []), outputs([], [], []))
    assert (parity.pictures, parity.detections) == (2, 2)
    assert parity.boxes == pytest.approx(0.0005, rel=1e-3)
    assert parity.scores == pytest.approx(2e-5, rel=1e-2)


def test_of_two_boxes_of_a_class_each_has_its_own_counterpart() -> None:
    model = instances([0.9, 0.9], [1, 1], [A, A])
    with pytest.raises(ValueError, match="boxes differ by 3; allowed: 0.001"):
        Parity().compare(model, outputs([0.9, 0.9], [1, 1], [A, B]))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (outputs([0.9], [1], [A]), "1 detections, of PyTorch's model 2"),
        (outputs([0.9, 0.5], [1, 2], [A, B]), "1 of 2 detections have another class"),
        (outputs([0.9, 0.5], [1, 0], [A, [3, 4, 12.002, 8]]), "boxes differ by 0.002; allowed: 0"),
        (outputs([0.9, 0.5003], [1, 0], [A, B]), "scores differ by 0.0003; allowed: 0.0001"),
        (outputs([0.9, np.nan], [1, 0], [A, B]), "scores differ by nan"),
        (outputs([0.9, 0.5], [1, 0], [A, [np.nan] * 4]), "boxes differ by nan"),
        # Scores that far apart are in their order.
        (outputs([0.5, 0.9], [1, 0], [A, B]), "scores differ by 0.4"),
    ],
)
def test_differences_are_refused(found: dict, message: str) -> None:
    parity = Parity()
    with pytest.raises(ValueError, match=message):
        parity.compare(instances([0.9, 0.5], [1, 0], [A, B]), found)
    assert parity == Parity()


def test_keypoints_are_compared() -> None:
    points = torch.tensor([[[3.0, 4.0, 0.5], [5.0, 6.0, 0.25]]])
    model = instances([0.9], [0], [A], pred_keypoints=points)

    def compare(x: float, score: float) -> None:
        moved = points + torch.tensor([[x, 0.0, score], [0.0, 0.0, 0.0]])
        Parity().compare(model, outputs([0.9], [0], [A], keypoints=moved.numpy()))

    compare(5e-4, 5e-5)
    with pytest.raises(ValueError, match=r"boxes differ by 0\.002"):
        compare(0.002, 0.0)
    with pytest.raises(ValueError, match=r"scores differ by 0\.0002"):
        compare(0.0, 2e-4)


def test_masks_are_compared_in_the_picture() -> None:
    """A mask of 1 in a box of 8 x 8 pixels covers them all, one of 0 none."""
    full = torch.zeros(1, 20, 30, dtype=torch.bool)
    full[:, 4:12, 2:10] = True
    box = [[2.0, 4.0, 10.0, 12.0]]
    ones = np.ones((1, 4, 4), dtype=np.float32)

    def compare(pixels: int, masks: np.ndarray) -> None:
        mask = full.clone()
        mask[0, 4, 2 : 2 + pixels] = False
        Parity().compare(
            instances([0.9], [0], box, pred_masks=mask), outputs([0.9], [0], box, masks=masks)
        )

    compare(0, ones)
    compare(1, ones)
    with pytest.raises(ValueError, match="a mask differs in 2 pixels"):
        compare(2, ones)
    with pytest.raises(ValueError, match="a mask differs in 64 pixels"):
        compare(0, 0 * ones)


# --------------------------------------------------- the exporter, with formats that trace nothing


def use_format(monkeypatch: pytest.MonkeyPatch, change: Callable[[list], list]) -> None:
    """A format "torchscript" that runs the model itself and changes what it says."""
    adapters = []

    def write(adapter: torch.nn.Module, names: list, info: str, path: str) -> None:
        adapters.append(adapter)
        Path(path).write_text(info)

    def load(path: str) -> Run:
        @torch.no_grad()
        def run(image: np.ndarray, size: np.ndarray) -> list:
            found = adapters[-1](torch.tensor(image), torch.tensor(size))
            return change([x.numpy() for x in found])

        return run

    monkeypatch.setitem(FORMATS, "torchscript", Format((".ts",), (), write, load))


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_the_function_that_is_traced_is_the_predictor(
    image_format: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_format(monkeypatch, lambda found: found)
    exporter = exporter_of(cfg_of(*EXT, *MASKS, *SOME, "INPUT.FORMAT", image_format), "torchscript")
    parity = exporter.export(str(tmp_path / "model.ts"))
    assert parity.pictures == 5 and parity.detections > 20
    assert parity.boxes < 1e-4 and parity.scores < 1e-6
    info = json.loads((tmp_path / "model.ts").read_text())
    assert info == exporter.info
    assert info["outputs"] == ["boxes", "scores", "classes", "masks"]
    assert (info["short_edge"], info["max_size"]) == (64, 96)
    assert (info["resize_rule"], info["score_threshold"]) == ("detectron2", 0.167)
    assert info["class_names"] == ["0", "1", "2", "3", "4"]  # COCO's 80 are not those of five


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [found[0] + 0.01, *found[1:]], "boxes differ by 0.01"),
        (lambda found: [found[0], found[1] + 0.3, *found[2:]], "scores differ by 0.3"),
        (lambda found: [x[:-1] for x in found], r"\d+ detections, of PyTorch's model \d+"),
        (lambda found: 1 // 0, "integer division"),
    ],
)
def test_a_file_that_does_not_agree_is_not_left(
    change: Callable, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_format(monkeypatch, change)
    (tmp_path / "model.ts").write_text("before")
    exporter = exporter_of(cfg_of(*SOME), "torchscript")
    with pytest.raises(ValueError, match=f"does not agree on the drawn picture 128x96: {message}"):
        exporter.export(str(tmp_path / "model.ts"))
    assert [p.name for p in tmp_path.iterdir()] == ["model.ts"]
    assert (tmp_path / "model.ts").read_text() == "before"


def test_given_pictures_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_format(monkeypatch, lambda found: found)
    exporter = exporter_of(cfg_of(*SOME), "torchscript")
    _, picture = next(drawn_pictures())
    assert exporter.export(str(tmp_path / "a.ts"), [("one", picture)]).pictures == 6
    use_format(monkeypatch, lambda found: [found[0] + 1000, *found[1:]])
    exporter._format = FORMATS["torchscript"]
    monkeypatch.setattr("doublehead_d2.export.exporter.drawn_pictures", lambda: [])
    with pytest.raises(ValueError, match=r"does not agree on one: boxes differ by "):
        exporter.export(str(tmp_path / "b.ts"), [("one", picture)])
    assert not (tmp_path / "b.ts").exists()


def test_what_an_exporter_says_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exporter = exporter_of(cfg_of(), "torchscript")

    def fail(*args: object) -> None:
        raise RuntimeError("no symbol\nand a thousand lines")

    exporter._format = exporter._format._replace(write=fail)
    with pytest.raises(ValueError, match="the model cannot be exported: no symbol$"):
        exporter.export(str(tmp_path / "model.ts"))
    assert not list(tmp_path.iterdir())


def test_drawn_pictures_differ_in_size() -> None:
    pictures = dict(drawn_pictures())
    shapes = [image.shape[:2] for image in pictures.values()]
    assert len(set(shapes)) == len(shapes) == 5
    # A flat one has equal scores, of which rounding says who is first.
    assert all(image.reshape(-1, 3).std(axis=0).min() > 1 for image in pictures.values())


def test_boxes_are_those_of_the_picture_before_it_was_resized() -> None:
    torch.manual_seed(0)
    model = Predictor(cfg_of()).model
    image = torch.randint(256, (64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        same = detect(model, image, torch.tensor([64, 96]), image_format="BGR")
        larger = detect(model, image, torch.tensor([128, 288]), image_format="BGR")
        other = detect(model, image, torch.tensor([64, 96]), image_format="RGB")
    torch.testing.assert_close(larger[0], same[0] * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    torch.testing.assert_close(larger[1], same[1])
    flipped = image.flip(2)
    with torch.no_grad():
        again = detect(model, flipped, torch.tensor([64, 96]), image_format="BGR")
    torch.testing.assert_close(again, other)
    assert len(same[0]) and not torch.equal(same[1], other[1])


# ---------------------------------------------------------------------------------- the real files


@pytest.mark.slow
@pytest.mark.parametrize("file_format", list(FORMATS))
@pytest.mark.parametrize(
    ("opts", "some"),
    [
        ([*SOME, *MASKS], True),  # lazy: the regression head is shown some RoIs
        ([*EXT, *SOME], True),
        ([*MASKS, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99], False),  # no detections, no RoIs
    ],
)
def test_files_agree_with_the_model(
    opts: list, some: bool, file_format: str, tmp_path: Path
) -> None:
    exporter = exporter_of(cfg_of(*opts), file_format)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((33, 90), (200, 61))]
    parity = exporter.export(str(tmp_path / "model"), [("noise", image) for image in noise])
    assert parity.pictures == 7 and (parity.detections > 0) == some


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "opts", "file_format"),
    [
        ("Shapes-Detection/grcn_tiny.yaml", SMALL, "onnx"),
        ("Shapes-Detection/double_head_tsd_rcnn_tiny.yaml", SMALL, "torchscript"),
        (TINY_EXT, KEYPOINTS, "torchscript"),
    ],
)
def test_other_systems(name: str, opts: list, file_format: str, tmp_path: Path) -> None:
    cfg = read_once(name).clone()
    cfg.MODEL.WEIGHTS = ""
    cfg.merge_from_list(opts)
    parity = exporter_of(cfg, file_format).export(str(tmp_path / "model"))
    assert parity.detections > 0


@pytest.mark.slow
@pytest.mark.parametrize("file_format", list(FORMATS))
def test_the_documents_run_the_files_without_us(file_format: str, tmp_path: Path) -> None:
    cfg = cfg_of(*EXT, *MASKS, *SOME, "DATASETS.CLASS_NAMES", ["ant", "bee", "cow", "dog", "eel"])
    cfg.DATASETS.TEST = ("__named",)
    exporter = exporter_of(cfg, file_format)
    exporter.info["class_names"] = list(cfg.DATASETS.CLASS_NAMES)
    exporter.export(str(tmp_path / ("model.onnx" if file_format == "onnx" else "model.ts")))
    picture = np.random.default_rng(3).integers(0, 256, (150, 111, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), picture)

    code = (
        "import sys\nfor name in ('doublehead_d2', 'detectron2'):\n    sys.modules[name] = None\n"
    )
    code += "".join(block for block in example_blocks() if used_by(file_format, block))
    code = code.replace("photo.jpg", "photo.png") + "    print('mask', inside.sum())\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr[-2000:]

    found = exporter.predictor([picture])[0]["instances"]
    lines = [line.split() for line in run.stdout.splitlines()]
    masks = [int(line[1]) for line in lines if line[0] == "mask"]
    rows = [line for line in lines if line[0] != "mask"]
    assert len(rows) == len(masks) == len(found) > 0
    assert [row[0] for row in rows] == [exporter.info["class_names"][c] for c in found.pred_classes]
    numbers = torch.tensor([[float(x) for x in row[1:]] for row in rows])
    torch.testing.assert_close(numbers[:, 0], found.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(numbers[:, 1:], found.pred_boxes.tensor, atol=1e-3, rtol=0)
    areas = found.pred_masks.flatten(1).sum(dim=1)
    assert (torch.tensor(masks) - areas).abs().max() <= 1 + areas.max() // 1000


def example_blocks() -> list[str]:
    """The blocks of Python of the chapter on exports."""
    text = (REPOSITORY / "docs" / "USE.md").read_text(encoding="utf-8")
    (chapter,) = re.findall(r"^## Export\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)


def used_by(file_format: str, block: str) -> bool:
    other = {"onnx": "import torch", "torchscript": "import onnxruntime"}[file_format]
    return other not in block


def test_the_resize_of_the_documents_is_the_predictors() -> None:
    names: dict = {}
    exec(example_blocks()[0].partition("photo = ")[0], names)
    for short_edge, max_size in ((800, 1333), (128, 128), (64, 96)):
        cfg = cfg_of("INPUT.MIN_SIZE_TEST", short_edge, "INPUT.MAX_SIZE_TEST", max_size)
        info = {"short_edge": short_edge, "max_size": max_size}
        augmentation = doublehead_resize(cfg)
        for size in ((480, 640), (427, 640), (333, 500), (640, 359), (1, 1), (100, 2000)):
            transform = augmentation.get_transform(np.zeros((*size, 3), dtype=np.uint8))
            resized = names["resize"](FakePhoto(size), info)
            assert tuple(resized) == (transform.new_w, transform.new_h), (size, info)


def doublehead_resize(cfg: CfgNode) -> object:
    from doublehead_d2.data.resize import build_test_resize

    return build_test_resize(cfg)


class FakePhoto:
    """Of Pillow's images what the example uses."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size[::-1]

    def resize(self, size: list[int], how: int) -> np.ndarray:
        return np.array(size)


# ---------------------------------------------------------------------------------------- the tool


def test_the_tool_refuses_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_model, "Exporter", lambda *args: pytest.fail("it started"))
    output = str(tmp_path / "model.onnx")

    def refused(*args: str) -> str:
        assert export_model.main(list(args)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "names no weights; add `--opts" in refused(TINY_EXT, "--output", output)
    assert "is 'TSDROIHeads'" in refused(TSD, "--output", output)
    assert "ends in none of" in refused(TINY_EXT, "--output", str(tmp_path / "model.pth"))
    weights = ["--opts", "MODEL.WEIGHTS", "a.pth"]
    missing = refused(TINY_EXT, "--output", output, "--images", "absent.jpg", *weights)
    assert missing == "absent.jpg: there is no such file"
    assert "is a folder" in refused(
        TINY_EXT, "--format", "onnx", "--output", str(tmp_path), *weights
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({"model": model_zoo.get(TINY_EXT).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize(("threshold", "said"), [(0.3, "agrees with"), (1.0, "runs on")])
def test_the_tool_says_what_was_compared(
    threshold: float,
    said: str,
    weights: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_format(monkeypatch, lambda found: found)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    command = [TINY_EXT, "--output", str(tmp_path / "new" / "model.ts")]
    opts = ["--opts", "MODEL.WEIGHTS", weights, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", str(threshold)]
    assert export_model.main([*command, "--images", str(tmp_path / "a.png"), *opts]) == 0
    out = capsys.readouterr().out
    assert "model.ts: torchscript, 0.0 MB; classes circle, rectangle, triangle\n" in out
    assert out.splitlines()[1].startswith(said)
    assert "1 given pictures and 5 drawn ones" in out
    assert ("give pictures with objects" in out) == (threshold > 0.9)
    if threshold < 0.9:
        assert export_model.main([*command, *opts]) == 0
        assert "on 5 drawn pictures alone (--images takes others)" in capsys.readouterr().out


def test_the_tool_leaves_no_file_that_does_not_agree(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_format(monkeypatch, lambda found: [found[0] + 1, *found[1:]])
    output = tmp_path / "model.ts"
    assert export_model.main(
        [TINY_EXT, "--output", str(output), "--opts", "MODEL.WEIGHTS", weights]
    )
    assert (
        "does not agree on the drawn picture 128x96: boxes differ by 1" in capsys.readouterr().err
    )
    assert not output.exists()
