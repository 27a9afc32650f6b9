"""From the checkpoints of other code bases to the keys of this package."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublehead_d2.checkpoint.sources import SOURCES
from doublehead_d2.checkpoint.sources.recognise import find_source
from doublehead_d2.checkpoint.sources.renames import BLOCKS, Rename
from doublehead_d2.checkpoint.sources.source import Source

logger = logging.getLogger(__name__)

NAMES_SHOWN = 8


class ForeignModel(NamedTuple):
    """What a foreign checkpoint was found to be."""

    source: str  # a name of `SOURCES`
    depth: int  # of the ResNet; 0: it has none
    num_classes: int  # 0: it is no detector
    masks: bool  # whether it has a mask head


def convert_checkpoint(checkpoint: Mapping[str, Any], source: str = "auto") -> dict[str, Tensor]:
    """Rename and rearrange the weights of a published model.

    Every key of the file is used, or dropped as the source's table says (the log lists what), or
    refused.

    Args:
        checkpoint: what `torch.load` gave: a state dict, or a dict with one as "state_dict" or
            "model"; keys may begin with "module.".
        source: a name of `SOURCES`, such as "mmdet", "maskrcnn_benchmark" (the authors' code),
            "tsd" (the TSD authors' code) or "torchvision" (VGG16), or "auto" to tell by the keys.

    Returns:
        a plain state dict for the matching config of `configs/Imported`; tensors that do not change
        are those of `checkpoint`. It carries no version numbers, by which detectron2's frozen batch
        norms would change it while loading.

    Raises:
        ValueError: the file is from none of the sources, or of another model; names what was found,
            what is missing and what is left over.
    """
    return read_foreign(checkpoint, source)[0]


def read_foreign(
    checkpoint: Mapping[str, Any], source: str = "auto"
) -> tuple[dict[str, Tensor], ForeignModel]:
    """As :func:`convert_checkpoint`, with what the checkpoint was found to be."""
    if source not in ("auto", *SOURCES):
        raise ValueError(f"source is '{source}'; allowed: 'auto', {', '.join(map(repr, SOURCES))}")
    state = _state_dict(checkpoint)
    name = find_source(state) if source == "auto" else source
    if name is None:
        raise ValueError(_none_of_them(state))
    description = SOURCES[name]
    _check_kind(state, description)
    depth = _depth(state, description)
    table = list(description.renames(depth))
    masks = list(description.mask_renames())
    has_masks = any(rename.theirs in state for rename in masks)
    table += masks if has_masks else []
    if description.optional:
        table = [
            r for r in table if r.theirs in state or not re.search(description.optional, r.theirs)
        ]
    _check_keys(state, table, f"{_title(description, depth)} of {description.title}")
    model = ForeignModel(name, depth, _check_rows(state, description), has_masks)
    _log_conversion(table, model)
    converted = {
        ours: change(state[theirs]) if change else state[theirs]
        for theirs, ours, change in table
        if ours is not None
    }
    return converted, model


def _check_kind(state: Mapping[str, Tensor], description: Source) -> None:
    """Refuse models of the source that are not the one that is converted."""
    for pattern, what in description.refused.items():
        found = next((key for key in state if re.search(pattern, key)), None)
        if found:
            raise ValueError(
                f"this is {what} ('{found}'), from {description.title}, and is not converted"
            )
    if not any(key.startswith(description.model_mark) for key in state):
        raise ValueError(
            f"this is not a {description.model} of {description.title}: no key begins with "
            f"'{description.model_mark}'; found {_summary(state)}"
        )


def _log_conversion(table: list[Rename], model: ForeignModel) -> None:
    dropped = [rename.theirs for rename in table if rename.ours is None]
    description = SOURCES[model.source]
    logger.info(
        "Converted %d tensors of a %s of %s%s; dropped %d: %s",
        len(table) - len(dropped),
        _title(description, model.depth),
        description.title,
        f" with {model.num_classes} classes" if model.num_classes else "",
        len(dropped),
        ", ".join(dropped),
    )


def _title(description: Source, depth: int) -> str:
    return f"{description.model} R-{depth}" if depth else description.model


def find_foreign(checkpoint: Any) -> str | None:
    """As :func:`find_source`, of what `torch.load` gave; None for anything but a foreign file."""
    state = _unwrap(checkpoint)
    return find_source(state) if isinstance(state, Mapping) else None


def _unwrap(checkpoint: Any) -> Any:
    """What a training run saved as its model, or the checkpoint itself."""
    if isinstance(checkpoint, Mapping):
        for name in ("state_dict", "model"):
            if name in checkpoint:
                return checkpoint[name]
    return checkpoint


def _state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without the prefix of DistributedDataParallel."""
    state = _unwrap(checkpoint)
    if not isinstance(state, Mapping) or not state:
        found = "an empty dict" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ValueError(f"a checkpoint is a state dict or holds one; this is {found}")
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"the keys of a state dict are strings; this one has {key!r}")
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"'{key}' is a {type(value).__name__}, and a state dict holds nothing but tensors; "
                f"found {_summary(state)}"
            )
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def _depth(state: Collection[str], source: Source) -> int:
    """Layers of the ResNet, told by the blocks of its fourth stage, res4; 0 where there is none."""
    if source.res4 is None:
        return 0
    prefix = source.res4
    blocks = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    last = max((int(block) for block in blocks if block.isdigit()), default=0)
    return next((depth for depth, counts in BLOCKS.items() if last < counts[2]), max(BLOCKS))


def _check_keys(state: Collection[str], table: list[Rename], model: str) -> None:
    known = {rename.theirs for rename in table}
    missing = [
        f"{rename.theirs} ({rename.ours or 'dropped'} here)"
        for rename in table
        if rename.theirs not in state
    ]
    unknown = [key for key in state if key not in known]
    if missing or unknown:
        raise ValueError(
            f"this checkpoint does not fit {model}: {len(missing)} of its {len(table)} keys "
            f"missing{_colon(missing)}; {len(unknown)} keys left over{_colon(unknown)}"
        )


def _check_rows(state: Mapping[str, Tensor], source: Source) -> int:
    """Class scores and boxes of one model must be of the same classes; returns how many."""
    if not source.cls_scores:
        return 0
    rows = _num_rows(state[f"{source.cls_scores[0]}.weight"])
    classes = rows - source.background_scores
    scores: tuple[int, ...] = (rows,)
    boxes: tuple[int, ...] = (4 * (classes + source.background_boxes),)
    if source.agnostic_rows is not None:
        boxes = (*boxes, source.agnostic_rows)
    allowed = [(name, scores) for name in source.cls_scores if f"{name}.weight" in state]
    allowed += [(name, boxes) for name in source.box_deltas]
    for name, allowed_rows in allowed:
        for key in (f"{name}.weight", f"{name}.bias"):
            found = _num_rows(state[key])
            if found not in allowed_rows:
                raise ValueError(
                    f"'{key}' has {found} rows; with {classes} classes allowed: "
                    f"{' or '.join(map(str, allowed_rows))}"
                )
    return classes


def _num_rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 0


def _none_of_them(state: Mapping[str, Tensor]) -> str:
    known = "; ".join(f"{s.title} ({s.mark}*)" for s in SOURCES.values())
    hint = ""
    if any(key.startswith("backbone.bottom_up.") for key in state):
        hint = (
            " These are keys of detectron2, which need no conversion: its checkpoints hold them as "
            "{'model': state dict}."
        )
    return (
        f"this checkpoint is from none of the known sources: {known}; "
        f"found {_summary(state)}.{hint}"
    )


def _summary(state: Mapping[str, Any]) -> str:
    parts = Counter(str(key).split(".")[0] for key in state)
    return f"{len(state)} keys: " + _shorten(f"{name}.* ({n})" for name, n in parts.items())


def _colon(names: list[str]) -> str:
    return f": {_shorten(names)}" if names else ""


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
