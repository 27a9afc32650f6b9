"""Configs and models by name, weights beside a config, class names that travel."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from conftest import REPOSITORY
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


# ------------------------------------------------------------------------------- files with tags

# Aliases in aliases: six short lines, of which the last stands for 9 to the power of 6 words
LAUGHS = "DATASETS:\n  CLASS_NAMES:\n    - &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"    - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 6)
)
HOSTILE = {
    "apply": "WEIGHTS: !!python/object/apply:os.system ['touch {marker}']",
    "new": "WEIGHTS: !!python/object/new:os.system ['touch {marker}']",
    "name": "WEIGHTS: !!python/name:os.system ''",
    "module": "WEIGHTS: !!python/module:os ''",
    "tuple": "WEIGHTS: !!python/tuple [1, 2]",
}


@pytest.mark.parametrize("below_base", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_tags_that_make_objects_are_refused(kind: str, below_base: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = tmp_path / "hostile.yaml"
    hostile.write_text(f"MODEL:\n  {HOSTILE[kind].format(marker=marker)}\n")
    given = hostile
    if below_base:
        given = tmp_path / "innocent.yaml"
        given.write_text("_BASE_: hostile.yaml\n")
    message = rf"hostile.yaml', line 2 is refused: the tag !!python/\S*{kind}\S* would make a"
    for read in (model_zoo.get_config, model_zoo.get, model_zoo.read_config):
        with pytest.raises(ValueError, match=message):
            read(str(given))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: a.yaml", "its _BASE_, or an alias in it, leads in a circle"),
        ("_BASE_: other.yaml", r"_BASE_ leads to '.*other.yaml': No such file"),
        ("_BASE_: .", "_BASE_ leads to '.*': Is a directory"),
        ("_BASE_: http://127.0.0.1:1/a.yaml", "a.yaml': its _BASE_: .*refused"),
        ("MODEL: &x {A: *x}", "leads in a circle"),
        ("MODEL: " + "[" * 600 + "]" * 600, "or it is nested too deep"),
        (LAUGHS, "a.yaml': 672606 values; allowed: 100000$"),
        ("DATASETS: {CLASS_NAMES: [cat, 3]}", "CLASS_NAMES has 3; allowed: names, in quotes where"),
        ("DATASETS: {CLASS_NAMES: [[[cat]]]}", r"CLASS_NAMES has \[\['cat'\]\]; allowed: names"),
        ("MODEL: !mine 1", "line 1 is refused: could not determine a constructor for the tag '!mi"),
        ("- 1", "is no config; allowed: YAML of keys and values"),
        ("a: b: c", "is no YAML: mapping values"),
        ("SEED: *x", "is no YAML: found undefined alias 'x' in \".*a.yaml\", line 1, column 7$"),
        ("SEED: 1\n---\nSEED: 2", "is no YAML: expected a single document"),
        ("SEED: 2024-13-45", "a.yaml': month must be in"),
    ],
)
def test_files_that_are_no_configs_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        model_zoo.read_config(str(path))
    assert "a.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'{tmp_path}' is no file; allowed: a YAML file or a"):
        model_zoo.get_config(str(tmp_path))


def as_read(text: str) -> Any:
    """Plain YAML, by libyaml where it is there."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@pytest.mark.slow
def test_every_config_and_what_is_dumped_of_it_loads(tmp_path: Path) -> None:
    """Tuples, anchors and aliases are plain YAML."""
    for name in model_zoo.list_configs():
        cfg = model_zoo.get_config(name)
        sizes = [[32], [64]]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [sizes[0], sizes[0], *sizes]  # dumped as an alias
        path = save(cfg, tmp_path / "dumped.yaml")
        again = model_zoo.get_config(path)
        assert as_read(again.dump()) == as_read(cfg.dump())
    assert "*id001" in Path(path).read_text()


# ------------------------------------------------------------------------------- suggestions


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("configs/Shapes-Detection/double_head_rcnn_tiny.yml", TINY),
        ("double_head_ext_rcnn_R_50_FPN_1x", EXT),
        ("double_head_rcnn_tiny.yaml", TINY),
        ("COCO/double_head_ext_rcnn_R_50_FPN_1x.yaml", EXT),
        ("", model_zoo.FIRST[0]),
        ("qqqqq", model_zoo.FIRST[0]),
    ],
)
def test_five_names_and_the_command_that_lists_all(name: str, first: str) -> None:
    with pytest.raises(ValueError, match="this lists all") as error:
        model_zoo.get_config_file(name)
    names = str(error.value).split("try: ")[1].split(";")[0].split(", ")
    assert names[0] == first and len(names) == 5 and set(names) <= set(model_zoo.list_configs())


@pytest.mark.slow
def test_the_command_lists_all() -> None:
    words = shlex.split(model_zoo.LIST_ALL)
    result = subprocess.run([sys.executable, *words[1:]], capture_output=True, cwd=REPOSITORY)
    assert result.stdout.decode().splitlines() == model_zoo.list_configs()
