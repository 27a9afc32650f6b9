"""Which file fills what: parts that a file does not have start from their siblings."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.models import vgg11, vgg16, vgg16_bn, vgg19

from builders import grcn_model, read_once
from doublehead_d2 import model_zoo
from doublehead_d2.checkpoint import DoubleHeadCheckpointer, convert_checkpoint
from doublehead_d2.checkpoint.sources.torchvision import CONVOLUTIONS
from doublehead_d2.modeling.siblings import fill_missing
from doublehead_d2.tools import convert_checkpoint as tool

GRCN = "COCO-Detection/grcn_R_50_C5_1x.yaml"
C5 = "COCO-Detection/faster_rcnn_R_50_C5_1x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"
GRCN_VGG = "COCO-Detection/grcn_VGG_16_1x.yaml"
FASTER_VGG = "COCO-Detection/faster_rcnn_VGG_16_1x.yaml"
FPN = "COCO-Detection/faster_rcnn_R_50_FPN_paper_1x.yaml"
# detectron2's DC5
DC5 = (
    *("MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.RPN.IN_FEATURES", ["res5"]),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
)
NO_CONTEXT = ("MODEL.ROI_GRCN.CLS_HEAD.CONTEXT", "none")
CLS_SCORE = "roi_heads.box_predictor.cls_score"


def part(model: nn.Module, name: str) -> dict[str, Tensor]:
    return dict(model.get_submodule(name).state_dict())


def assert_equal(found: dict, expected: dict) -> None:
    assert expected
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def saved(model: nn.Module, path: Path) -> str:
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def load(model: nn.Module, path: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Load as train_net.py does; the lines of the log that say what came from where."""
    with caplog.at_level(logging.INFO, "doublehead_d2"):
        DoubleHeadCheckpointer(model).load(path)
    text = next(m for m in reversed(caplog.messages) if m.startswith("Loaded from"))
    return text.splitlines()[1:]


# --------------------------------------------------------------------------------- the rule itself


class Pair(nn.Module):
    """Two layers of one form, and one of another; a file may have a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(2, 1)
        self.siblings = {"a": "b", "b": "a", "c": "a"}


def test_the_rule_by_hand() -> None:
    one, two = torch.ones(1, 1), torch.full((1,), 2.0)
    state = {"x.a.weight": one, "x.a.bias": two, "y": one}
    filled = fill_missing(Pair(), state, "x.")
    # Nothing of c: its weight is of another shape, and a bias alone would mean nothing.
    assert filled == {"x.b.weight": "x.a.weight", "x.b.bias": "x.a.bias"}
    assert set(state) == {"x.a.weight", "x.a.bias", "x.b.weight", "x.b.bias", "y"}
    assert state["x.b.weight"] is one and state["x.b.bias"] is two


def test_what_a_file_has_is_never_overwritten() -> None:
    state = {"a.weight": torch.ones(1, 1), "b.weight": torch.zeros(1, 1), "c.bias": torch.ones(1)}
    before = dict(state)
    assert fill_missing(Pair(), state) == {}  # not even the missing half of a part
    assert state == before


def test_arrays_of_a_file_do_as_well() -> None:
    state = {"b.weight": np.ones((1, 1), np.float32)}
    assert fill_missing(Pair(), state) == {"a.weight": "b.weight"}


def test_what_stands_in_for_a_part_need_not_be_built() -> None:
    model = Pair()
    model.siblings = {"c": "gone"}
    state = {"gone.weight": torch.ones(1, 2), "gone.running_mean": torch.ones(1)}
    assert fill_missing(model, state) == {"c.weight": "gone.weight"}
    assert set(state) == {"c.weight", "gone.running_mean"}  # moved, but for what c has not


# ---------------------------------------------------------------------------------- load_state_dict


@pytest.mark.parametrize("prefix", ["", "module."])
def test_any_loader_fills(prefix: str) -> None:
    theirs, ours = grcn_model(C5), grcn_model(GRCN, *NO_CONTEXT, seed=1)
    wrapped = nn.ModuleDict({"module": ours}) if prefix else ours
    state = {f"{prefix}{key}": x for key, x in theirs.state_dict().items()}
    before = set(state)
    wrapped.load_state_dict(state, strict=True)
    assert set(state) == before  # the caller's dict stays as it is
    for copy in ("backbone.res5", "backbone.res5_reg"):
        assert_equal(part(ours, copy), part(theirs, "backbone.res5"))
    head = "roi_heads.box_predictor"
    assert_equal(part(ours, f"{head}.cls_score"), part(theirs, f"{head}.cls_score"))
    expected = part(theirs, f"{head}.bbox_pred")
    assert_equal(part(ours, "roi_heads.reg_predictor.bbox_pred"), expected)


def test_the_copy_for_boxes_fills_the_other_too() -> None:
    ours, theirs = grcn_model(GRCN), grcn_model(GRCN, seed=1)
    state = {k: x for k, x in theirs.state_dict().items() if "res5." not in k}
    ours.load_state_dict(state, strict=True)
    assert_equal(part(ours, "backbone.res5"), part(theirs, "backbone.res5_reg"))


def test_a_whole_file_fills_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = grcn_model(GRCN, seed=1), grcn_model(GRCN)
    assert not torch.equal(
        theirs.backbone.res5[0].conv1.weight, theirs.backbone.res5_reg[0].conv1.weight
    )
    lines = load(ours, saved(theirs, tmp_path / "a.pth"), caplog)
    assert_equal(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert not any("from" in line for line in lines)


def test_stock_checkpointer_fills_too(tmp_path: Path) -> None:
    theirs, ours = grcn_model(C5), grcn_model(GRCN, seed=1)
    DetectionCheckpointer(ours).load(saved(theirs, tmp_path / "a.pth"))
    assert_equal(part(ours, "backbone.res5_reg"), part(theirs, "backbone.res5"))


def test_other_heads_are_not_filled() -> None:
    """A conv-head has no tensor of a fc-head's name, and keeps its own."""
    opts = ("MODEL.ROI_GRCN.REG_HEAD.NAME", "DoubleHeadConvHead", *DC5[4:], *NO_CONTEXT)
    theirs, ours = grcn_model(C5, *DC5[4:]), grcn_model(GRCN, *opts, seed=1)
    before = {k: x.clone() for k, x in part(ours, "roi_heads.reg_head").items()}
    ours.load_state_dict(theirs.state_dict(), strict=False)
    assert_equal(part(ours, "roi_heads.reg_head"), before)
    assert_equal(part(ours, "roi_heads.box_head"), part(theirs, "roi_heads.box_head"))


# -------------------------------------------------------------------------------- files of the zoo


def test_c4_fills_the_corrected_protocol(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = grcn_model(C4), grcn_model(C5, seed=1)
    path = saved(theirs, tmp_path / "c4.pth")
    checkpointer = DoubleHeadCheckpointer(ours)
    checkpointer.load(path)
    assert checkpointer.missing_keys == []
    expected = {
        k.replace("roi_heads.res5", "backbone.res5"): x for k, x in theirs.state_dict().items()
    }
    assert_equal(dict(ours.state_dict()), expected)
    lines = load(ours, path, caplog)
    assert "  backbone.res5: 50 of 50 tensors, from roi_heads.res5" in lines
    assert not any("not used" in line for line in lines)


def test_c4_fills_both_branches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = grcn_model(C4), grcn_model(GRCN, seed=1)
    lines = load(ours, saved(theirs, tmp_path / "c4.pth"), caplog)
    for copy in ("backbone.res5", "backbone.res5_reg"):
        assert_equal(part(ours, copy), part(theirs, "roi_heads.res5"))
    expected = part(theirs, "roi_heads.box_predictor.bbox_pred")
    assert_equal(part(ours, "roi_heads.reg_predictor.bbox_pred"), expected)
    assert lines == [
        "  backbone.stem: 5 of 5 tensors",
        "  backbone.res2: 50 of 50 tensors",
        "  backbone.res3: 65 of 65 tensors",
        "  backbone.res4: 95 of 95 tensors",
        "  backbone.res5: 50 of 50 tensors, from roi_heads.res5",
        "  backbone.res5_reg: 50 of 50 tensors, from backbone.res5",
        "  proposal_generator.rpn_head: 6 of 6 tensors",
        # Its scores are from 2D channels.
        "  roi_heads.box_predictor: 1 of 2 tensors, the rest as initialised",
        "  roi_heads.reg_predictor: 2 of 2 tensors, from roi_heads.box_predictor",
        f"  of another shape, as initialised: {CLS_SCORE} (6 x 128, here 6 x 256)",
    ]
    assert "fills roi_heads.box_predictor by half: 1 of its tensors are from there" in caplog.text
    assert "(cls_score.bias), and 1 as initialised (cls_score.weight)" in caplog.text


def test_c4_of_a_run_in_several_processes(tmp_path: Path) -> None:
    theirs, ours = grcn_model(C4), grcn_model(GRCN, seed=1)
    state = {f"module.{key}": x for key, x in theirs.state_dict().items()}
    torch.save({"model": state}, tmp_path / "c4.pth")
    DoubleHeadCheckpointer(ours).load(str(tmp_path / "c4.pth"))
    assert_equal(part(ours, "backbone.res5_reg"), part(theirs, "roi_heads.res5"))


def test_dc5_fills_both_branches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = grcn_model(C5, *DC5), grcn_model(GRCN, seed=1)
    lines = load(ours, saved(theirs, tmp_path / "dc5.pth"), caplog)
    for copy in ("backbone.res5", "backbone.res5_reg"):
        assert_equal(part(ours, copy), part(theirs, "backbone.res5"))
    assert "  backbone.res5: 50 of 50 tensors" in lines
    assert "  backbone.res5_reg: 50 of 50 tensors, from backbone.res5" in lines
    assert "  not used: roi_heads.box_head (4), roi_heads.box_predictor (2)" in lines


def test_imagenet_fills_both_copies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """detectron2's files of ImageNet: pickled arrays, names without the detector around them."""
    theirs, ours = grcn_model(C5), grcn_model(GRCN, seed=1)
    weights = {
        key.removeprefix("backbone."): np.asarray(x)
        for key, x in theirs.state_dict().items()
        if key.startswith("backbone.") and not key.endswith(("running_mean", "running_var"))
    }
    content = {"model": weights, "__author__": "x", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    lines = load(ours, str(tmp_path / "R-50.pkl"), caplog)
    for copy in ("res5", "res5_reg"):
        for name, x in ours.backbone.get_submodule(copy).state_dict().items():
            if f"res5.{name}" in weights:
                assert np.array_equal(x.numpy(), weights[f"res5.{name}"]), name
    # A frozen norm pretends that it was given statistics, the file has none.
    assert (
        "  backbone.res5_reg: 30 of 50 tensors, from backbone.res5, the rest as initialised"
        in lines
    )
    assert "  roi_heads.reg_predictor: none of 2 tensors, the rest as initialised" in lines


def test_a_resnet_below_an_fpn_fills_one_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = grcn_model(FPN)
    path = saved(theirs, tmp_path / "fpn.pth")
    ours, c4 = grcn_model(GRCN, seed=1), grcn_model(C4, seed=1)
    lines = load(ours, path, caplog)
    assert "  backbone.stem: 5 of 5 tensors, from backbone.bottom_up" in lines
    load(c4, path, caplog)
    expected = part(theirs, "backbone.bottom_up.res5")
    for found in (ours.backbone.res5, ours.backbone.res5_reg, c4.roi_heads.res5):
        assert_equal(dict(found.state_dict()), expected)
    for stage in ("stem", "res2", "res3", "res4"):
        assert_equal(part(ours, f"backbone.{stage}"), part(theirs, f"backbone.bottom_up.{stage}"))


def test_the_way_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C4, and a ResNet below an FPN, from G-RCN's: the copy for classification."""
    theirs, c4, fpn = grcn_model(GRCN), grcn_model(C4, seed=1), grcn_model(FPN, seed=1)
    path = saved(theirs, tmp_path / "grcn.pth")
    lines = load(c4, path, caplog)
    assert_equal(part(c4, "roi_heads.res5"), part(theirs, "backbone.res5"))
    assert any("not used: backbone.res5_reg (50)" in line for line in lines)
    load(fpn, path, caplog)
    assert_equal(part(fpn, "backbone.bottom_up.res5"), part(theirs, "backbone.res5"))


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"net.weight": torch.ones(1)}}, tmp_path / "a.pth")
    for name in (GRCN, GRCN_VGG):
        with pytest.raises(ValueError, match="nothing in .* fits this model: .*; found net.weight"):
            DoubleHeadCheckpointer(grcn_model(name)).load(str(tmp_path / "a.pth"))


# ----------------------------------------------------------------------------- torchvision's VGG16


def vgg_state(seed: int = 0) -> dict[str, Tensor]:
    """A file of torchvision's VGG16 whose fc layers have 16 channels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: x.shape for key, x in vgg16().state_dict().items()}
    fc = {"classifier.0": (16, 512 * 49), "classifier.3": (16, 16), "classifier.6": (1, 16)}
    for name, shape in fc.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {key: torch.randn(*shape, generator=generator) for key, shape in shapes.items()}


def test_the_keys_are_torchvisions() -> None:
    with torch.device("meta"):
        model = vgg16()
    convolutions = [i for i, x in enumerate(model.features) if isinstance(x, nn.Conv2d)]
    assert [place for stage in CONVOLUTIONS for place in stage] == convolutions
    converted = convert_checkpoint(dict(model.state_dict()))
    assert len(converted) == 26 + 4
    with torch.device("meta"):
        ours = build_model(read_cfg_on_meta())
    wanted = ours.state_dict()
    assert {key: x.shape for key, x in converted.items()} == {
        key: wanted[key].shape for key in converted
    }


def read_cfg_on_meta() -> CfgNode:
    cfg = read_once(GRCN_VGG).clone()
    cfg.MODEL.DEVICE = "meta"
    return cfg


def test_vgg16_fills_both_branches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = vgg_state()
    torch.save(state, tmp_path / "vgg16.pth")
    ours = grcn_model(GRCN_VGG)
    lines = load(ours, str(tmp_path / "vgg16.pth"), caplog)
    assert "Converted 30 tensors of a VGG16 of torchvision; dropped 2: classifier.6.weight, " in (
        caplog.text
    )
    for stage, places in enumerate(CONVOLUTIONS, 1):
        for copy in (f"conv{stage}", f"conv{stage}_reg")[: 2 if stage == 5 else 1]:
            expected = {
                f"conv{i}.{name}": state[f"features.{place}.{name}"]
                for i, place in enumerate(places, 1)
                for name in ("weight", "bias")
            }
            assert_equal(part(ours, f"backbone.{copy}"), expected)
    for head in ("box_head", "reg_head"):
        expected = {
            f"fc{i}.{name}": state[f"classifier.{place}.{name}"]
            for i, place in ((1, 0), (2, 3))
            for name in ("weight", "bias")
        }
        assert_equal(part(ours, f"roi_heads.{head}"), expected)
    assert [line for line in lines if "from" in line or "none" in line] == [
        "  backbone.conv5_reg: 6 of 6 tensors, from backbone.conv5",
        "  proposal_generator.rpn_head: none of 6 tensors, the rest as initialised",
        "  roi_heads.box_predictor: none of 2 tensors, the rest as initialised",
        "  roi_heads.reg_head: 4 of 4 tensors, from roi_heads.box_head",
        "  roi_heads.reg_predictor: none of 2 tensors, the rest as initialised",
    ]


@pytest.mark.parametrize("name", [GRCN_VGG, FASTER_VGG])
def test_vgg16_as_it_stands_is_refused(name: str, tmp_path: Path) -> None:
    model, state = grcn_model(name), vgg_state()
    with pytest.raises(ValueError, match="the keys of torchvision and would load nothing; convert"):
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (vgg11, r"this is not a VGG16 of torchvision: no key begins with 'features.28.'"),
        (vgg19, r"does not fit VGG16 of torchvision: .* keys missing"),
        (
            vgg16_bn,
            r"this is a VGG with batch norms \('features.1.running_mean'\), from torchvision",
        ),
    ],
)
def test_other_vggs_are_refused(build: type, message: str) -> None:
    with torch.device("meta"):
        state = dict(build().state_dict())
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(state)


def test_tool_converts_vgg16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(vgg_state(), tmp_path / "vgg16.pth")
    assert tool.main([str(tmp_path / "vgg16.pth"), str(tmp_path / "out.pth")]) == 0
    said = capsys.readouterr().out
    assert f"Use it as MODEL.WEIGHTS with {GRCN_VGG}." in said
    record = torch.load(tmp_path / "out.pth")["converted_from"]
    assert (record["source"], record["depth"], record["num_classes"]) == ("torchvision", 0, 0)
    ours = grcn_model(GRCN_VGG)
    DoubleHeadCheckpointer(ours).load(str(tmp_path / "out.pth"))
    assert_equal(part(ours, "backbone.conv5_reg"), part(ours, "backbone.conv5"))


@pytest.mark.parametrize("name", [n for n in model_zoo.list_configs() if "VGG_16" in n])
def test_vgg_configs_see_images_as_torchvision_does(name: str) -> None:
    cfg = read_once(name)
    assert cfg.MODEL.WEIGHTS.endswith("/vgg16-397923af.pth") and cfg.INPUT.FORMAT == "RGB"
    mean, deviation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # of pixels from 0 to 1
    assert pytest.approx([255 * x for x in mean]) == list(cfg.MODEL.PIXEL_MEAN)
    assert pytest.approx([255 * x for x in deviation]) == list(cfg.MODEL.PIXEL_STD)
