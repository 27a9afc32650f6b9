"""Every setting that would build a wrong model is refused with key, value and what is allowed."""

import pytest
from detectron2.config import CfgNode

from builders import default_cfg, small_heads
from doublehead_d2 import model_zoo
from doublehead_d2.config import (
    check_config,
    check_conv_head_config,
    check_doublehead_config,
    check_model,
    fall_back_to_cpu,
)

NODE = "MODEL.ROI_DOUBLE_HEAD"


def test_defaults_are_plain_double_head() -> None:
    cfg = default_cfg("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead")
    check_doublehead_config(cfg)
    check_conv_head_config(cfg, in_channels=256)
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    assert (node.CLS_HEAD.LOSS_WEIGHT, node.CLS_HEAD.LAMBDA, node.CLS_HEAD.ROI_SCALE) == (2, 1, 1)
    assert (node.REG_HEAD.LOSS_WEIGHT, node.REG_HEAD.LAMBDA, node.REG_HEAD.ROI_SCALE) == (
        2.5,
        1,
        1.3,
    )
    assert (node.SCORE_FUSION, node.BOX_SOURCE) == ("cls_head", "reg_head")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([f"{NODE}.SCORE_FUSION", "sum"], "SCORE_FUSION is 'sum'; allowed: 'cls_head', 'reg_head'"),
        ([f"{NODE}.BOX_SOURCE", "both"], "BOX_SOURCE is 'both'; allowed: 'reg_head', 'cls_head'"),
        ([f"{NODE}.CLS_HEAD.LAMBDA", 1.2], "CLS_HEAD.LAMBDA is 1.2; allowed: 0 to 1"),
        ([f"{NODE}.REG_HEAD.LAMBDA", -0.1], "REG_HEAD.LAMBDA is -0.1; allowed: 0 to 1"),
        ([f"{NODE}.REG_HEAD.LAMBDA", float("nan")], "REG_HEAD.LAMBDA is nan; allowed: 0 to 1"),
        ([f"{NODE}.CLS_HEAD.LOSS_WEIGHT", 0.0], "CLS_HEAD.LOSS_WEIGHT is 0.0; allowed: a number"),
        ([f"{NODE}.REG_HEAD.ROI_SCALE", 0.0], "REG_HEAD.ROI_SCALE is 0.0; allowed: a number"),
        (["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 0.0], "BBOX_REG_LOSS_WEIGHT is 0.0"),
        ([f"{NODE}.SCORE_FUSION", "complementary"], "class scores of REG_HEAD, which .* switches"),
        ([f"{NODE}.SCORE_FUSION", "average"], "'average' needs the class scores of REG_HEAD"),
        ([f"{NODE}.SCORE_FUSION", "max"], r"one of \['cls_head'\]"),
        ([f"{NODE}.SCORE_FUSION", "reg_head"], "'reg_head' needs the class scores of REG_HEAD"),
        ([f"{NODE}.BOX_SOURCE", "cls_head"], "'cls_head' needs the boxes of CLS_HEAD"),
        ([f"{NODE}.CLS_HEAD.LAMBDA", 0.0], "'cls_head' needs the class scores of CLS_HEAD"),
        ([f"{NODE}.REG_HEAD.LAMBDA", 0.0], "'reg_head' needs the boxes of REG_HEAD"),
        (
            [f"{NODE}.REG_HEAD.NAME", "ConvHead"],
            "REG_HEAD.NAME is 'ConvHead'; .*FastRCNNConvFCHead",
        ),
        (["MODEL.ROI_BOX_HEAD.NAME", "Head"], "ROI_BOX_HEAD.NAME is 'Head'; .*DoubleHeadConvHead"),
        ([f"{NODE}.CONV_HEAD.BLOCKS", ["residual", "attention"]], "BLOCKS is 'attention'; allowed"),
        ([f"{NODE}.CONV_HEAD.BLOCKS", ["bottleneck"]], "'residual' must be its first block"),
        ([f"{NODE}.CONV_HEAD.BLOCKS", ["residual", "residual"]], "stand only there"),
        ([f"{NODE}.CONV_HEAD.BLOCKS", []], "'residual' must be its first block"),
        (
            [f"{NODE}.CONV_HEAD.NONLOCAL_GROUPS", 3],
            "GROUPS is 3; allowed: a divisor .* which is 16",
        ),
        ([f"{NODE}.CONV_HEAD.NORM", "Batch"], "NORM is 'Batch'; allowed: 'BN'"),
        ([f"{NODE}.CONV_HEAD.NORM", "GN"], "BOTTLENECK_DIM is 8; .* a multiple of 32"),
        (
            [f"{NODE}.CONV_HEAD.NORM", "GN", f"{NODE}.CONV_HEAD.BOTTLENECK_DIM", 32],
            r"channels \(MODEL.FPN.OUT_CHANNELS\) is 8; .* a multiple of 32",
        ),
        ([f"{NODE}.LEGACY_BOXES", True], "POOLER_TYPE is 'ROIAlignV2'; .* allowed: 'ROIAlign'"),
        ([f"{NODE}.CONV_HEAD.DIM", 0], "CONV_HEAD.DIM is 0; allowed: a number above 0"),
    ],
)
def test_invalid_settings_are_refused_when_the_model_is_built(opts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_heads(*opts)


@pytest.mark.parametrize(
    ("opts"),
    [
        [f"{NODE}.CLS_HEAD.LAMBDA", 0.0, f"{NODE}.REG_HEAD.LAMBDA", 0.5]
        + [f"{NODE}.SCORE_FUSION", "reg_head"],
        [f"{NODE}.REG_HEAD.LAMBDA", 0.0, f"{NODE}.CLS_HEAD.LAMBDA", 0.5]
        + [f"{NODE}.BOX_SOURCE", "cls_head"],
    ],
)
def test_lambda_zero_is_allowed_where_the_other_head_does_the_task(opts: list) -> None:
    small_heads(*opts)


def test_fall_back_to_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = default_cfg("MODEL.DEVICE", "cuda:1")
    fall_back_to_cpu(cfg)
    assert cfg.MODEL.DEVICE == "cpu"
    assert len(caplog.records) == 1 and "cuda:1" in caplog.text
    fall_back_to_cpu(cfg)
    assert len(caplog.records) == 1

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cfg = default_cfg("MODEL.DEVICE", "cuda")
    fall_back_to_cpu(cfg)
    assert cfg.MODEL.DEVICE == "cuda"


@pytest.mark.parametrize(
    "device", ["gpu", "cuda0", "cuda:x", "cudaa", "meta", "cpu:0", "", "xpu:99"]
)
@pytest.mark.parametrize("gpus", [0, 2])
def test_devices_that_are_none(device: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    cfg = default_cfg("MODEL.DEVICE", repr(device))
    fall_back_to_cpu(cfg)
    here = "'cpu', 'cuda', 'cuda:0', 'cuda:1'" if gpus else "'cpu'"
    with pytest.raises(ValueError, match=f"MODEL.DEVICE is '{device}'; allowed here: {here}$"):
        check_model(cfg)
    with pytest.raises(ValueError, match=f"device is '{device}'; allowed here: {here}$"):
        model_zoo.get("Shapes-Detection/double_head_rcnn_tiny.yaml", device=device)


def test_numbers_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without CUDA the CPU takes the model, so that what is asked for need not be here.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_model(default_cfg("MODEL.DEVICE", "cuda:9"))
    with pytest.raises(ValueError, match="device is 'cuda'; allowed here: 'cpu'"):
        model_zoo.get("Shapes-Detection/double_head_rcnn_tiny.yaml", device="cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_model(default_cfg("MODEL.DEVICE", "cuda:1"))
    with pytest.raises(ValueError, match="'cuda:2'; allowed here: 'cpu', 'cuda', 'cuda:0', 'cud"):
        check_model(default_cfg("MODEL.DEVICE", "cuda:2"))


# --------------------------------------------------------------------------- before it is built

DOUBLE_HEAD = "COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml"
SINGLE_CONV = "Ablations/single_conv_w1.yaml"


def cfg_of(name: str, *opts: object) -> CfgNode:
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        (DOUBLE_HEAD, [f"{NODE}.CLS_HEAD.LAMBDA", 1.2], "CLS_HEAD.LAMBDA is 1.2; allowed: 0 to 1"),
        (DOUBLE_HEAD, [f"{NODE}.CONV_HEAD.BLOCKS", ["nonlocal"]], "'residual' must be its first"),
        (SINGLE_CONV, [f"{NODE}.CONV_HEAD.BLOCKS", ["nonlocal"]], "'residual' must be its first"),
        (DOUBLE_HEAD, ["INPUT.RESIZE_RULE", "pil"], "RESIZE_RULE is 'pil'; allowed: 'detectron2'"),
        (DOUBLE_HEAD, ["MODEL.ROI_HEADS.NAME", "ROIs"], "NAME is 'ROIs'; allowed: .*'DoubleHeadR"),
        (DOUBLE_HEAD, ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True] * 4], "a GPU, and MODEL.DEVIC"),
        (DOUBLE_HEAD, ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0], "RESOLUTION is 0; allowed: a n"),
    ],
)
def test_what_cannot_be_built_is_refused_before(name: str, opts: list, message: str) -> None:
    check_model(cfg_of(name))
    with pytest.raises(ValueError, match=message):
        check_model(cfg_of(name, *opts))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITER", 0], "SOLVER.MAX_ITER is 0; allowed: a number above 0"),
        (["SOLVER.CHECKPOINT_PERIOD", 0], "CHECKPOINT_PERIOD is 0; allowed: a number above 0"),
        (["SOLVER.CHECKPOINT_PERIOD", -1], "CHECKPOINT_PERIOD is -1; allowed: a number above 0"),
        (["DATALOADER.NUM_WORKERS", -1], "DATALOADER.NUM_WORKERS is -1; allowed: "),
    ],
)
def test_what_a_training_would_stumble_over_later(opts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(cfg_of(DOUBLE_HEAD, *opts))
    check_config(cfg_of(DOUBLE_HEAD, *opts[:1], abs(opts[1]) + 1))


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model would fall back to the CPU, and fail in its first iteration."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    opts = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True] * 4, "MODEL.DEVICE", "cuda"]
    with pytest.raises(ValueError, match="a GPU, and CUDA is not available"):
        check_model(cfg_of(DOUBLE_HEAD, *opts))


@pytest.mark.parametrize("architecture", ["RetinaNet", "ProposalNetwork", "MyOwn"])
def test_models_without_roi_heads_are_left_alone(architecture: str) -> None:
    opts = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.ROI_HEADS.NAME", ""]
    cfg = cfg_of(DOUBLE_HEAD, *opts, f"{NODE}.CLS_HEAD.LAMBDA", 7.0)
    check_config(cfg)
    cfg.TEST.DOUBLE_HEAD_MODES = True
    with pytest.raises(ValueError, match=f"META_ARCHITECTURE is '{architecture}'; allowed: 'Gen"):
        check_config(cfg)
