"""From a detector to other classes: what is taken, what starts anew, and what is said of it."""

import logging
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from builders import grcn_cfg, narrow, read_once, small_cfg
from conftest import TINY_EXT
from doublehead_d2.checkpoint import DoubleHeadCheckpointer, published
from doublehead_d2.data.classes import Named
from doublehead_d2.engine import argument_parser, main
from doublehead_d2.engine.log import start_logging
from doublehead_d2.engine.weights_classes import classes_of_weights, note_kept_predictors
from doublehead_d2.modeling.parts import class_layers
from places import CLASSES, Place, cfg_for, notes_of

AGNOSTIC = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
CLASSES_KEY = "MODEL.ROI_HEADS.NUM_CLASSES"
EXT = [  # as Double-Head-Ext: both heads have both predictors
    *("MODEL.ROI_DOUBLE_HEAD.CLS_HEAD.LAMBDA", 0.7),
    *("MODEL.ROI_DOUBLE_HEAD.REG_HEAD.LAMBDA", 0.8),
]
STOCK = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads")
SCORES, BOXES = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"


def narrowed(name: str, *opts: object) -> CfgNode:
    """A config of the zoo with 5 classes, a sixteenth of its backbone and narrow heads."""
    cfg = read_once(name).clone()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "cpu", "", 5
    narrow(cfg, backbone=16, heads=32)
    cfg.merge_from_list(list(opts))
    return cfg


# With the layers that have outputs for each class
SYSTEMS = {
    "double_head_ext": (
        small_cfg(*EXT),
        [SCORES, BOXES, "roi_heads.reg_predictor.cls_score", "roi_heads.reg_predictor.bbox_pred"],
    ),
    "double_head_ext_agnostic": (
        small_cfg(*EXT, *AGNOSTIC),
        [SCORES, "roi_heads.reg_predictor.cls_score"],
    ),
    "mask": (
        small_cfg(
            *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]),
        ),
        [SCORES, "roi_heads.reg_predictor.bbox_pred", "roi_heads.mask_head.predictor"],
    ),
    "mask_agnostic": (
        small_cfg(
            *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
        ),
        [SCORES, "roi_heads.reg_predictor.bbox_pred"],
    ),
    "stock": (small_cfg(*STOCK), [SCORES, BOXES]),
    "cascade": (
        small_cfg("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *AGNOSTIC),
        [f"roi_heads.box_predictor.{i}.cls_score" for i in range(3)],
    ),
    "tsd": (
        narrowed("COCO-Detection/tsd_rcnn_R_50_FPN_1x.yaml"),
        [
            SCORES,
            "roi_heads.reg_predictor.bbox_pred",
            "roi_heads.sibling_predictor.cls_score",
            "roi_heads.sibling_predictor.bbox_pred",
        ],
    ),
    "detnet": (
        narrowed(
            "COCO-Detection/double_head_rcnn_DetNet_59_FPN_1x.yaml", "MODEL.DETNET.NORM", "BN"
        ),
        [SCORES, "roi_heads.reg_predictor.bbox_pred"],
    ),
    "grcn": (
        grcn_cfg("COCO-Detection/grcn_R_50_C5_1x.yaml"),
        [SCORES, "roi_heads.reg_predictor.bbox_pred"],
    ),
}
SYSTEM = pytest.mark.parametrize("system", SYSTEMS)


def model_of(cfg: CfgNode, *opts: object, seed: int = 0) -> nn.Module:
    cfg = cfg.clone()
    cfg.merge_from_list(list(opts))
    torch.manual_seed(seed)
    return build_model(cfg)


def saved(model: nn.Module, folder: Path) -> str:
    DoubleHeadCheckpointer(model, str(folder)).save("model_final")
    (folder / "last_checkpoint").unlink()
    return str(folder / "model_final.pth")


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: x.clone() for key, x in model.state_dict().items()}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name.startswith("doublehead_d2")
    ]


def summary_of(caplog: pytest.LogCaptureFixture) -> str:
    return next(m for m in reversed(caplog.messages) if m.startswith("Loaded from"))


# -- what starts anew ------------------------------------------------------------------------------


@SYSTEM
@pytest.mark.parametrize("fewer", [0, 1])
def test_the_file_fills_all_but_the_predictors(
    system: str, fewer: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another number of classes, and of the same with MODEL.NEW_PREDICTORS."""
    cfg, layers = SYSTEMS[system]
    theirs = model_of(cfg)
    path = saved(theirs, tmp_path)
    ours = model_of(cfg, CLASSES_KEY, cfg.MODEL.ROI_HEADS.NUM_CLASSES - fewer, seed=1)
    before, file = state_of(ours), state_of(theirs)
    by_class = [key for key in before if key.rpartition(".")[0] in layers]
    assert len(by_class) == 2 * len(layers)
    assert not fewer or all(before[key].shape != file[key].shape for key in by_class)
    with caplog.at_level(logging.INFO, "doublehead_d2"):
        DoubleHeadCheckpointer(ours, new_predictors=not fewer).resume_or_load(path, resume=False)
    expected = {**file, **{key: before[key] for key in by_class}}
    torch.testing.assert_close(state_of(ours), expected, rtol=0, atol=0)
    assert warnings_of(caplog) == []
    line = "of another shape, as initialised: " if fewer else "anew by MODEL.NEW_PREDICTORS: "
    (told,) = (x for x in summary_of(caplog).splitlines() if line in x)
    assert all(layer in told for layer in layers)


def test_of_one_class_boxes_are_kept(tmp_path: Path) -> None:
    """They are as good for another."""
    assert class_layers(model_of(small_cfg(*STOCK, CLASSES_KEY, 1))) == [SCORES]


def test_a_resumed_training_keeps_its_predictors(tmp_path: Path) -> None:
    theirs = model_of(small_cfg())
    DoubleHeadCheckpointer(theirs, str(tmp_path)).save("model_0000001")
    ours = model_of(small_cfg(), seed=1)
    checkpointer = DoubleHeadCheckpointer(ours, str(tmp_path), new_predictors=True)
    checkpointer.resume_or_load("", resume=True)
    torch.testing.assert_close(state_of(ours), state_of(theirs), rtol=0, atol=0)


def test_without_a_checkpoint_to_resume_predictors_start_anew(tmp_path: Path) -> None:
    path = saved(model_of(small_cfg()), tmp_path)
    ours = model_of(small_cfg(), seed=1)
    before = state_of(ours)[f"{SCORES}.weight"]
    checkpointer = DoubleHeadCheckpointer(ours, str(tmp_path / "run"), new_predictors=True)
    checkpointer.resume_or_load(path, resume=True)
    assert torch.equal(state_of(ours)[f"{SCORES}.weight"], before)
    checkpointer.load(path)  # as an evaluation does
    assert not torch.equal(state_of(ours)[f"{SCORES}.weight"], before)


def test_detectron2s_models_fill_double_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another number of classes: backbone, FPN, RPN and fc-head."""
    theirs, ours = model_of(small_cfg(*STOCK)), model_of(small_cfg(*EXT, CLASSES_KEY, 2), seed=1)
    DoubleHeadCheckpointer(ours).resume_or_load(saved(theirs, tmp_path), resume=False)
    file, before = state_of(theirs), state_of(model_of(small_cfg(*EXT, CLASSES_KEY, 2), seed=1))
    for key, value in state_of(ours).items():
        taken = "reg_" not in key and "box_predictor" not in key
        torch.testing.assert_close(value, (file if taken else before)[key], rtol=0, atol=0)
    assert warnings_of(caplog) == []  # a part that the file does not have at all is no half


# -- parts filled by half --------------------------------------------------------------------------


@pytest.mark.parametrize("specific", ["theirs", "ours"])
def test_a_predictor_filled_by_half(
    specific: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores for as many classes, boxes of another kind."""
    cfgs = [small_cfg(*STOCK), small_cfg(*STOCK, *AGNOSTIC)]
    theirs, ours = map(model_of, cfgs if specific == "theirs" else cfgs[::-1])
    path = saved(theirs, tmp_path)
    DoubleHeadCheckpointer(ours).resume_or_load(path, resume=False)
    assert warnings_of(caplog) == [
        f"'{path}' fills roi_heads.box_predictor by half: 2 of its tensors are from there "
        "(cls_score.weight, cls_score.bias), and 2 as initialised (bbox_pred.weight, "
        "bbox_pred.bias). Either may not suit the other: see whether the settings of this part are "
        "those of the weights."
    ]


def test_a_backbone_filled_by_half(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(small_cfg(*STOCK))
    state = {k: x for k, x in model.state_dict().items() if "res5" not in k}
    torch.save({"model": state}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, "doublehead_d2"):
        DoubleHeadCheckpointer(model).load(str(tmp_path / "a.pth"))
    half, idle = warnings_of(caplog)
    # res5 has 10 convolutions; their norms are told of by themselves.
    assert "by half: 215 of its tensors" in half and "and 10 as initialised (res5.0.shor" in half
    assert half.count("res5") == 6 and ", ...). Either" in half
    assert "10 frozen batch norms" in idle


def test_statistics_that_are_folded_are_not_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in detectron2's ImageNet files, whose norms are a weight and a bias."""
    model = model_of(small_cfg())
    state = {
        key: x
        for key, x in model.state_dict().items()
        if key.startswith("backbone.bottom_up") and "running" not in key
    }
    torch.save({"model": state}, tmp_path / "a.pth")
    DoubleHeadCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert warnings_of(caplog) == []


# -- as many classes of other names ----------------------------------------------------------------


def other_names(data: dict) -> None:
    for category, name in zip(data["categories"], ["ring", "rectangle", "bolt"], strict=True):
        category["name"] = name


def weights_beside(folder: Path, names: list[str]) -> str:
    (folder / "old").mkdir(exist_ok=True)
    (folder / "old" / "config.yaml").write_text(yaml.dump({"DATASETS": {"CLASS_NAMES": names}}))
    (folder / "old" / "model_final.pth").touch()
    return str(folder / "old" / "model_final.pth")


def test_kept_predictors_are_told_of(place: Place) -> None:
    weights = weights_beside(place.folder, CLASSES)
    name = place.coco("train", other_names)
    assert notes_of(place, name, (), "MODEL.WEIGHTS", weights) == (
        f"MODEL.WEIGHTS '{weights}' has as many classes as DATASETS.TRAIN '{name}', 2 of 3 under "
        "other names (circle -> ring, triangle -> bolt). Each class starts from the predictor of "
        "the one in its place; to start class scores, and boxes and masks by class, anew: "
        "MODEL.NEW_PREDICTORS True."
    )
    new = ("MODEL.WEIGHTS", weights, "MODEL.NEW_PREDICTORS", True)
    assert notes_of(place, name, (), *new) == ""
    assert notes_of(place, place.coco("train"), (), "MODEL.WEIGHTS", weights) == ""
    assert notes_of(place, (), place.coco("val"), "MODEL.WEIGHTS", weights, eval_only=True) == ""
    fewer = weights_beside(place.folder, CLASSES[:2])
    assert notes_of(place, name, (), "MODEL.WEIGHTS", fewer) == ""


def test_a_resumed_training_is_told_nothing(place: Place) -> None:
    cfg = cfg_for(place, place.coco("train", other_names), ())
    weights = weights_beside(place.folder, CLASSES)
    Path(cfg.OUTPUT_DIR).mkdir()
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000001.pth")
    opts = ("MODEL.WEIGHTS", weights)
    assert notes_of(place, cfg.DATASETS.TRAIN, (), *opts, resume=True) == ""
    assert notes_of(place, cfg.DATASETS.TRAIN, (), *opts) != ""


def test_long_lists_are_cut(tmp_path: Path) -> None:
    weights = weights_beside(tmp_path, [f"a{i}" for i in range(8)])
    (note,) = note_kept_predictors(weights, Named("x", [f"b{i}" for i in range(8)]))
    assert (
        "8 of 8 under other names (a0 -> b0, a1 -> b1, a2 -> b2, a3 -> b3, a4 -> b4, ...)" in note
    )


@pytest.mark.parametrize(
    ("weights", "number", "first"),
    [
        ("detectron2://COCO-Detection/faster_rcnn_R_50_FPN_1x/1/model_final_b.pkl", 80, "person"),
        ("detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x/1/model.pkl", 80, "person"),
        ("detectron2://COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x/1/model.pkl", 1, "person"),
        ("detectron2://PascalVOC-Detection/faster_rcnn_R_50_C4/1/model.pkl", 20, "aeroplane"),
        ("https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/x/1/model.pkl", 80, "person"),
        ("doublehead://official/dh_faster_rcnn_R_50_FPN_1x", 80, "person"),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", 0, None),
        ("detectron2://LVISv1-InstanceSegmentation/x/1/model.pkl", 0, None),
        ("doublehead://nobody/knows", 0, None),
        ("https://example.com/COCO-Detection/model.pkl", 0, None),
        ("", 0, None),
    ],
)
def test_classes_of_published_weights(weights: str, number: int, first: str | None) -> None:
    names = classes_of_weights(weights)
    assert len(names) == number and (names[0] if names else None) == first


def test_published_backbones_have_no_classes() -> None:
    backbones = [name for name, entry in published.PUBLISHED.items() if not entry.detector]
    assert backbones
    assert all(classes_of_weights(f"doublehead://{name}") == [] for name in backbones)


# -- the log ---------------------------------------------------------------------------------------


def test_the_summary_stands_alone_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = saved(model_of(small_cfg(*STOCK)), tmp_path)
    start_logging(str(tmp_path))
    DoubleHeadCheckpointer(model_of(small_cfg(*EXT, CLASSES_KEY, 2))).load(path)
    said, log = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for line in ("Skip loading parameter", "Some model parameters or buffers are not found"):
        assert line in log and line not in said
    for line in (
        "roi_heads.box_predictor: none of 4 tensors, the rest as initialised",
        f"of another shape, as initialised: {SCORES} (6 x 32, here 3 x 32), {BOXES} (20 x 32, her",
    ):
        assert line in log and line in said


# -- a training ------------------------------------------------------------------------------------


def two_classes(data: dict) -> None:
    """Small and large shapes."""
    data["categories"] = [{"id": 1, "name": "small"}, {"id": 2, "name": "large"}]
    for annotation in data["annotations"]:
        annotation["category_id"] = 1 + (annotation["area"] > 32**2)


def train(*words: object) -> None:
    schedule = ["SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 0]
    opts = map(str, [*words, *schedule, "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", (96,)])
    main(argument_parser().parse_args(["--config-file", TINY_EXT, *opts]))


@pytest.mark.slow
def test_a_model_of_three_classes_learns_two(
    place: Place, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = place.folder / "old", place.folder / "new"
    names = [f"('{place.coco('train', edit)}',)" for edit in (None, two_classes, other_names)]
    data = [("DATASETS.TRAIN", name, "DATASETS.TEST", "()") for name in names]
    train(*data[0], "OUTPUT_DIR", old, "SOLVER.MAX_ITER", 1)
    weights = ("MODEL.WEIGHTS", old / "model_final.pth")
    fewer = (*data[1], *weights, CLASSES_KEY, 2, "OUTPUT_DIR", new)
    train(*fewer, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 2)
    said = capsys.readouterr().out
    assert "roi_heads.box_predictor: none of 4 tensors" in said and "Skip loading" not in said
    config = yaml.safe_load((new / "config.yaml").read_text())
    assert config["DATASETS"]["CLASS_NAMES"] == ["small", "large"]
    assert config["MODEL"]["WEIGHTS"] == str(new / "model_final.pth")
    trained = torch.load(new / "model_final.pth", weights_only=True)["model"]
    assert trained[f"{SCORES}.weight"].shape[0] == 3  # background, too


@pytest.mark.slow
def test_new_predictors_start_anew_once(place: Place, capsys: pytest.CaptureFixture) -> None:
    old, new = place.folder / "old", place.folder / "new"
    names = [f"('{place.coco('train', edit)}',)" for edit in (None, other_names)]
    data = [("DATASETS.TRAIN", name, "DATASETS.TEST", "()") for name in names]
    train(*data[0], "OUTPUT_DIR", old, "SOLVER.MAX_ITER", 1)
    path = old / "model_final.pth"
    words = [*data[1], "MODEL.WEIGHTS", path, "MODEL.NEW_PREDICTORS", True, "OUTPUT_DIR", new]
    train(*words, "SOLVER.BASE_LR", 1e-9, "SOLVER.MAX_ITER", 1)
    assert f"anew by MODEL.NEW_PREDICTORS: {BOXES}, {SCORES}" in capsys.readouterr().out

    def scores(folder: Path) -> torch.Tensor:
        state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
        return state[f"{SCORES}.weight"]

    started = scores(new)
    assert not torch.equal(started, scores(old))
    config = yaml.safe_load((new / "config.yaml").read_text())
    assert config["MODEL"]["NEW_PREDICTORS"] is False  # of the model that it names
    assert config["DATASETS"]["CLASS_NAMES"] == ["ring", "rectangle", "bolt"]
    train("--resume", *words, "SOLVER.BASE_LR", 1e-9, "SOLVER.MAX_ITER", 2)
    said = capsys.readouterr().out
    assert "anew by" not in said and "under other names" not in said
    torch.testing.assert_close(scores(new), started, rtol=0, atol=1e-6)
