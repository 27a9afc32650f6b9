"""Renaming and rearranging published weights: by hand, exactly; refused where they do not fit."""

import logging
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from doublehead_d2.checkpoint import convert_checkpoint
from doublehead_d2.checkpoint.sources import SOURCES, recognise
from doublehead_d2.checkpoint.sources.recognise import COMMAND
from doublehead_d2.checkpoint.sources.renames import (
    Rename,
    background_last,
    without_background_box,
)
from doublehead_d2.tools import convert_checkpoint as tool
from foreign import foreign_checkpoint, foreign_state, key_file, tiny_cfg

NAMES = {"mmdet": "mmdet", "official": "maskrcnn_benchmark", "tsd": "tsd", "tsd_mask": "tsd"}
TSD = pytest.mark.parametrize("source", ["tsd", "tsd_mask"])
SOURCE = pytest.mark.parametrize("source", NAMES)
ZERO = torch.zeros(1)
SCORES = "roi_heads.box.predictor.cls_score"


def full_table(source: str) -> list[Rename]:
    """Of an R50, with a mask head where the source's model has one."""
    description = SOURCES[NAMES[source]]
    masks = description.mask_renames() if source.endswith("_mask") else ()
    return [*description.renames(50), *masks]


@SOURCE
def test_table_has_every_key_once(source: str) -> None:
    table = full_table(source)
    theirs = [rename.theirs for rename in table]
    ours = [rename.ours for rename in table if rename.ours]
    assert sorted(theirs) == sorted(columns[0] for columns in key_file(source))
    assert len(set(theirs)) == len(theirs) and len(set(ours)) == len(ours)
    assert sorted(ours) == sorted(build_model(tiny_cfg(source)).state_dict())


@TSD
def test_every_tsd_key_goes_where_the_list_says(source: str) -> None:
    """Names and rows at full size, and each tensor that stays."""
    state, rows = foreign_state(source, "R-50"), key_file(source)
    converted = convert_checkpoint({"state_dict": state})
    assert len(converted) == sum(row[3] != "(dropped)" for row in rows)
    for key, _, _, ours, operation in rows:
        if ours == "(dropped)":
            continue
        expected = state[key]
        if operation.startswith("rows 1..80, then 0"):
            expected = torch.cat([expected[1:81], expected[:1]])
        elif operation.startswith("drop rows 0..3"):
            expected = expected[4:]
        elif operation.startswith("drop row 0"):
            expected = expected[1:]
        else:
            assert operation == "-" and converted[ours] is expected
        torch.testing.assert_close(converted[ours], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("source", "depth"), [("official", 101), ("tsd", 101), ("tsd", 152)])
def test_table_of_deeper_resnets(source: str, depth: int) -> None:
    table = list(SOURCES[NAMES[source]].renames(depth))
    cfg = tiny_cfg(source, "MODEL.RESNETS.DEPTH", depth)
    ours = [rename.ours for rename in table if rename.ours]
    assert sorted(ours) == sorted(build_model(cfg).state_dict())


@SOURCE
@pytest.mark.parametrize("given", ["auto", "named"])
def test_converted_weights_load_strictly(source: str, given: str) -> None:
    model = build_model(tiny_cfg(source))
    name = "auto" if given == "auto" else NAMES[source]
    model.load_state_dict(convert_checkpoint(foreign_checkpoint(source), name), strict=True)


@SOURCE
def test_containers_and_prefixes_do_not_matter(source: str) -> None:
    state = foreign_state(source)
    wrapped = OrderedDict((f"module.{key}", value) for key, value in state.items())
    expected = convert_checkpoint(state)
    for checkpoint in ({"model": wrapped}, {"state_dict": state, "meta": {}}, wrapped):
        torch.testing.assert_close(convert_checkpoint(checkpoint), expected, rtol=0, atol=0)


def test_most_of_the_official_weights_stay_as_they_are() -> None:
    state = foreign_state("official")
    converted = convert_checkpoint(state)
    theirs = "roi_heads.box.feature_extractor.shared_nonlocal.1.ffconv.bottleneck.3.weight"
    assert converted["roi_heads.reg_head.blocks.4.conv2.weight"] is state[theirs]


def test_background_moves_from_first_to_last() -> None:
    # background 10, classes 11 and 12
    assert background_last(torch.tensor([10, 11, 12])).tolist() == [11, 12, 10]
    state = foreign_state("official")
    converted = convert_checkpoint(state)
    for theirs, ours in ((SCORES, "reg_predictor"), (f"{SCORES}_fc", "box_predictor")):
        for name in ("weight", "bias"):
            rows = converted[f"roi_heads.{ours}.cls_score.{name}"]
            torch.testing.assert_close(rows[:5], state[f"{theirs}.{name}"][1:])
            torch.testing.assert_close(rows[5], state[f"{theirs}.{name}"][0])


def test_boxes_of_background_go() -> None:
    # K = 1: 4 rows of background, 4 of the class; class-agnostic files have the same 8.
    assert without_background_box(torch.arange(8)).tolist() == [4, 5, 6, 7]
    state = foreign_state("official")
    converted = convert_checkpoint(state)
    boxes = converted["roi_heads.box_predictor.bbox_pred.weight"]
    torch.testing.assert_close(boxes, state["roi_heads.box.predictor.bbox_pred_fc.weight"][4:])


@pytest.mark.parametrize("source", ["mmdet", "official"])
def test_class_agnostic_boxes(source: str) -> None:
    state = foreign_state(source)
    first = 4 if source == "official" else 0
    for key in state:
        if ("bbox_pred" in key and "roi_heads" in key) or "fc_reg" in key:
            state[key] = state[key][: first + 4]
    converted = convert_checkpoint(state)
    model = build_model(tiny_cfg(source, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True))
    model.load_state_dict(converted, strict=True)
    theirs = "roi_heads.box.predictor.bbox_pred.bias"
    theirs = theirs if source == "official" else "roi_head.bbox_head.fc_reg.bias"
    ours = converted["roi_heads.reg_predictor.bbox_pred.bias"]
    torch.testing.assert_close(ours, state[theirs][first:])


def test_frozen_norms_scale_as_without_eps() -> None:
    state = foreign_state("official")
    model = build_model(tiny_cfg("official")).eval()
    model.load_state_dict(convert_checkpoint(state), strict=True)
    norm, theirs = model.backbone.bottom_up.stem.conv1.norm, "backbone.body.stem.bn1"
    variance = state[f"{theirs}.running_var"]
    torch.testing.assert_close(norm.running_var, variance - 1e-5)
    scale = state[f"{theirs}.weight"].double() / variance.double().sqrt()
    x = torch.randn(1, 4, 3, 3)
    mean, bias = (state[f"{theirs}.{name}"].double() for name in ("running_mean", "bias"))
    expected = (x.double() - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=2e-6)
    # those of the heads are batch norms on both sides
    head = "roi_heads.reg_head.blocks.0.conv1.norm.running_var"
    theirs = "roi_heads.box.feature_extractor.nonlocal_conv.bottom.1.running_var"
    torch.testing.assert_close(model.state_dict()[head], state[theirs], rtol=0, atol=0)


@SOURCE
def test_version_numbers_of_modules_are_not_carried(source: str) -> None:
    """Frozen norms subtract their epsilon from state dicts of version 2, that of batch norms."""
    state = foreign_state(source)
    prefixes = {key.rsplit(".", 1)[0] for key in state}
    state._metadata = OrderedDict((prefix, {"version": 2}) for prefix in prefixes)
    converted = convert_checkpoint(state)
    assert type(converted) is dict and not hasattr(converted, "_metadata")


def test_dropped_keys_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "doublehead_d2"):
        convert_checkpoint(foreign_checkpoint("mmdet"))
        convert_checkpoint(foreign_checkpoint("official"))
        convert_checkpoint(foreign_checkpoint("tsd_mask"))
    first, second, third = caplog.messages
    assert (
        "Converted 385 tensors of a Double-Head R-CNN R-50 of mmdetection with 5 cl" in first
        and "dropped 53: backbone.bn1.num_batches" in first
    )
    assert "Converted 379 tensors" in second
    assert second.endswith("cell_anchors.3, rpn.anchor_generator.cell_anchors.4")
    assert "Converted 329 tensors of a TSD R-50 of the TSD authors' code" in third
    assert "with 5 classes; dropped 53: backbone.bn1.num_batches" in third


@pytest.mark.parametrize(
    ("source", "key", "ours"),
    [
        ("official", f"{SCORES}.bias", "roi_heads.reg_predictor.cls_score.bias"),
        ("official", "backbone.body.layer4.2.bn3.running_var", "res5.2.conv3.norm.running_var"),
        ("official", "rpn.anchor_generator.cell_anchors.4", "dropped"),
        (
            "mmdet",
            "roi_head.bbox_head.conv_branch.3.bn3.num_batches_tracked",
            "blocks.4.conv3.norm",
        ),
        ("mmdet", "backbone.layer1.0.bn1.num_batches_tracked", "dropped"),
        ("tsd", "bbox_head.delta_r.2.bias", "roi_heads.offset_head.delta_r.2.bias"),
        ("tsd", "bbox_head.fc_cls.weight", "roi_heads.sibling_predictor.cls_score.weight"),
        ("tsd_mask", "mask_head.upsample.bias", "roi_heads.mask_head.deconv.bias"),
    ],
)
def test_a_missing_key_is_named_on_both_sides(source: str, key: str, ours: str) -> None:
    state = foreign_state(source)
    del state[key]
    model = SOURCES[NAMES[source]].model
    message = f"{model} R-50 of .*: 1 of its {len(state) + 1} keys missing: {key} "
    with pytest.raises(ValueError, match=rf"{message}\(.*{ours}.* here\); 0 keys left over$"):
        convert_checkpoint(state)


@SOURCE
def test_a_key_too_many_is_named(source: str) -> None:
    state = foreign_state(source)
    state["keypoint_head.conv.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="0 of its .* missing; 1 keys left over: keypoint_head.c"):
        convert_checkpoint(state)


def test_long_lists_are_shortened() -> None:
    state = foreign_state("mmdet")
    kept = {key: value for key, value in state.items() if not key.startswith("backbone.layer4")}
    with pytest.raises(ValueError, match="60 of its 438 keys missing: .* and 52 more; 0 keys left"):
        convert_checkpoint(kept)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"roi_head.bbox_head.shared_fcs.0.weight": torch.zeros(1)},
            "not a Double-Head R-CNN of mmdetection: no key begins with .*conv_branch.*roi_head",
        ),
        (
            {"roi_heads.box.feature_extractor.fc6.weight": torch.zeros(1)},
            "not a Double-Head R-CNN of the authors' code .*nonlocal_conv",
        ),
        (
            {"bbox_head.fc_cls.weight": ZERO, "bbox_head.shared_fcs.0.bias": ZERO},
            r"not a TSD of the TSD authors' code \(mmdetection 1\): no key begins with "
            r"'bbox_head.TSD_'; found 2 keys: bbox_head.\* \(2\)$",
        ),
        (
            {"bbox_head.0.TSD_fc_cls.weight": ZERO, "bbox_head.1.fc_cls.weight": ZERO},
            r"^this is a Cascade R-CNN, which has a box head for each of its stages "
            r"\('bbox_head.0.TSD_fc_cls.weight'\), from the TSD authors' .*, and is not converted$",
        ),
        (
            {
                "backbone.layer2.0.conv2.conv_offset.weight": ZERO,
                "bbox_head.TSD_fc_cls.weight": ZERO,
            },
            r"^this is a model with deformable convolutions \('backbone.layer2.0.conv2.conv_offset"
            r".weight'\), from the TSD authors' code \(mmdetection 1\), and is not converted$",
        ),
        (
            {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
            r"from none of the known sources: mmdetection \(roi_head.bbox_head\.\*\); .*the TSD "
            r"authors' code \(mmdetection 1\) \(bbox_head\.\*\); torchvision \(features\.\*\); "
            r"DetNet_pytorch \(layer5\.\*\); build_detnet_classifier \(res6\.\*\); "
            r"found 2 keys: conv1.\* \(1\), fc.\* \(1\)",
        ),
        (
            {"backbone.bottom_up.stem.conv1.weight": torch.zeros(1)},
            "keys of detectron2, which need no conversion",
        ),
        ({"roi_head.bbox_head.x": np.zeros(1)}, "'roi_head.bbox_head.x' is a ndarray"),
        ({0: torch.zeros(1)}, "keys of a state dict are strings; this one has 0"),
        ({"state_dict": {("a", 1): torch.zeros(1)}}, r"strings; this one has \('a', 1\)"),
        ({"model": {b"a": torch.zeros(1)}}, "strings; this one has b'a'"),
        ({"model": None}, "this is a NoneType"),
        ({"state_dict": {}}, "holds one; this is an empty dict"),
        ({}, "this is an empty dict"),
        ([], "this is a list"),
    ],
)
def test_other_files_are_refused_with_what_was_found(state: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(state)


def test_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="source is 'mmcv'; allowed: 'auto', 'mmdet', 'maskrcnn"):
        convert_checkpoint(foreign_checkpoint("mmdet"), "mmcv")


@SOURCE
def test_the_other_source_is_refused(source: str) -> None:
    other = next(name for name in SOURCES if name != NAMES[source])
    with pytest.raises(ValueError, match="this is not a Double-Head R-CNN of"):
        convert_checkpoint(foreign_checkpoint(source), other)


@pytest.mark.parametrize(
    ("source", "key", "rows", "message"),
    [
        ("mmdet", "roi_head.bbox_head.fc_reg.bias", 19, "19 rows; .* 5 classes allowed: 20 or 4"),
        ("official", f"{SCORES}_fc.weight", 7, "7 rows; with 5 classes allowed: 6$"),
        ("official", "roi_heads.box.predictor.bbox_pred.bias", 20, "allowed: 24 or 8"),
        ("tsd", "bbox_head.fc_cls.bias", 5, "5 rows; with 5 classes allowed: 6$"),
        ("tsd", "bbox_head.TSD_fc_reg.weight", 4, "4 rows; with 5 classes allowed: 24$"),
        ("tsd_mask", "mask_head.conv_logits.bias", 5, "5 rows; with 5 classes allowed: 6$"),
    ],
)
def test_rows_of_classes_and_boxes_must_agree(
    source: str, key: str, rows: int, message: str
) -> None:
    state = foreign_state(source)
    state[key] = torch.zeros(rows)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(state)


# ------------------------------------------------------------- foreign weights in our own modules


@SOURCE
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_model_refuses_foreign_weights(source: str, prefix: str) -> None:
    model = build_model(tiny_cfg(source))
    before = {key: value.clone() for key, value in model.named_parameters()}
    state = {f"{prefix}{key}": value for key, value in foreign_state(source).items()}
    for strict in (True, False):
        with pytest.raises(
            ValueError,
            match="would load nothing; convert them .*: MODEL.WEIGHTS doublehead://"
            + source.removesuffix("_mask"),
        ) as error:
            model.load_state_dict(state, strict=strict)
        assert COMMAND in str(error.value)
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)


def test_the_model_takes_its_own_and_other_weights_of_detectron2() -> None:
    model = build_model(tiny_cfg("official"))
    model.load_state_dict(model.state_dict())
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    model.load_state_dict({**backbone, "fc1000.weight": torch.zeros(2)}, strict=False)


def test_of_two_systems_of_a_code_base_the_right_one_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the other one is asked first, and where neither fits exactly."""
    mark = SOURCES["mmdet"].mark
    other = SOURCES["mmdet"]._replace(name="other", model="Other", model_mark=f"{mark}x")
    monkeypatch.setattr(recognise, "SOURCES", {"other": other, **SOURCES})
    assert recognise.find_source(foreign_state("mmdet")) == "mmdet"
    assert recognise.find_source(["roi_head.bbox_head.xyz", "backbone.conv1"]) == "other"
    assert recognise.find_source(["roi_head.bbox_head.fc_cls"]) == "other"  # the first
    assert recognise.find_source(["backbone.conv1"]) is None


def test_mmdetection_1_and_2_are_told_apart() -> None:
    for source in NAMES:
        assert recognise.find_source(foreign_state(source)) == NAMES[source]
    # A box head of mmdetection 1 without TSD is refused by the source that knows its names.
    assert recognise.find_source(["bbox_head.fc_cls.weight"]) == "tsd"
    assert recognise.find_source(["roi_heads.box_head.fc1.weight"]) is None


@pytest.mark.parametrize(
    ("depth", "masks", "classes", "use"),
    [
        (50, False, 80, "rcnn_R_50_FPN_1x.yaml."),
        (152, False, 80, "rcnn_R_152_FPN_1x.yaml."),
        (50, True, 80, "mask_rcnn_R_50_FPN_1x.yaml."),
        (101, True, 80, "mask_rcnn_R_50_FPN_1x.yaml and MODEL.RESNETS.DEPTH 101."),
        (50, False, 500, "rcnn_R_50_FPN_1x.yaml and MODEL.ROI_HEADS.NUM_CLASSES 500."),
    ],
)
def test_tool_names_the_config_of_a_tsd(depth: int, masks: bool, classes: int, use: str) -> None:
    record = {"source": "tsd", "depth": depth, "num_classes": classes, "masks": masks}
    assert tool._use(record) == f"Use it as MODEL.WEIGHTS with Imported/official_tsd_{use}"


def test_refusal_without_published_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mmdet", SOURCES["mmdet"]._replace(published={}))
    with pytest.raises(ValueError, match=r"doublehead_d2.checkpoint.convert_checkpoint\)$"):
        recognise.refuse_foreign_keys(foreign_state("mmdet"))


def test_tool_names_no_config_where_none_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mmdet", SOURCES["mmdet"]._replace(published={}))
    record = {"source": "mmdet", "depth": 50, "num_classes": 80, "masks": False}
    assert tool._use(record) == "Converted; no config of the zoo is made for it."
