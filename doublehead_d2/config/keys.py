"""Config changes from files and command lines, and what is said of those that cannot be made."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

# Keys of several names, for which one name may stand alone.
NAMES = ("TRAIN", "TEST", "PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST")
LIKE = 1.2  # of 2: what a key must have in common with another to be named for it


def merge_opts(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """As `cfg.merge_from_list`; one name may stand alone where several are allowed.

    Args:
        cfg: changed in place.
        opts: keys and values in turn; values that are words are read as Python writes them.

    Raises:
        ValueError: names a key that is none and the nearest, a value of another type, or what is
            no pair.
    """
    opts = list(opts)
    if len(opts) % 2 or any(not isinstance(key, str) for key in opts[::2]):
        raise ValueError(_no_pairs(cfg, opts))
    for key, word in zip(opts[::2], opts[1::2], strict=True):
        section, _, name = key.rpartition(".")
        if section == "DATASETS" and name in NAMES:
            word = _names(key, _decode(word))
        try:
            cfg.merge_from_list([key, word])
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            is_key = value_at(cfg, key) is not None
            reason = explain(cfg, key, _decode(word)) if is_key else _no_pairs(cfg, opts)
            raise ValueError(reason or str(error)) from None


@contextlib.contextmanager
def one_name_allowed(cfg: CfgNode) -> Iterator[None]:
    """While this lasts, a file that is merged into `cfg` may give one name in place of several.

    Raises:
        ValueError: at the end, a value that is neither.
    """
    before = {key: cfg.DATASETS[key] for key in NAMES}
    for key in NAMES:
        cfg.DATASETS[key] = None  # in place of which yacs takes a value of any type
    try:
        yield
    finally:
        given = {key: cfg.DATASETS[key] for key in NAMES}
        cfg.DATASETS.update(before)
    for key, value in given.items():
        if value is not None:
            cfg.DATASETS[key] = _names(f"DATASETS.{key}", value)


def stating_folders(path: str) -> dict[str, str]:
    """The folder of the file, of a `_BASE_` chain, that states each entry of DATASETS.REGISTER.

    Args:
        path: a YAML file that has been merged into a config.
    """
    with PathManager.open(path) as f:
        content: Any = yaml.safe_load(f)
    bases = content.get("_BASE_") or []
    found: dict[str, str] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        # As fvcore finds them; joining leaves nothing but an absolute path.
        base = os.path.expanduser(base)
        found |= stating_folders(
            base if "://" in base else os.path.join(os.path.dirname(path), base)
        )
    register = (content.get("DATASETS") or {}).get("REGISTER") or {}
    return found | dict.fromkeys(map(str, register), os.path.dirname(os.path.abspath(path)))


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by their full keys."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        is_section = isinstance(value, Mapping) and value
        found |= leaves(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return found


def differences(before: CfgNode, after: CfgNode) -> list[str]:
    """What differs between two configs of the same keys, a line "KEY: old -> new" each."""
    old, new = leaves(before), leaves(after)
    return [
        f"{key}: {_short(old.get(key))} -> {_short(value)}"
        for key, value in new.items()
        if old.get(key) != value
    ]


def nearest_keys(cfg: CfgNode, key: str) -> list[str]:
    """Up to three keys that a misspelt one may stand for, the most likely first."""

    def likeness(known: str) -> float:
        names = (key.upper(), known), (key.upper().split(".")[-1], known.split(".")[-1])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in names)

    ranked = sorted(((likeness(known), known) for known in leaves(cfg)), reverse=True)
    return [known for value, known in ranked[:3] if value >= LIKE]


def explain(cfg: CfgNode, key: str, value: Any) -> str | None:
    """Why `cfg` cannot take a value for a key, as far as it lies in either; None if it does not.

    Args:
        cfg: as before the change.
        key: in full.
        value: decoded.
    """
    if value_at(cfg, key) is None and key not in leaves(cfg):
        near = nearest_keys(cfg, key)
        like = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"'{key}' is no config key{like}"
    current = value_at(cfg, key)
    if isinstance(current, CfgNode):
        keys = ", ".join(current)
        return f"{key} is {value!r}; it is a section and takes no value, its keys do: {keys}"
    kind = type(current)
    if type(value) is kind:
        return None
    article = "an" if kind is int else "a"
    return (
        f"{key} is {value!r}; allowed: {article} {kind.__name__}, such as {current!r}"
        f"{_how_to_write(value, kind)}"
    )


def value_at(node: Mapping[str, Any], key: str) -> Any:
    """What stands at a full key; None where there is no such key."""
    value: Any = node
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def _decode(word: Any) -> Any:
    """The value that a word of the command line stands for, as yacs reads it."""
    try:
        return CfgNode._decode_cfg_value(word)
    except (MemoryError, RecursionError, TypeError):  # brackets in brackets; {[]: 1}
        return word


def _names(key: str, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    # Brackets that are still there were not read: the names in them lack their quotes.
    if not listed or any(name.startswith(("(", "[")) for name in names):
        raise ValueError(
            f"{key} is {value!r}; allowed: a name, or several, written {key} \"('one','two')\""
        )
    return tuple(names)


def _how_to_write(value: Any, kind: type) -> str:
    """The value as it would be taken, where that is clear."""
    if kind is bool:
        return ' (write "True" or "False")'
    if kind is float and type(value) is int:
        return f'; write "{float(value)}"'
    if kind is str and isinstance(value, (bool, int, float)):
        return f"; write \"'{value}'\""
    if kind in (list, tuple) and isinstance(value, (bool, int, float, str)):
        return f'; write "{kind([value])}"'
    return ""


def _no_pairs(cfg: CfgNode, opts: Sequence[Any]) -> str:
    """What is wrong with config changes of which one is no pair of a key and a value."""
    keys = leaves(cfg)
    for word in map(str, opts):
        if word.startswith("--"):
            return f"'{word}' stands behind a config change; options come before the first of them"
        key, equals, value = word.partition("=")
        if equals and key in keys:
            return f"'{word}': write {key} {value}, two words"
    for key, value in zip(opts[::2], [*opts[1::2], None], strict=False):
        if key not in keys:
            return f"{explain(cfg, str(key), value)}; config changes are KEY VALUE, in turn"
        if value is None or (isinstance(value, str) and value in keys):
            return f"{key} has no value; config changes are KEY VALUE, in turn"
    raise AssertionError(f"these are pairs: {opts}")


def _short(value: Any, length: int = 80) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= length else f"{text[: length - 4]} ..."
