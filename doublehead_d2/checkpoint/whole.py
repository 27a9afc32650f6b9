"""Checkpoints that are whole or not there, and the newest of a folder that is whole."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from doublehead_d2.checkpoint.reading import load_tensors
from doublehead_d2.files import whole_file

LAST = "last_checkpoint"
FINAL = "model_final.pth"
NUMBERED = re.compile(r"model_(\d{7,})\.pth")  # by the last iteration that was run, from 0

logger = logging.getLogger(__name__)


class WholeCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` whose files are whole, and which resumes from one that is.

    A file is written beside its place, synced to the disk and renamed; `last_checkpoint` follows
    in the same way, so that a kill at any moment leaves the checkpoint before. Weights that are not
    finite are not saved. Where the last checkpoint is damaged or lost, the newest whole one of the
    folder is resumed from, and the log says so.

    Args:
        keep: checkpoints of a period that are kept, the newest; 0: all. model_final.pth and
            model_best.pth are no such ones.
        args, kwargs: as `DetectionCheckpointer`.
    """

    path_manager: Any

    def __init__(self, *args: Any, keep: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path_manager = _WholeFiles(self.path_manager)
        self._keep = keep
        self._resumed: str | None = None  # what all processes have resumed from; "": from nothing

    def save(self, name: str, **kwargs: Any) -> None:
        """As `Checkpointer.save`.

        Raises:
            FloatingPointError: the weights are not finite; nothing was written.
            OSError: the file cannot be written; those from before are what they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        broken = not_finite(self.model.state_dict())
        if broken:
            raise FloatingPointError(
                f"weights are not finite (NaN or infinite) in {len(broken)} tensors: "
                f"{', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''}; {name}.pth was not "
                "written."
            )
        try:
            super().save(name, **kwargs)
        except (OSError, RuntimeError) as error:
            reason = _reason_of_writing(error)
            if reason is None:
                raise
            path = os.path.join(self.save_dir, f"{name}.pth")
            raise OSError(
                f"'{path}' could not be written: {reason}; what was saved before is whole"
            ) from error
        self._resumed = None
        self._prune(f"{name}.pth")

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from, whole or not."""
        return has_checkpoint(self.save_dir) if self._resumed is None else bool(self._resumed)

    def get_checkpoint_file(self) -> str:
        """The file that the training was resumed from or has saved since, in this folder.

        Raises:
            ValueError: `last_checkpoint` names a file elsewhere, or is no text.
        """
        if self._resumed:
            return self._resumed
        last = os.path.join(self.save_dir, LAST)
        try:
            path = super().get_checkpoint_file()
        except UnicodeDecodeError:
            raise ValueError(f"'{last}' is no text; allowed: the name of a file there") from None
        if path in ("", os.path.join(self.save_dir, "")):  # of an empty one
            return ""
        if os.path.dirname(os.path.normpath(path)) != os.path.normpath(self.save_dir):
            raise ValueError(
                f"'{last}' names '{path}', which is not in its folder; allowed: the name of a file "
                "there"
            )
        return path

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As `DetectionCheckpointer.resume_or_load`; all processes resume from the same file.

        Raises:
            ValueError: there are checkpoints, and none of them is whole.
        """
        self._resumed = self._agreed() if resume else None
        if self._resumed:
            return self.load(self._resumed)
        return super().resume_or_load(path, resume=False)

    def _agreed(self) -> str:
        """What the main process finds; every process calls this."""
        found = refusal = ""
        if comm.is_main_process():
            try:
                found = self._newest_whole()
            except ValueError as error:
                refusal = str(error)
        found, refusal = comm.all_gather((found, refusal))[0]
        if refusal:
            raise ValueError(refusal)
        return found

    def _newest_whole(self) -> str:
        tagged, problems = self._tagged()
        others = (x for x in _newest_first(self.save_dir) if x != tagged)
        for name in [tagged, *others] if tagged else others:
            path = os.path.join(self.save_dir, name)
            problem = _problem(path, name == tagged)
            if problem is None:
                if problems:
                    logger.warning(
                        "%s: going on from '%s', the newest whole checkpoint of the folder.",
                        *("; ".join(problems), path),
                    )
                return path
            problems.append(problem)
        if problems and has_checkpoint(self.save_dir):
            raise ValueError(
                f"no checkpoint in '{self.save_dir}' is whole: {'; '.join(problems)}; allowed: a "
                "whole one there, or another OUTPUT_DIR"
            )
        return ""

    def _tagged(self) -> tuple[str, list[str]]:
        """The name in `last_checkpoint`, and why that is not to be used."""
        last = os.path.join(self.save_dir, LAST)
        if not os.path.isfile(last):
            return "", [f"'{last}' is not there"]
        path = self.get_checkpoint_file()
        if not path:
            return "", [f"'{last}' is empty"]
        if not os.path.isfile(path):
            return "", [f"'{last}' names '{path}', which is not there"]
        return os.path.basename(path), []

    def _prune(self, saved: str) -> None:
        """Remove the oldest checkpoints of this training's periods."""
        match = NUMBERED.fullmatch(saved)
        if not self._keep or not match:
            return
        # Later ones are of a training that this one does not follow from.
        until = int(match[1])
        numbers = {int(m[1]): m[0] for m in _numbered(self.save_dir) if int(m[1]) <= until}
        for number in sorted(numbers)[: -self._keep]:
            os.remove(os.path.join(self.save_dir, numbers[number]))


class _WholeFiles:
    """A path manager whose files are there when they are whole."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    @contextlib.contextmanager
    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Iterator[Any]:
        if "w" not in mode or "://" in path:
            with self._manager.open(path, mode, **kwargs) as file:
                yield file
            return
        with (
            whole_file(path, synced=True) as temporary,
            self._manager.open(temporary, mode, **kwargs) as file,
        ):
            yield file
            file.flush()


def has_checkpoint(folder: str) -> bool:
    """Whether a folder has something that `--resume` would go on from, whole or not."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (LAST, FINAL)) or bool(
        _numbered(folder)
    )


def checkpoints(folder: str) -> list[str]:
    """Names of the checkpoints of a training in a folder, model_best.pth among them."""
    named = [FINAL, "model_best.pth"]
    there = [name for name in named if os.path.isfile(os.path.join(folder, name))]
    return sorted(match[0] for match in _numbered(folder)) + there


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors and arrays in which something is NaN or infinite."""
    broken = []
    for key, value in tensors.items():
        if isinstance(value, (np.ndarray, torch.Tensor)):
            tensor = torch.as_tensor(value)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                broken.append(key)
    return broken


def _numbered(folder: str) -> list[re.Match[str]]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [match for name in names if (match := NUMBERED.fullmatch(name))]


def _newest_first(folder: str) -> Iterator[str]:
    """Checkpoints by the iterations that they are of, found out when they are asked for."""
    iterations = {match[0]: int(match[1]) for match in _numbered(folder)}
    final = os.path.join(folder, FINAL)
    if os.path.isfile(final):
        content: Any = None
        with contextlib.suppress(ValueError, OSError):
            content = load_tensors(final)
        found = content.get("iteration") if isinstance(content, dict) else None
        iterations[FINAL] = found if isinstance(found, int) else -1
    yield from sorted(iterations, key=lambda name: iterations[name], reverse=True)


def _problem(path: str, tagged: bool) -> str | None:
    """Why a checkpoint cannot be resumed from; None if it can be."""
    if not path.endswith(".pth"):
        return None
    try:
        content = load_tensors(path)
    except (ValueError, OSError) as error:
        return str(error).split(". ")[0]  # of torch's advice the first sentence
    if not isinstance(content, dict):
        return f"'{path}' is no checkpoint"
    if not tagged and not ("model" in content and "iteration" in content):
        return f"'{path}' has weights alone"
    model = content.get("model")
    broken = not_finite(model) if isinstance(model, dict) else []
    return f"'{path}' holds weights that are not finite, {broken[0]} first" if broken else None


def _reason_of_writing(error: BaseException) -> str | None:
    """Why a file could not be written, of torch's errors about that; None for any other error."""
    chain: list[BaseException] = []
    next_one: BaseException | None = error
    while next_one is not None and next_one not in chain:
        chain.append(next_one)
        next_one = next_one.__cause__ or next_one.__context__
    for one in chain:
        if isinstance(one, OSError):
            return one.strerror or str(one)
    text = str(error)
    return text.splitlines()[0] if "writ" in text and "PytorchStreamWriter" in text else None
