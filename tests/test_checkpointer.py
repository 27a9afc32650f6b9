"""Original files, stock detectron2 files and everything else that MODEL.WEIGHTS may name."""

import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from builders import small_cfg
from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.checkpoint import (
    DoubleHeadCheckpointer,
    convert_checkpoint,
    download,
    published,
)
from doublehead_d2.engine import Trainer
from doublehead_d2.inference import Predictor
from foreign import foreign_checkpoint, foreign_state, image, save_foreign, tiny_cfg
from servers import Server, hashed

SOURCE = pytest.mark.parametrize("source", ["mmdet", "official"])
OFFICIAL = "official/dh_faster_rcnn_R_50_FPN_1x"


def converted(source: str) -> dict:
    return convert_checkpoint(foreign_checkpoint(source))


def loaded(cfg: CfgNode, path: object) -> dict:
    model = build_model(cfg)
    DoubleHeadCheckpointer(model).load(str(path))
    return dict(model.state_dict())


# ------------------------------------------------------------------------------- original files


@SOURCE
def test_original_file_by_path(source: str, tmp_path: Path) -> None:
    path = save_foreign(source, tmp_path / "a.pth")
    torch.testing.assert_close(loaded(tiny_cfg(source), path), converted(source), rtol=0, atol=0)


@SOURCE
def test_original_file_in_predictor_and_trainer(source: str, tmp_path: Path, shapes: Path) -> None:
    path = save_foreign(source, tmp_path / "a.pth")
    cfg = tiny_cfg(source, "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path))
    expected = converted(source)
    state = dict(Predictor(cfg).model.state_dict())
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    torch.testing.assert_close(dict(trainer.model.state_dict()), expected, rtol=0, atol=0)


@SOURCE
def test_original_file_in_the_zoo(source: str, tmp_path: Path) -> None:
    path = save_foreign(source, tmp_path / "a.pth")
    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg(source).dump())
    model = model_zoo.get(str(config), weights=str(path), device="cpu")
    torch.testing.assert_close(dict(model.state_dict()), converted(source), rtol=0, atol=0)


@pytest.mark.slow
def test_published_weights_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    name = "Imported/official_double_head_ext_rcnn_R_50_FPN_1x.yaml"
    for trained in (True, False):
        assert f"doublehead://{OFFICIAL}" == model_zoo.get_config(name, trained).MODEL.WEIGHTS
    with pytest.raises(FileNotFoundError, match=r"open\?id=1KnRoyJQjS9rQUTCFEm54AIsUy2qbZTK_"):
        model_zoo.get(name, weights="published", device="cpu")
    folder = tmp_path / "doublehead_d2" / "official"
    folder.mkdir(exist_ok=True)  # made by the attempt above
    save_foreign("official", folder / "dh_faster_rcnn_R_50_FPN_1x.pth", "R-50")
    model = model_zoo.get(name, weights="published", device="cpu")
    expected = convert_checkpoint(foreign_state("official", "R-50"))
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


def test_every_published_model_has_its_config() -> None:
    for name, entry in published.PUBLISHED.items():
        assert f"doublehead://{name}" == model_zoo.get_config(entry.config).MODEL.WEIGHTS
    imported = {name for name in model_zoo.list_configs() if name.startswith("Imported/")}
    assert imported == {entry.config for entry in published.PUBLISHED.values()}


def test_default_predictor_loads_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    folder = tmp_path / "doublehead_d2" / "official"
    folder.mkdir(parents=True)
    save_foreign("official", folder / "dh_faster_rcnn_R_50_FPN_1x.pth")
    opts = ["INPUT.MIN_SIZE_TEST", 64, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    predictor = DefaultPredictor(tiny_cfg("official", *opts))
    torch.testing.assert_close(dict(predictor.model.state_dict()), converted("official"))
    assert len(predictor(image(1, 64, 80))["instances"]) > 0


@SOURCE
def test_stock_checkpointer_does_not_load_nothing_in_silence(source: str, tmp_path: Path) -> None:
    path = save_foreign(source, tmp_path / "a.pth")
    message = {"mmdet": "Unsupported type found in checkpoint! meta", "official": "doublehead://"}
    with pytest.raises(ValueError, match=message[source]):
        DetectionCheckpointer(build_model(tiny_cfg(source))).load(str(path))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"state_dict": {"net.weight": torch.zeros(1)}}, "a.pth': .* none of the known sources"),
        ({"a.weight": torch.zeros(1)}, "nothing in .*a.pth' fits this model: .* found a.weight"),
        ([torch.zeros(1)], "a.pth' holds a list, not a checkpoint"),
        ({"model": None}, "a.pth' is no checkpoint: its model is a NoneType, allowed: a dict"),
        ({"model": {0: torch.zeros(1)}}, "its model is a dict, allowed: a dict of tensors by name"),
    ],
)
def test_other_files_are_refused(checkpoint: object, message: str, tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        loaded(tiny_cfg("official"), tmp_path / "a.pth")


@pytest.mark.parametrize("query", ["", "?download=1"])
def test_url_with_a_hash_is_downloaded_and_checked(
    query: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    data = save_foreign("mmdet", tmp_path / "a.pth").read_bytes()
    name = hashed(data)
    server.files[f"{name}{query}"] = data
    expected = converted("mmdet")
    torch.testing.assert_close(loaded(tiny_cfg("mmdet"), server.url(f"{name}{query}")), expected)
    server.files[f"{hashed(b'other')}{query}"] = data
    with pytest.raises(ValueError, match="SHA-256 .* its name asks for"):
        loaded(tiny_cfg("mmdet"), server.url(f"{hashed(b'other')}{query}"))


def test_url_without_a_hash_is_downloaded_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    for source in ("mmdet", "official"):  # two files of one name
        name = f"{source}/model_final.pth"
        server.files[name] = save_foreign(source, tmp_path / "a.pth").read_bytes()
        for _ in range(2):
            weights = loaded(tiny_cfg(source), server.url(name))
            torch.testing.assert_close(weights, converted(source))
    assert server.starts == [0, 0]
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is 'http.*/', which names no file"):
        loaded(tiny_cfg("mmdet"), server.url("mmdet/"))


def test_a_server_that_never_ends_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "MAX_BYTES", 5000)
    for name in ("model.pth", "model.pkl", hashed(b"")):
        server.files[name] = b"x" * 10_000
        with pytest.raises(ValueError, match=f"{name} gives 10000 bytes or more; allowed: 5000"):
            loaded(tiny_cfg("mmdet"), server.url(name))


def test_address_of_a_published_file_is_its_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    data = save_foreign("mmdet", tmp_path / "a.pth").read_bytes()
    name, key = hashed(data), "mmdet/dh_faster_rcnn_r50_fpn_1x_coco"
    server.files[name] = data
    entry = published.PUBLISHED[key]._replace(file=name, address=server.url(name))
    monkeypatch.setitem(published.PUBLISHED, key, entry)
    loaded(tiny_cfg("mmdet"), server.url(name))
    loaded(tiny_cfg("mmdet"), f"doublehead://{key}")
    assert server.starts == [0]


def test_a_refused_file_leaves_the_checkpointer_as_it_was(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "bad.pth")
    good = save_foreign("mmdet", tmp_path / "good.pth")
    checkpointer = DoubleHeadCheckpointer(build_model(tiny_cfg("mmdet")))
    with pytest.raises(ValueError, match="nothing in"):
        checkpointer.load(str(tmp_path / "bad.pth"))
    checkpointer.load(str(good))


def test_code_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": {"a": Code()}}, tmp_path / "a.pth")
    torch.save({"model_state": {"a": Code()}}, tmp_path / "a.pyth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Code(), "__author__": "x"}))
    for name in ("a.pth", "a.pyth", "a.pkl"):
        with pytest.raises(ValueError, match=f"{name}' is refused: .*posix.system"):
            loaded(tiny_cfg("official"), tmp_path / name)
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------- detectron2's own files


def stock_model(cfg: CfgNode, *opts: object) -> torch.nn.Module:
    """A single-head detector of the same backbone, FPN, RPN and fc-head."""
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.merge_from_list(list(opts))
    torch.manual_seed(1)
    return build_model(cfg)


def save_as_zoo(model: torch.nn.Module, path: Path) -> Path:
    """A file as in detectron2's zoo: pickled numpy arrays."""
    weights = {key: np.asarray(value) for key, value in model.state_dict().items()}
    content = {"model": weights, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("ext", [False, True])
def test_stock_models_initialise_double_head(
    mask: bool, ext: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_cfg("official" if ext else "mmdet", "MODEL.WEIGHTS", "")
    stock = stock_model(cfg, "MODEL.MASK_ON", mask, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8)
    path = save_as_zoo(stock, tmp_path / "model_final.pkl")
    with caplog.at_level(logging.INFO, "doublehead_d2"):
        state = loaded(cfg, path)
    theirs = stock.state_dict()
    for key, value in state.items():
        if "reg_" not in key:
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)
    text = next(m for m in caplog.messages if m.startswith("Loaded from"))
    heads, reg_head = ("4", "80") if ext else ("2", "90")
    lines = [
        f"Loaded from {path}:",
        "  backbone.fpn: 16 of 16 tensors",
        "  backbone.bottom_up: 265 of 265 tensors",
        "  proposal_generator.rpn_head: 6 of 6 tensors",
        "  roi_heads.box_head: 4 of 4 tensors",
        f"  roi_heads.box_predictor: {heads} of {heads} tensors",
        f"  roi_heads.reg_head: none of {reg_head} tensors, the rest as initialised",
        f"  roi_heads.reg_predictor: none of {heads} tensors, the rest as initialised",
    ]
    # a plain Double-Head's fc-head has no boxes
    unused = [] if ext else ["roi_heads.box_predictor (2)"]
    unused += ["roi_heads.mask_head (12)"] * mask
    if unused:
        lines.append(f"  not used: {', '.join(unused)}")
    assert text.splitlines() == lines


def test_other_numbers_of_classes_leave_the_predictors_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_foreign("official", tmp_path / "a.pth")
    cfg = tiny_cfg("official", "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    torch.manual_seed(0)
    model = build_model(cfg)
    before = {k: v.clone() for k, v in model.state_dict().items() if "predictor" in k}
    with caplog.at_level(logging.INFO, "doublehead_d2"):
        DoubleHeadCheckpointer(model).load(str(path))
    after = {k: v for k, v in model.state_dict().items() if "predictor" in k}
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert "roi_heads.box_predictor: none of 4 tensors, the rest as initialised" in caplog.text
    assert "roi_heads.reg_head: 80 of 80 tensors" in caplog.text


def test_own_checkpoints_load_as_ever(tmp_path: Path) -> None:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    DoubleHeadCheckpointer(model, str(tmp_path)).save("model", iteration=7)
    other = build_model(cfg)
    rest = DoubleHeadCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert rest["iteration"] == 7
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert DoubleHeadCheckpointer(other).load("") == {}


# ------------------------------------------------------------------------------- training goes on


OWN_CONVENTIONS = [  # as COCO-Detection/double_head_ext_rcnn_R_50_FPN_1x.yaml
    *("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0),
    *("MODEL.ROI_DOUBLE_HEAD.LEGACY_BOXES", False),
    *("INPUT.RESIZE_RULE", "detectron2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "opts"),
    [("mmdet", []), ("official", []), ("official", OWN_CONVENTIONS)],
    ids=["mmdet", "official", "official under detectron2's conventions"],
)
def test_imported_weights_are_fine_tuned(
    source: str, opts: list, tmp_path: Path, shapes: Path
) -> None:
    path = save_foreign(source, tmp_path / "a.pth")
    cfg = tiny_cfg(source, *opts, "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ()
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 2, 2, 0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    state = trainer.model.state_dict()
    frozen = "backbone.bottom_up.stem.conv1.weight"
    trained = "roi_heads.reg_head.blocks.0.conv1.weight"
    before = {key: state[key].clone() for key in (frozen, trained)}
    torch.testing.assert_close(before[trained], converted(source)[trained], rtol=0, atol=0)
    trainer.train()
    assert torch.equal(state[frozen], before[frozen])
    assert not torch.equal(state[trained], before[trained])
    assert all(value.isfinite().all() for value in state.values())


# --------------------------------------------------------------------------- what is no checkpoint


def test_names_that_nothing_knows() -> None:
    message = r"no checkpoint 'nowhere://x.pth' \(nothing knows nowhere://\); allowed for MODEL"
    with pytest.raises(FileNotFoundError, match=message):
        loaded(small_cfg(), "nowhere://x.pth")


def test_options_behind_a_name_are_no_part_of_it(tmp_path: Path) -> None:
    checkpointer, asked = DoubleHeadCheckpointer(torch.nn.Linear(1, 1)), []
    (tmp_path / "a.pkl").touch()

    def find(path: str) -> str:
        asked.append(path)
        return str(tmp_path / "a.pkl")

    checkpointer.path_manager = SimpleNamespace(get_local_path=find)
    # Upstream main reads options there.
    checkpointer._check_is_there("detectron2://a.pkl?matching_heuristics=True")
    assert asked == ["detectron2://a.pkl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", {"model": {"a.weight": 3}}, "a.weight in its model is a int, allowed: tensors b"),
        ("a.pth", {"a.weight": "x"}, "a.weight in its model is a str, allowed: tensors by name"),
        ("a.pkl", {"model": {"a": [1.0]}, "__author__": "x"}, "a in its model is a list, allowed"),
        ("a.pkl", {"blobs": [1]}, "its model is a list, allowed: a dict of tensors by name"),
        ("a.pyth", {"a.weight": torch.zeros(1)}, "a.pyth' is no checkpoint of pycls: allowed in"),
        ("a.pyth", [1], "a.pyth' is no checkpoint of pycls: allowed in a .pyth file: a dict"),
        ("a.pyth", {"model_state": {"a": 1}}, "a in its model is a int, allowed: tensors by name"),
    ],
)
def test_values_that_are_no_tensors(
    name: str, content: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        loaded(small_cfg(), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*/a.pth'.*; allowed for MODEL"):
        DoubleHeadCheckpointer(model).load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("content", [[np.zeros(2)], {"model": [1]}, 3])
def test_pickles_that_are_no_checkpoints_are_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"a.pkl' (holds a|is no checkpoint)"):
        DoubleHeadCheckpointer(torch.nn.Linear(1, 1)).load(str(path))


@pytest.mark.parametrize("name", ["../b/model.pth", "/etc/model.pth", "c/model.pth", "."])
def test_the_last_checkpoint_lies_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "last_checkpoint").write_text(name)
    checkpointer = DoubleHeadCheckpointer(torch.nn.Linear(1, 1), str(folder))
    with pytest.raises(ValueError, match=r"a/last_checkpoint' names '.*', which is not in its fol"):
        checkpointer.resume_or_load("", resume=True)


def test_a_last_checkpoint_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    checkpointer = DoubleHeadCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    with pytest.raises(ValueError, match="last_checkpoint' is no text; allowed: the name of a fil"):
        checkpointer.resume_or_load("", resume=True)


def test_the_last_checkpoint_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(1, 1)
    for folder in ("output", "./output/", str(tmp_path / "output")):
        os.makedirs(folder, exist_ok=True)
        DoubleHeadCheckpointer(model, folder).save("model_final", iteration=7)
        checkpointer = DoubleHeadCheckpointer(torch.nn.Linear(1, 1), folder)
        assert checkpointer.resume_or_load("", resume=True)["iteration"] == 7


def test_proposals_with_code_are_not_loaded(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "proposals.pkl"

    class Code:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {marker}",)

    path.write_bytes(pickle.dumps({"ids": [1], "boxes": [Code()]}))
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (str(path),)
    for build in (
        lambda: Trainer.build_train_loader(cfg),
        lambda: Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]),
    ):
        with pytest.raises(ValueError, match=r"proposals.pkl' is refused: .* \w+\.system, and"):
            build()
    assert not marker.exists()


# ------------------------------------------------------------------------------- not finite


def save_broken(path: Path, model: torch.nn.Module, value: float, *, half: bool = False) -> Path:
    """A checkpoint of `model` with `value` in one of its tensors."""
    state = {key: x.clone() for key, x in model.state_dict().items()}
    broken = state["roi_heads.box_predictor.cls_score.bias"]
    broken[1] = value
    if half:
        state["roi_heads.box_predictor.cls_score.bias"] = broken.half()
    if path.suffix == ".pkl":
        arrays = {key: x.numpy() for key, x in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "test"}))
    else:
        torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    model = build_model(small_cfg())
    path = save_broken(tmp_path / name, model, value)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    expected = (
        rf"'{path}' holds weights that are not finite \(NaN or infinite\) in 1 of {len(before)} "
        r"tensors: roi_heads.box_predictor.cls_score.bias; allowed: finite"
    )
    with pytest.raises(ValueError, match=expected):
        DoubleHeadCheckpointer(model).load(str(path))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_halves_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = build_model(small_cfg())
    path = save_broken(tmp_path / "a.pth", model, float("nan"), half=True)
    with pytest.raises(ValueError, match="not finite"):
        DoubleHeadCheckpointer(model).load(str(path))


def test_of_what_the_model_has_not_nothing_is_asked(tmp_path: Path) -> None:
    model = build_model(small_cfg())
    state = {**model.state_dict(), "another.weight": torch.tensor([float("nan")])}
    torch.save({"model": state}, tmp_path / "a.pth")
    DoubleHeadCheckpointer(model).load(str(tmp_path / "a.pth"))


def test_a_predictor_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    path = save_broken(tmp_path / "a.pth", build_model(small_cfg()), float("nan"))
    with pytest.raises(ValueError, match="a.pth' holds weights that are not finite"):
        Predictor(small_cfg("MODEL.WEIGHTS", str(path)))
