"""Entries of DATASETS.REGISTER: what they say, and where the files are that they name.

A text, `coco:ANNOTATIONS.json:IMAGES`, `voc:FOLDER:SPLIT` or `yolo:data.yaml:SPLIT`, or a mapping
of the same and of what else a layout takes, whose paths may hold colons.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml

from doublehead_d2.data.shapes.builtin import datasets_root
from doublehead_d2.data.voc_files import YEARS

BOXES = ("xywh", "xyxy", "xywh_normalised", "xyxy_normalised")

# The fields of the text and the others, by layout; the first is needed
TEXT_FIELDS = {
    "coco": ("annotations", "images"),
    "voc": ("folder", "split"),
    "yolo": ("annotations", "split"),
}
MORE_FIELDS = {
    "coco": ("classes", "rename", "evaluator", "boxes"),
    "voc": ("classes", "rename", "evaluator", "year"),
    "yolo": ("classes", "rename", "evaluator"),
}
TEXTS = {
    "coco": "coco:ANNOTATIONS.json:IMAGES",
    "voc": "voc:FOLDER:SPLIT",
    "yolo": "yolo:data.yaml:SPLIT",
}
EVALUATORS = {"coco": ("coco",), "voc": ("pascal_voc", "coco"), "yolo": ("coco",)}
PATHS = ("annotations", "images", "folder")


@dataclass(frozen=True)
class Entry:
    """What an entry says; "" or nothing: it does not."""

    layout: str
    annotations: str = ""  # COCO's JSON, YOLO's data.yaml
    images: str = ""  # COCO: the folder that file names are in; "": that of the annotations
    folder: str = ""  # VOC
    split: str = ""  # VOC: a list of ImageSets or a folder, "" for all; YOLO: train, val or test
    classes: tuple[str, ...] = ()  # names in their order
    rename: Mapping[str, str] = field(default_factory=dict)  # the data's names: ours
    evaluator: str = ""  # "": the first that the layout allows
    year: int = YEARS[0]  # of VOC's metric
    boxes: str = ""  # COCO; "": XYWH, unless they look like something else

    @property
    def evaluator_type(self) -> str:
        """As detectron2's metadata have it."""
        return self.evaluator or EVALUATORS[self.layout][0]

    @property
    def place(self) -> str:
        """The file or folder, as messages name it."""
        return self.annotations or self.folder

    @property
    def image_folder(self) -> str:
        """COCO: the folder that file names are relative to."""
        return self.images or os.path.dirname(self.annotations)


def read_entry(name: str, value: Any) -> Entry:
    """An entry from what a config or a command line has for it.

    Args:
        name: of the data set, for messages.
        value: a text or a mapping.

    Raises:
        ValueError: names the entry, its value and what is allowed.
    """
    where = f"DATASETS.REGISTER.{name}"
    if isinstance(value, str):
        value = _from_text(where, value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r:.80}; allowed: {_texts()}, or a mapping")
    value = dict(value)
    layout = value.pop("layout", None)
    if layout not in TEXT_FIELDS:
        raise ValueError(
            f"{where} has the layout {layout!r}; allowed: {', '.join(map(repr, TEXT_FIELDS))}, "
            f"as in {_texts()}"
        )
    _check_fields(where, layout, value)
    entry = Entry(layout, **{key: _clean(where, key, x) for key, x in value.items()})
    needed = TEXT_FIELDS[layout] if layout == "yolo" else TEXT_FIELDS[layout][:1]
    for key in needed:
        if not getattr(entry, key):
            raise ValueError(f"{where} has no {key!r}; allowed: {TEXTS[layout]}")
    return entry


def locate(entry: Entry, base_dir: str) -> tuple[Entry, dict[str, list[str]]]:
    """The entry with absolute paths, and all places that were looked at for each.

    A relative path is that below `base_dir`, or, when there is nothing, below
    $DETECTRON2_DATASETS; when there is nothing either, it is the first.
    """
    found: dict[str, Any] = {}
    looked_at = {}
    for key in PATHS:
        path = os.path.expanduser(getattr(entry, key))
        if not path or "://" in path:
            continue
        # Of an absolute path, joining leaves nothing but itself.
        places = [os.path.join(folder, path) for folder in (base_dir, datasets_root())]
        places = list(dict.fromkeys(os.path.abspath(place) for place in places))
        found[key] = next((place for place in places if os.path.exists(place)), places[0])
        looked_at[found[key]] = places
    return replace(entry, **found), looked_at


def as_value(entry: Entry) -> str | dict[str, Any]:
    """What a config says for an entry: a text where that is enough, else a mapping."""
    said: dict[str, Any] = {}
    for each in fields(entry):
        value = getattr(entry, each.name)
        if value and not (each.name == "year" and value == YEARS[0]):
            said[each.name] = value
    texts = [said.get(key, "") for key in ("layout", *TEXT_FIELDS[entry.layout])]
    if set(said) <= {"layout", *TEXT_FIELDS[entry.layout]} and not any(":" in x for x in texts):
        return ":".join(texts).rstrip(":")
    if entry.classes:
        said["classes"] = list(entry.classes)
    if entry.rename:
        said["rename"] = dict(entry.rename)
    return said


def _from_text(where: str, text: str) -> Any:
    """The mapping that a text stands for, or that it holds in braces, as YAML."""
    if text.lstrip().startswith("{"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where} is {text!r}, which is no YAML: {reason}") from None
    layout, *parts = text.split(":")
    if layout not in TEXT_FIELDS:
        raise ValueError(f"{where} is {text!r}; allowed: {_texts()}")
    keys = TEXT_FIELDS[layout]
    if len(parts) > len(keys):
        example = ", ".join(f"{key}: '...'" for key in ("layout", *keys)).replace(
            "'...'", layout, 1
        )
        raise ValueError(
            f"{where} is {text!r}, with {len(parts)} parts behind {layout!r}; allowed: "
            f"{TEXTS[layout]}, or, where a path has a colon, a mapping: {{{example}}}"
        )
    return {"layout": layout, **dict(zip(keys, parts, strict=False))}


def _check_fields(where: str, layout: str, value: Mapping[Any, Any]) -> None:
    allowed = TEXT_FIELDS[layout] + MORE_FIELDS[layout]
    for key in value:
        if key not in allowed:
            raise ValueError(
                f"{where} has {key!r}, which the layout {layout!r} does not take; allowed: "
                f"{', '.join(allowed)}"
            )
    words = {"evaluator": EVALUATORS[layout], "boxes": BOXES, "year": YEARS}
    for key, known in words.items():
        if value.get(key, "") not in ("", *known):
            raise ValueError(
                f"{where} has {key} {value[key]!r}; allowed: {', '.join(map(repr, known))}"
            )


def _clean(where: str, key: str, value: Any) -> Any:
    """A value of an entry as `Entry` holds it: names are words, whatever YAML reads in them."""
    if key == "classes":
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} has classes {value!r:.80}; allowed: a list of names")
        names = tuple(_name(where, key, x) for x in value)
        if len(set(names)) < len(names):
            twice = next(x for x in names if names.count(x) > 1)
            raise ValueError(f"{where} has {twice!r} in classes twice; allowed: each name once")
        return names
    if key == "rename":
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} has rename {value!r:.80}; allowed: a mapping, theirs: ours")
        return {_name(where, key, a): _name(where, key, b) for a, b in value.items()}
    if key == "year":
        return value
    if not isinstance(value, str):
        raise ValueError(f"{where} has {key} {value!r:.80}; allowed: a word, in quotes")
    return value


def _name(where: str, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{where} has {value!r:.80} in {key}; allowed: names, in quotes")
    return str(value)


def _texts() -> str:
    return ", ".join(TEXTS.values())
