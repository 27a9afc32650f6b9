"""Configs and models by name, weights beside a config, class names that travel."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from doublehead_d2 import model_zoo

EXT = "COCO-Detection/double_head_ext_rcnn_R_50_FPN_1x.yaml"
TINY = "Shapes-Detection/double_head_rcnn_tiny.yaml"
CPU = {"device": "cpu"}


def save(cfg: CfgNode, path: Path) -> str:
    path.write_text(cfg.dump())
    return str(path)


def test_config_file_by_name() -> None:
    path = Path(model_zoo.get_config_file(EXT))
    assert path.is_file() and path.parts[-2:] == tuple(EXT.split("/"))


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match=f"no config file .*try: .*{EXT}"):
        model_zoo.get_config("COCO-Detection/double_head_ext_rcnn_R_50_FPN_2x.yaml")


def test_list_configs_leaves_the_base_out() -> None:
    names = model_zoo.list_configs()
    assert EXT in names and TINY in names
    assert not any("Base" in name for name in names)


def test_published_weights_that_do_not_exist_are_refused() -> None:
    for call in (
        lambda: model_zoo.get_config(EXT, trained=True),
        lambda: model_zoo.get(EXT, trained=True),
        lambda: model_zoo.get(EXT, weights="published"),
    ):
        with pytest.raises(ValueError, match="has no published weights; pass your own"):
            call()


def test_get_loads_nothing_or_the_given_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = model_zoo.get(TINY, **CPU)
    assert first.training and first.device.type == "cpu"
    path = str(tmp_path / "model.pth")
    torch.save({"model": first.state_dict()}, path)
    second = model_zoo.get(TINY, weights=path, **CPU)
    torch.testing.assert_close(second.state_dict(), first.state_dict())


def test_class_names_travel_in_the_config(tmp_path: Path) -> None:
    cfg = model_zoo.get_config(TINY)
    cfg.DATASETS.TEST = ("elsewhere_val",)
    cfg.DATASETS.TRAIN = ("elsewhere_train",)
    cfg.DATASETS.CLASS_NAMES = ["ant", "bee", "cat"]
    model_zoo.get_config(save(cfg, tmp_path / "config.yaml"))
    assert MetadataCatalog.get("elsewhere_val").thing_classes == ["ant", "bee", "cat"]
    model_zoo.get_config(str(tmp_path / "config.yaml"))  # again is no conflict


def test_other_names_of_a_registered_data_set_are_kept_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = model_zoo.get_config(TINY)
    cfg.DATASETS.CLASS_NAMES = ["ant", "bee", "cat"]
    model_zoo.get_config(save(cfg, tmp_path / "config.yaml"))
    assert MetadataCatalog.get("shapes_val").thing_classes == ["circle", "rectangle", "triangle"]
    assert "'shapes_val' is registered with classes" in caplog.text


def test_weights_are_found_beside_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = model_zoo.get_config(TINY)
    cfg.MODEL.WEIGHTS = "output/demo/model_final.pth"
    config = save(cfg, tmp_path / "config.yaml")
    assert model_zoo.get_config(config).MODEL.WEIGHTS == "output/demo/model_final.pth"
    (tmp_path / "model_final.pth").touch()
    assert str(tmp_path / "model_final.pth") == model_zoo.get_config(config).MODEL.WEIGHTS
    assert model_zoo.get_config(config, trained=True).MODEL.WEIGHTS

    # What the config names comes first where it exists.
    (tmp_path / "output/demo").mkdir(parents=True)
    shutil.move(tmp_path / "model_final.pth", tmp_path / "output/demo/model_final.pth")
    assert model_zoo.get_config(config).MODEL.WEIGHTS == "output/demo/model_final.pth"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no config; allowed: YAML of keys and values"),
        ("just words", "is no config; allowed: YAML of keys and values"),
        ("MODEL: {", "is no YAML: while parsing"),
    ],
)
def test_files_that_are_no_config_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"'{path}' {message}"):
        model_zoo.get_config(str(path))
