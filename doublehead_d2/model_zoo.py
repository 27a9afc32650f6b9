"""The configs of this package by name, as `detectron2.model_zoo` serves detectron2's."""

import difflib
import logging
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.checkpoint.published import PUBLISHED
from doublehead_d2.checkpoint.sources.source import PREFIX
from doublehead_d2.config import (
    add_doublehead_config,
    check_model,
    fall_back_to_cpu,
)
from doublehead_d2.config.keys import explain, one_name_allowed, stating_folders, value_at
from doublehead_d2.config.shared import check_device
from doublehead_d2.data.registration import register_datasets

# What a first try is made with, for those who have named no config.
FIRST = (
    "Shapes-Detection/double_head_ext_rcnn_tiny.yaml",
    "COCO-Detection/double_head_ext_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml",
    "PascalVOC-Detection/double_head_ext_rcnn_R_50_FPN.yaml",
    "Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml",
)
MAX_VALUES = 100_000  # of a config; the class names of the largest data sets are some 20,000
LIST_ALL = (
    'python -c "from doublehead_d2 import model_zoo; print(*model_zoo.list_configs(), sep=chr(10))"'
)

logger = logging.getLogger(__name__)


def list_configs() -> list[str]:
    """Names of all configs of the zoo, sorted, e.g. "COCO-Detection/<name>.yaml"."""
    root = Path(_config_root())
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.yaml"))


def get_config_file(name: str) -> str:
    """Path of a config of the zoo.

    Args:
        name: relative to `configs/`, e.g. "COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml".

    Raises:
        ValueError: there is no such config; names the nearest, and how to list all.
    """
    path = os.path.join(_config_root(), name)
    if os.path.exists(name) and not os.path.isfile(path):
        raise ValueError(f"'{name}' is no file; allowed: a YAML file or a name of the zoo")
    if not os.path.isfile(path):
        raise ValueError(f"no config file '{name}', here or in the zoo; try: {suggestions(name)}")
    return path


def suggestions(name: str = "") -> str:
    """The five configs that `name` is most likely to stand for, and the command that lists all."""

    def likeness(known: str) -> float:
        pairs = (wanted, known), (os.path.basename(wanted), os.path.basename(known))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    wanted = name.removeprefix("configs/")
    names = list_configs()
    near = [known for known in sorted(names, key=likeness, reverse=True) if likeness(known) > 0.6]
    return f"{', '.join(near[:5] or FIRST)}; this lists all {len(names)}: {LIST_ALL}"


def get_config(name_or_path: str, trained: bool = False) -> CfgNode:
    """A config of the zoo, or one from a file such as the config.yaml that training leaves.

    Class names that the config carries (DATASETS.CLASS_NAMES) are registered as metadata of its
    data sets where these are not known, so that predictions are drawn with names, as are the data
    sets of DATASETS.REGISTER, whose paths become absolute. A relative
    MODEL.WEIGHTS that is not found from here is looked for beside the file.

    Args:
        name_or_path: name in the zoo, or path of a YAML file.
        trained: for a name, set MODEL.WEIGHTS to published weights; for a file, insist that it
            names weights.

    Raises:
        ValueError: no such config, or `trained` and there are no such weights.
    """
    is_file = os.path.isfile(name_or_path)
    cfg = read_config(name_or_path if is_file else get_config_file(name_or_path))
    weights = cfg.MODEL.WEIGHTS
    if trained and not (weights if is_file else _is_published_detector(weights)):
        raise ValueError(
            f"'{name_or_path}' has no published weights; pass your own as `weights`, or take one "
            f"of {', '.join(p.config for p in PUBLISHED.values() if p.detector)}"
        )
    fall_back_to_cpu(cfg)
    return cfg


def read_config(path: str) -> CfgNode:
    """The config of a YAML file as :func:`get_config` reads it, MODEL.DEVICE as it stands there.

    Raises:
        ValueError: the file, or one that its `_BASE_` names, is no YAML or no config, has a tag
            that would make a Python object, more than `MAX_VALUES` values, or is not there; a key
            in it is none, or has a value of another type.
    """
    cfg = get_cfg()
    add_doublehead_config(cfg)
    merge_config(cfg, path)
    _find_weights_beside(cfg, path)
    _register_datasets(cfg, path)
    _register_class_names(cfg, path)
    return cfg


def merge_config(cfg: CfgNode, path: str) -> None:
    """As `cfg.merge_from_file`, which by default runs what a YAML file's tags name.

    Args:
        cfg: changed in place.
        path: YAML file; files that its `_BASE_` names are read likewise.

    Raises:
        ValueError: as :func:`read_config`.
    """
    try:
        _check_size(path)
        with one_name_allowed(cfg):
            cfg.merge_from_file(path, allow_unsafe=False)
    except (AssertionError, KeyError) as error:
        raise ValueError(_refused_change(cfg, path, error)) from None
    except yaml.constructor.ConstructorError as error:
        raise ValueError(_refused_tag(path, error)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())  # over several lines it would show the place
        raise ValueError(f"'{path}' is no YAML: {reason}") from None
    except (TypeError, AttributeError):  # no mapping
        raise ValueError(f"'{path}' is no config; allowed: YAML of keys and values") from None
    except RecursionError:
        raise ValueError(
            f"'{path}': its _BASE_, or an alias in it, leads in a circle, or it is nested too deep"
        ) from None
    except OSError as error:
        where = (
            f" leads to '{error.filename}': {error.strerror}" if error.filename else f": {error}"
        )
        raise ValueError(f"'{path}': its _BASE_{where}") from None
    except ValueError as error:
        raise ValueError(_refused_change(cfg, path, error)) from None


def get(
    name: str, weights: str | None = None, device: str | None = None, trained: bool = False
) -> nn.Module:
    """A model of the zoo, in training mode as from detectron2's zoo.

    Args:
        name: name in the zoo, or path of a YAML file.
        weights: checkpoint to load: a path, URL or other name that detectron2's checkpointer takes,
            of a published model's original file, too; "published" as `trained`; None loads nothing.
        device: overrides MODEL.DEVICE; one that is not here is refused.
        trained: same as weights="published".

    Raises:
        ValueError: no such config, no published weights, or a config that no model can be built
            from.
    """
    trained = trained or weights == "published"
    cfg = get_config(name, trained=trained)
    if device is not None:
        check_device("device", device)
        cfg.MODEL.DEVICE = device
    check_model(cfg)
    model = build_model(cfg)
    if trained:
        weights = cfg.MODEL.WEIGHTS
    if weights:
        DoubleHeadCheckpointer(model).load(weights)
    return model


def _is_published_detector(weights: str) -> bool:
    """Whether MODEL.WEIGHTS names a whole model of others, not a backbone."""
    entry = PUBLISHED.get(weights.removeprefix(PREFIX))
    return entry is not None and entry.detector


def _config_root() -> str:
    return str(resources.files("doublehead_d2") / "configs")


def _check_size(path: str) -> None:
    """Refuse a small file whose aliases stand for more values than there is memory or time for."""
    counted: dict[int, int] = {}

    def count(value: Any) -> int:
        if not isinstance(value, (dict, list)):
            return 1
        if id(value) not in counted:
            children = value.values() if isinstance(value, dict) else value
            counted[id(value)] = 1 + sum(map(count, children))
        return counted[id(value)]

    values = count(CfgNode.load_yaml_with_base(path, allow_unsafe=False))
    if values > MAX_VALUES:
        raise ValueError(f"{values} values; allowed: {MAX_VALUES}")


def _refused_tag(path: str, error: yaml.constructor.ConstructorError) -> str:
    """What a tag is refused by: the file (of a `_BASE_` chain), the line and the tag."""
    mark, tag = error.problem_mark, re.search(r"tag:yaml.org,2002:([^']*)'", error.problem or "")
    where = f"'{mark.name}', line {mark.line + 1}" if mark else f"'{path}'"
    return (
        f"{where} is refused: "
        + (f"the tag !!{tag[1]} would make a Python object, " if tag else f"{error.problem}, ")
        + "and configs hold plain values alone"
    )


def _refused_change(cfg: CfgNode, path: str, error: Exception) -> str:
    """What yacs refused of a file: a key that is none, a value of another type, or the rest."""
    reason = str(error.args[0])
    if key := re.search(r"config key: (\S+)$", reason):
        given = value_at(CfgNode.load_yaml_with_base(path), key[1])
        reason = explain(cfg, key[1], CfgNode._decode_cfg_value(given)) or reason
    return f"'{path}': {reason}"


def _find_weights_beside(cfg: CfgNode, path: str) -> None:
    """Let an output folder that was moved, or is used from elsewhere, find its own weights."""
    weights = cfg.MODEL.WEIGHTS
    if "://" in weights or os.path.isabs(weights) or os.path.isfile(weights):
        return
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), os.path.basename(weights))
    if os.path.isfile(beside):
        cfg.MODEL.WEIGHTS = beside


def _register_datasets(cfg: CfgNode, path: str) -> None:
    register = cfg.DATASETS.REGISTER
    folders = stating_folders(path) if register else {}
    for name in list(register):
        one = {name: register[name]}
        register_datasets(one, folders.get(str(name), os.path.dirname(os.path.abspath(path))))
        register[name] = one[name]


def _register_class_names(cfg: CfgNode, path: str) -> None:
    class_names = list(cfg.DATASETS.CLASS_NAMES)
    for name in class_names:
        if not isinstance(name, str):  # YAML reads 1, 2019-12-31, yes and null as other than words
            raise ValueError(
                f"'{path}': DATASETS.CLASS_NAMES has {name!r:.80}; allowed: names, in quotes where "
                "YAML would read them as something else"
            )
    if not class_names:
        return
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(dataset)
        known = metadata.get("thing_classes")
        if known is None:
            metadata.thing_classes = class_names
        elif list(known) != class_names:
            logger.warning(
                "Data set '%s' is registered with classes %s, the config carries %s; "
                "pictures will show the former.",
                dataset,
                list(known),
                class_names,
            )
