"""Parameters and FLOPs against derivations by hand, the paper, fvcore and golden numbers."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn

from builders import model_of
from conftest import REPOSITORY
from doublehead_d2 import DoubleHeadConvHead, model_zoo
from doublehead_d2.benchmark import complexity
from doublehead_d2.benchmark.complexity import count_flops, count_parameters, model_complexity
from doublehead_d2.tools import complexity as tool

GOLDEN = REPOSITORY / "tests" / "golden" / "complexity.json"
REWRITE = (
    "if meant, run `python -m doublehead_d2.tools.complexity --json tests/golden/complexity.json`"
)
CONFIGS = model_zoo.list_configs()
TINY_EXT = "Shapes-Detection/double_head_ext_rcnn_tiny.yaml"
R_50_EXT = "COCO-Detection/double_head_ext_rcnn_R_50_FPN_1x.yaml"


def read(name: str, *opts: object) -> CfgNode:
    cfg = model_zoo.read_config(model_zoo.get_config_file(name))
    cfg.merge_from_list(list(opts))
    return cfg


def small_config(*opts: object) -> CfgNode:
    """32 channels, RoIs of 7 x 7, 3 classes, heads small enough to be counted by hand."""
    return read(
        TINY_EXT,
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
        *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
        *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.BLOCKS", ["residual", "nonlocal", "bottleneck"]),
        *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.DIM", 64),
        *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.BOTTLENECK_DIM", 8),
        *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NONLOCAL_DIM", 32),
        *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NONLOCAL_GROUPS", 4),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 10),
        *opts,
    )


def test_fc_head_by_hand() -> None:
    counts = model_complexity(small_config())
    # weights: fc1 32 * 49 * 16 = 25,088, fc2 16 * 16 = 256, cls 16 * (3 + 1) = 64,
    # boxes 16 * (4 * 3) = 192: 25,600; biases 16 + 16 + 4 + 12 = 48
    assert counts["parameters"]["box_head"] == 25_600 + 48
    # every weight is used once a RoI
    assert counts["flops"]["box_head"] == 10 * 25_600


def test_conv_head_by_hand() -> None:
    counts = model_complexity(small_config())
    # weights: residual 3x3 9 * 32 * 32 = 9,216, two 1x1 32 * 64 = 2,048 each: 13,312
    #          nonlocal four 1x1 64 * 32 = 2,048 each: 8,192
    #          bottleneck 64 * 8 + 9 * 8 * 8 + 8 * 64 = 1,600
    convolutions = 13_312 + 8_192 + 1_600
    # predictors: cls 64 * (3 + 1) = 256, boxes 64 * (4 * 3) = 768
    predictors = 256 + 768
    # biases: nonlocal 3 * 32 + 64, predictors 4 + 12
    biases = 160 + 16
    # batch norm, scale and shift: residual 32 + 64 + 64, nonlocal 64, bottleneck 8 + 8 + 64
    norms = 2 * (160 + 64 + 80)
    assert counts["parameters"]["reg_head"] == convolutions + predictors + biases + norms
    # Convolutions keep the 7 x 7 positions. A group of 32 / 4 channels attends by 49 x 8 times
    # 8 x 49 and 8 x 49 times 49 x 49, and there are 4 groups.
    attention = 4 * (49 * 8 * 49 + 8 * 49 * 49)
    assert counts["flops"]["reg_head"] == 10 * (49 * convolutions + attention + predictors)


def test_non_local_block_of_the_paper_by_hand() -> None:
    names = ("Ablations/conv_head_k2.yaml", "Ablations/conv_head_nl_k3.yaml")
    without, with_block = (model_complexity(read(name))["flops"]["reg_head"] for name in names)
    # four 1x1 of 1024 x 512 at 49 positions; two products of 49 x 49 x 128 in each of 4 groups
    assert with_block - without == 1000 * (49 * 4 * 1024 * 512 + 4 * 2 * 49 * 49 * 128)


def test_deformable_convolution_by_hand() -> None:
    plain = model_complexity(read(R_50_EXT))
    stages = ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True])
    # blocks, width and positions of the 3x3 convolutions of res3, res4 and res5 at 800 x 1216
    res = [(4, 128, 100 * 152), (6, 256, 50 * 76), (3, 512, 25 * 38)]
    for modulated, groups, channels in [(False, 1, 18), (True, 1, 27), (True, 2, 54)]:
        modulation = ("MODEL.RESNETS.DEFORM_MODULATED", modulated)
        grouping = ("MODEL.RESNETS.DEFORM_NUM_GROUPS", groups)
        deform = model_complexity(read(R_50_EXT, *stages, *modulation, *grouping))
        added = {kind: deform[kind]["backbone"] - plain[kind]["backbone"] for kind in plain}
        assert added == {
            "parameters": sum(n * (9 * width * channels + channels) for n, width, _ in res),
            "flops": sum(n * positions * 9 * width * channels for n, width, positions in res),
        }


# Table 2 of the paper, parameters of the conv-head
TABLE_2 = {
    **{f"k{k}": m for k, m in enumerate((1.06, 2.13, 3.19, 4.25, 5.31, 6.38, 7.44), start=1)},
    **{"nl_k3": 4.13, "nl_k5": 7.19, "nl_k7": 10.25},
}


@pytest.mark.parametrize("variant", TABLE_2)
def test_table_2_of_the_paper(variant: str) -> None:
    """Its M is 2^20 and counts the weights of convolutions alone, no biases, no batch norm."""
    cfg = read(f"Ablations/conv_head_{variant}.yaml")
    with torch.device("meta"):
        head = DoubleHeadConvHead(cfg, ShapeSpec(channels=cfg.MODEL.FPN.OUT_CHANNELS))
    weights = sum(m.weight.numel() for m in head.modules() if isinstance(m, nn.Conv2d))
    assert weights / 2**20 == pytest.approx(TABLE_2[variant], abs=0.006)


def test_flops_are_fvcores() -> None:
    cfg = small_config(
        *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]),
        *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2),
    )
    model = build_model(cfg).eval()
    heads, image = model.roi_heads, torch.zeros(1, 3, 64, 96)
    features = [torch.zeros(1, 32, 64 // s, 96 // s) for s in (4, 8, 16, 32, 64)]
    features[-1] = torch.zeros(1, 32, 1, 2)  # p6 of 2 x 3: a pooling without padding
    rois = torch.zeros(3, 32, 7, 7)
    parts = {
        "backbone": (model.backbone, image),
        "rpn": (model.proposal_generator.rpn_head, features),
        "box_head": (nn.Sequential(heads.box_head, heads.box_predictor), rois),
        "reg_head": (nn.Sequential(heads.reg_head, heads.reg_predictor), rois),
        "mask_head": (nn.Sequential(*heads.mask_head), torch.zeros(2, 32, 14, 14)),
        "keypoint_head": (nn.Sequential(*heads.keypoint_head), torch.zeros(2, 32, 14, 14)),
    }
    expected = {}
    for name, (module, x) in parts.items():
        with torch.no_grad():
            analysis = FlopCountAnalysis(module, (x,)).tracer_warnings("none")
            operators = analysis.unsupported_ops_warnings(False).by_operator()
        expected[name] = sum(operators[name] for name in ("conv", "linear", "matmul"))
    counted = count_flops(model, (64, 96), num_rois=3, num_detections=2)
    assert counted == {**expected, "total": sum(expected.values())}


def test_a_model_that_trains_is_left_as_it_is() -> None:
    model = build_model(small_config("MODEL.DEVICE", "cpu")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops(model, (64, 64), num_rois=2, num_detections=2)
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert count_parameters(model) == model_complexity(small_config())["parameters"]


@pytest.mark.parametrize(
    ("min_size", "max_size", "expected"),
    [
        (800, 1333, (800, 1216)),
        (0, 1333, (800, 1216)),
        (128, 128, (128, 128)),
        (100, 130, (128, 160)),
    ],
)
def test_image_size(min_size: int, max_size: int, expected: tuple[int, int]) -> None:
    cfg = read(TINY_EXT, "INPUT.MIN_SIZE_TEST", min_size, "INPUT.MAX_SIZE_TEST", max_size)
    assert complexity.counted_image_size(cfg, size_divisibility=32) == expected


def test_what_cannot_be_counted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ROI_HEADS.NAME is 'CascadeROIHeads'"):
        cascade = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
        model_complexity(small_config(*cascade, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True))
    model = build_model(small_config("MODEL.DEVICE", "cpu"))
    monkeypatch.setattr(complexity, "DeformConv", nn.Conv2d)  # the real one needs operators
    with pytest.raises(ValueError, match="deformable convolutions cannot be traced"):
        count_flops(model, (64, 64), num_rois=2, num_detections=2)


def golden() -> dict[str, dict[str, dict[str, int]]]:
    assert GOLDEN.is_file(), f"no {GOLDEN.name}; {REWRITE}"
    return json.loads(GOLDEN.read_text())


COUNTED: dict[str, dict] = {}  # by model: configs of several schedules share one


@pytest.mark.parametrize("name", CONFIGS)
def test_complexity_is_golden(name: str) -> None:
    cfg = read(name)
    model = model_of(cfg)
    if model not in COUNTED:
        COUNTED[model] = model_complexity(cfg)
    assert COUNTED[model] == golden().get(name), REWRITE


def test_golden_numbers_are_of_the_zoo() -> None:
    assert sorted(golden()) == CONFIGS, REWRITE


def test_model_zoo_has_the_golden_numbers_of_every_config() -> None:
    text = (REPOSITORY / "docs" / "MODEL_ZOO.md").read_text(encoding="utf-8")
    listed = []
    for line in text.splitlines():
        names = re.findall(r"\]\(\.\./configs/(.+?\.yaml)\)", line)
        if not names or not line.startswith("|"):
            continue
        listed += names
        _, _, _, parameters, flops, _, _ = line.split("|")
        for column, key, unit in ((parameters, "parameters", 1e6), (flops, "flops", 1e9)):
            # One number stands for all configs of the row.
            shown = [float(number) for number in column.split(",")]
            shown *= len(names) if len(shown) == 1 else 1
            counted = [round(golden()[name][key]["total"] / unit, 1) for name in names]
            assert shown == counted, line
    assert sorted(listed) == CONFIGS


def test_tool_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "complexity.json"
    names = ["Shapes-Detection/single_fc_rcnn_tiny.yaml", TINY_EXT]
    assert tool.main([*names, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["config", *names]
    assert len({len(line) for line in lines}) == 1, "columns are not aligned"
    written = json.loads(path.read_text())
    assert list(written) == names
    assert written[TINY_EXT] == model_complexity(read(TINY_EXT))
    total = written[TINY_EXT]["parameters"]["total"]
    assert lines[2].split()[1] == f"{total / 10**6:.2f}"
    assert lines[1].split()[3] == lines[1].split()[6] == "-", "Single-FC has no second head"


def test_no_rpn_with_precomputed_proposals() -> None:
    opts = ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    with_rpn, without = (model_complexity(small_config(*o)) for o in ((), opts))
    for counts, less in zip(with_rpn.values(), without.values(), strict=True):
        assert "rpn" not in less and less["total"] == counts["total"] - counts["rpn"]


def test_tool_names_an_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.yaml").write_text("MODEL:\n  NO_SUCH_KEY: 1\n")
    assert tool.main([str(tmp_path / "bad.yaml")]) == 1
    assert "MODEL.NO_SUCH_KEY" in capsys.readouterr().err


def test_tool_names_the_nearest_config(capsys: pytest.CaptureFixture) -> None:
    assert tool.main([TINY_EXT, "Shapes-Detection/single_fc.yaml"]) == 1
    captured = capsys.readouterr()
    assert "no config file 'Shapes-Detection/single_fc.yaml'" in captured.err
    assert "single_fc_rcnn_tiny.yaml" in captured.err and not captured.out


def test_tool_refuses_a_folder_before_it_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "model_complexity", lambda cfg: pytest.fail("counted first"))
    assert tool.main([TINY_EXT, "--json", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"'{tmp_path}' is a folder; allowed: a file to write\n"
