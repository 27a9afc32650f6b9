"""Training steps whose batch is run in parts, one after the other."""

import contextlib
import time
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from doublehead_d2.engine.divergence import NamingSteps

Losses = dict[str, torch.Tensor]


class AccumulatingTrainer(NamingSteps):
    """`SimpleTrainer` that averages the gradients of several batches before it steps.

    Where losses are means over a batch, n parts of equal weight give the gradients of the whole:
    losses of RoIs where each part has as many of them, and layers that do not look at other images.
    Batch norms see, and take their statistics from, a part at a time.

    In a `train_net.py` of your own: `self._trainer = AccumulatingTrainer(...)` in the constructor
    of a `DefaultTrainer`, whose loader then gives batches of SOLVER.IMS_PER_BATCH / parts images.
    """

    def __init__(
        self, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer, parts: int = 1
    ) -> None:
        """
        Args:
            model: maps a batch to a dict of losses.
            data_loader: an iterable of batches, each of them a part.
            optimizer: of the parameters of `model`.
            parts: batches from one step of the optimizer to the next.
        """
        super().__init__(model, data_loader, optimizer, parts)
        self.parts = parts

    def run_step(self) -> None:
        """Forward and backward pass of each part, and one step of the optimizer."""
        assert self.model.training, "the model was changed to evaluation mode"
        self.optimizer.zero_grad()
        data_time = 0.0
        losses: Losses = {}
        for part in range(self.parts):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._no_exchange() if part + 1 < self.parts else contextlib.nullcontext():
                shares = {n: loss / self.parts for n, loss in self.compute_losses(data).items()}
                self.backward(sum(shares.values()))
            for name, share in shares.items():
                losses[name] = losses.get(name, 0.0) + share.detach()
        if hasattr(self, "after_backward"):  # hooks of upstream main; detectron2 0.6 has none
            self.after_backward()
        self._write_metrics(losses, data_time)
        self.update()

    def compute_losses(self, data: Any) -> Losses:
        """The losses of a part."""
        return self.model(data)

    def backward(self, loss: Any) -> None:
        """Add a part's gradients."""
        loss.backward()

    def update(self) -> None:
        """Step by the gradients of all parts."""
        self.optimizer.step()

    def _no_exchange(self) -> Any:
        """Within it DDP keeps gradients to the process: they are exchanged with the last part."""
        is_ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if is_ddp else contextlib.nullcontext()
