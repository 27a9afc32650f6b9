"""Steps that name the images of a loss that is not finite."""

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn

from doublehead_d2.files import write_json


class NotFiniteError(FloatingPointError):
    """A loss is NaN or infinite."""


class NamingSteps(SimpleTrainer):
    """`SimpleTrainer` that knows the images of its batch, and stops at a loss that is not finite.

    Each process looks at its own losses, where they are copied from the GPU anyway: detectron2 asks
    for their mean over processes in the first one alone, which knows its own images alone.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        parts: int = 1,
    ) -> None:
        """
        Args:
            model, data_loader, optimizer: as `SimpleTrainer`.
            parts: batches of a step.
        """
        super().__init__(model, data_loader, optimizer)
        self._batches: deque[list[str]] = deque(maxlen=parts)
        model.register_forward_pre_hook(self._remember)

    @property
    def images(self) -> list[str]:
        """The files of the images of the latest step of this process."""
        return [name for batch in self._batches for name in batch]

    def _remember(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        batch = inputs[0] if inputs and isinstance(inputs[0], list) else []
        if model.training:
            self._batches.append([str(x.get("file_name")) for x in batch if isinstance(x, dict)])

    def _write_metrics(self, loss_dict: Mapping[str, torch.Tensor], *args: Any, **more: Any) -> Any:
        """As `SimpleTrainer._write_metrics`.

        Raises:
            NotFiniteError: names the losses.
        """
        losses = {name: float(loss.detach()) for name, loss in loss_dict.items()}
        if not math.isfinite(sum(losses.values())):
            broken = [f"{n} is {loss}" for n, loss in losses.items() if not math.isfinite(loss)]
            raise NotFiniteError(f"{', '.join(broken) or f'the sum of {json.dumps(losses)} is'}.")
        return super()._write_metrics(loss_dict, *args, **more)


def save_batch(folder: str, iteration: int, reason: str, images: list[str]) -> str:
    """Write which images a training diverged with; returns the file."""
    rank = comm.get_rank()
    path = os.path.join(folder, f"diverged{f'.rank{rank}' if rank else ''}.json")
    write_json(path, {"iteration": iteration, "reason": reason, "images": images})
    return path
