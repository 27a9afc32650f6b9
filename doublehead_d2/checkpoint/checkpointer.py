"""detectron2's checkpointer, which here also takes the original files of published models."""

import hashlib
import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from doublehead_d2.checkpoint.convert import find_foreign, read_foreign
from doublehead_d2.checkpoint.download import download, file_name, hash_in_name
from doublehead_d2.checkpoint.published import PUBLISHED, cache_folder
from doublehead_d2.checkpoint.reading import load_tensors, refuse_code_in_pickle
from doublehead_d2.checkpoint.settings import differing_settings, idle_norms
from doublehead_d2.checkpoint.sources import SOURCES
from doublehead_d2.checkpoint.sources.source import PREFIX
from doublehead_d2.checkpoint.summary import Loaded
from doublehead_d2.checkpoint.whole import WholeCheckpointer, not_finite
from doublehead_d2.modeling.parts import class_layers
from doublehead_d2.modeling.siblings import fill_missing

logger = logging.getLogger(__name__)

# Where detectron2's models have the stages of a ResNet: without FPN, below it, and C4 its Conv5
HOMES = ("backbone", "backbone.bottom_up", "roi_heads")
STAGES = ("stem", "res2", "res3", "res4", "res5")


class _TensorsOnly(Checkpointer):
    """Stands before fvcore's checkpointer, so that detectron2's reads .pth files through it.

    It also sees the names that detectron2 has given to the tensors of its older zoos.
    """

    _anew: Collection[str] = ()  # layers that a file shall not fill

    def _load_file(self, f: str) -> dict[str, Any]:
        checkpoint = load_tensors(f)
        _check_form(f, checkpoint)
        # "state_dict" is mmdetection's and others', never detectron2's.
        if "state_dict" in checkpoint or find_foreign(checkpoint):
            try:
                model, kind = read_foreign(checkpoint)
                return {"model": model, "converted_from": kind._asdict()}
            except ValueError as error:
                raise ValueError(f"'{f}': {error}") from None
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        offered, wanted = checkpoint["model"], self.model.state_dict()
        consume_prefix_in_state_dict_if_present(offered, "module.")
        # Loading fills what has a sibling, too; here it is seen what came from where.
        self._origins = _move_stages(offered, wanted)
        for name, module in self.model.named_modules():
            if hasattr(module, "siblings"):
                self._origins |= fill_missing(module, offered, f"{name}." if name else "")
        for key in [key for key in offered if key.rpartition(".")[0] in self._anew]:
            del offered[key]
        self._offered = set(offered)
        _check_finite(self._path, {key: x for key, x in offered.items() if key in wanted})
        return super()._load_model(checkpoint)


class DoubleHeadCheckpointer(WholeCheckpointer, _TensorsOnly):
    """`WholeCheckpointer` that converts foreign files, runs no code and logs what it loaded.

    After loading, `missing_keys` are the model's tensors that the file did not have.

    Args:
        new_predictors: a training that starts, by `resume_or_load`, takes no class scores, and no
            boxes and masks of a class each, from the file; one that is resumed does.
        args, kwargs: as `WholeCheckpointer`.

    Raises while loading:
        ValueError: a file that would run code, is damaged, foreign and not convertible, has
            nothing for this model, or weights that are not finite.
    """

    def __init__(self, *args: Any, new_predictors: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new_predictors = new_predictors

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As `WholeCheckpointer.resume_or_load`."""
        if self._new_predictors and not (resume and self.has_checkpoint()):
            self._anew = class_layers(self.model)
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._anew = ()

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As `DetectionCheckpointer.load`; URLs of files with their hash in the name are checked.

        Args:
            path: a path, URL, or name such as detectron2://... and doublehead://....
        """
        self._path = path
        self._check_is_there(path)
        try:
            return super().load(_resolve(path), *args, **kwargs)
        finally:
            # Upstream main forgets this after an error, and could then never load again.
            self._parsed_url_during_load = None

    def _check_is_there(self, path: str) -> None:
        """Downloads what is not here yet, but for http(s), which :func:`_resolve` does."""
        if not path or path.startswith(("http://", "https://")):
            return
        scheme, is_name, _ = path.partition("://")
        # Where no handler of names takes the path, it is given back as it is.
        file = self.path_manager.get_local_path(path.partition("?")[0]) if is_name else path
        if not os.path.isfile(file):
            why = f"nothing knows {scheme}://" if is_name else f"here: {os.path.abspath(path)}"
            raise FileNotFoundError(
                f"there is no checkpoint '{path}' ({why}); allowed for MODEL.WEIGHTS: a file, a "
                "URL, or a name such as doublehead://... and detectron2://..."
            )

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            _check_form(filename, refuse_code_in_pickle(filename))
        elif filename.endswith(".pyth"):  # detectron2 loads these itself
            content = load_tensors(filename)
            if not isinstance(content, dict) or not isinstance(content.get("model_state"), dict):
                raise ValueError(
                    f"'{filename}' is no checkpoint of pycls: allowed in a .pyth file: a dict "
                    "whose model_state is a dict of tensors by name"
                )
        checkpoint = super()._load_file(filename)
        _check_form(filename, checkpoint)
        for key, value in checkpoint["model"].items():
            if not isinstance(value, np.ndarray | torch.Tensor):
                raise ValueError(
                    f"'{filename}' is no checkpoint: {key} in its model is a "
                    f"{type(value).__name__}, allowed: tensors by name"
                )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        # Not by the missing keys: norms pretend that they were given statistics and counters.
        taken = self._offered - {key for key, *_ in incompatible.incorrect_shapes}
        model_keys = list(self.model.state_dict())
        loaded = [key for key in model_keys if key in taken]
        if not loaded:
            raise ValueError(
                f"nothing in '{self._path}' fits this model: none of its tensors has a name and a "
                f"shape of the model's; found {', '.join(sorted(self._offered)[:5])} ..."
            )
        self.missing_keys = [key for key in model_keys if key not in taken]
        summary = Loaded(
            path=self._path,
            model_keys=model_keys,
            loaded=loaded,
            unused=sorted(self._offered.difference(model_keys)),
            origins=self._origins,
            other_shapes=incompatible.incorrect_shapes,
            anew=self._anew,
        )
        logger.info("%s", summary.text())
        idle = idle_norms(self.model, set(loaded))
        for sentence in summary.half_filled(class_layers(self.model), idle):
            logger.warning("%s", sentence)
        self._warn_of_settings(checkpoint, idle)
        return incompatible

    def _warn_of_settings(self, checkpoint: dict[str, Any], idle: list[str]) -> None:
        """Say what makes these weights mean something else in this model."""
        record = checkpoint.get("converted_from")
        source = SOURCES.get(str(record.get("source"))) if isinstance(record, dict) else None
        settings = source.settings if source else None
        differing = differing_settings(self.model, settings) if settings else []
        if differing:
            logger.warning(
                "'%s' was trained with other settings, and its maps are not what it learned: %s.",
                *(self._path, "; ".join(differing)),
            )
        if idle:
            logger.warning(
                "'%s' has nothing for %d frozen batch norms, %s first, which normalise nothing "
                "then: take weights that have it, or another norm there.",
                *(self._path, len(idle), idle[0]),
            )


def _resolve(path: str) -> str:
    """The file of a URL; other paths and names as they are."""
    # Upstream main reads that option of its own from the URL.
    if not path or not path.startswith(("http://", "https://")) or "matching_heuristics=" in path:
        return path
    for name, entry in PUBLISHED.items():
        if path == entry.address:
            return f"{PREFIX}{name}"
    folder, name = os.path.join(cache_folder(), "downloads"), file_name(path)
    if not hash_in_name(path):
        # Many files are called model_final.pth.
        folder = os.path.join(folder, hashlib.sha256(path.encode()).hexdigest()[:16])
    if name in ("", ".", ".."):
        raise ValueError(f"MODEL.WEIGHTS is '{path}', which names no file; allowed: a file's URL")
    os.makedirs(folder, exist_ok=True)
    return download(path, os.path.join(folder, name))


def _check_form(path: str, checkpoint: Any) -> None:
    """A checkpoint is a dict; where it has a model, that is a dict by names."""
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a checkpoint")
    # Detectron's models are "blobs".
    model = checkpoint.get("model", checkpoint.get("blobs", checkpoint))
    if not isinstance(model, dict) or not all(isinstance(key, str) for key in model):
        raise ValueError(
            f"'{path}' is no checkpoint: its model is a {type(model).__name__}, allowed: a dict of "
            "tensors by name"
        )


def _check_finite(path: str, tensors: Mapping[str, Any]) -> None:
    """Weights that are not finite would load, and the model then detect nothing."""
    broken = not_finite(tensors)
    if broken:
        raise ValueError(
            f"'{path}' holds weights that are not finite (NaN or infinite) in {len(broken)} of "
            f"{len(tensors)} tensors: {', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''}; "
            "allowed: finite numbers, e.g. of a checkpoint from before the training diverged"
        )


def _move_stages(offered: dict[str, Any], wanted: Collection[str]) -> dict[str, str]:
    """Rename, in place, the stages of a ResNet that a file has elsewhere than the model.

    So a C4 model fills one whose Conv5 is in the backbone, a ResNet with FPN one without.

    Args:
        offered: the file's tensors by name.
        wanted: the model's names.

    Returns:
        the old key of each new one.
    """
    moved: dict[str, str] = {}
    for stage in STAGES:
        places = [f"{home}.{stage}" for home in HOMES]
        # Of two copies of a stage ("res5", "res5_reg") either may be built.
        ours = [x for x in places if any(key.startswith((f"{x}.", f"{x}_")) for key in wanted)]
        theirs = [x for x in places if any(key.startswith(f"{x}.") for key in offered)]
        if len(ours) != 1 or len(theirs) != 1 or ours == theirs:
            continue
        for key in [key for key in offered if key.startswith(f"{theirs[0]}.")]:
            new = f"{ours[0]}{key.removeprefix(theirs[0])}"
            offered[new] = offered.pop(key)
            moved[new] = key
    return moved
