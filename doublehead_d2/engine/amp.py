"""Training steps in mixed precision, on GPUs and on the CPU."""

import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn


class AMPTrainer(SimpleTrainer):
    """`SimpleTrainer` whose forward pass runs under autocast.

    detectron2's own class insists on CUDA. Here a GPU computes in float16 with scaled gradients, as
    there; the CPU in bfloat16, whose range needs no scaling.
    """

    def __init__(
        self, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """
        Args:
            model: maps a batch to a dict of losses.
            data_loader: an iterable of batches.
            optimizer: of the parameters of `model`.
        """
        super().__init__(model, data_loader, optimizer)
        self._device_type = next(model.parameters()).device.type
        on_gpu = self._device_type == "cuda"
        self.precision = torch.float16 if on_gpu else torch.bfloat16
        # torch.amp has it since 2.3, with another first argument
        scaler_type = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler
        self.grad_scaler = scaler_type(enabled=on_gpu)

    def run_step(self) -> None:
        """One forward and backward pass and a step of the optimizer."""
        assert self.model.training, "the model was changed to evaluation mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self._device_type, dtype=self.precision):
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if hasattr(self, "after_backward"):  # hooks of upstream main; detectron2 0.6 has none
            self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer and of the gradient scaler."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        A checkpoint without a scaler, from a training in full precision or on the CPU, starts a
        new one.
        """
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
