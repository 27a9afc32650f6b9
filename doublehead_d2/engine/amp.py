"""Training steps in mixed precision, on GPUs and on the CPU."""

from typing import Any

import torch
from torch import nn

from doublehead_d2.engine.accumulation import AccumulatingTrainer, Losses


class AMPTrainer(AccumulatingTrainer):
    """Steps whose forward pass runs under autocast.

    detectron2's own class insists on CUDA. Here a GPU computes in float16 with scaled gradients, as
    there; the CPU in bfloat16, whose range needs no scaling.
    """

    def __init__(
        self, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer, parts: int = 1
    ) -> None:
        """
        Args:
            model, data_loader, optimizer, parts: as `AccumulatingTrainer`.
        """
        super().__init__(model, data_loader, optimizer, parts)
        self._device_type = next(model.parameters()).device.type
        on_gpu = self._device_type == "cuda"
        self.precision = torch.float16 if on_gpu else torch.bfloat16
        # torch.amp has it since 2.3, with another first argument
        scaler_type = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler
        self.grad_scaler = scaler_type(enabled=on_gpu)

    def compute_losses(self, data: Any) -> Losses:
        """The losses of a part, under autocast."""
        with torch.autocast(self._device_type, dtype=self.precision):
            return self.model(data)

    def backward(self, loss: Any) -> None:
        """Add a part's gradients, scaled by the same number as those of the other parts."""
        self.grad_scaler.scale(loss).backward()

    def update(self) -> None:
        """Step, unless gradients overflowed, and adapt the scale."""
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
