"""A hook that ends an interrupted training after a whole step, with a checkpoint."""

import os
from typing import Any

import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from doublehead_d2.engine.interrupts import asked_to_end, count_as_asked, wait_with_interrupts


class StopWhenAsked(HookBase):
    """After Ctrl-C, SIGTERM or SIGUSR1 ends the step that is run, saves, and ends the training.

    All processes end after the same step, whichever of them were asked. A second signal ends at
    once, as does one in an evaluation, or of a single process between two steps: the checkpoint is
    then that of the last step.

    In a `train_net.py` of your own it stands in every process, behind detectron2's hooks of the
    schedule and before those that evaluate; the signals are those of
    :func:`~doublehead_d2.engine.interrupts.interruptible`.
    """

    def __init__(self, checkpointer: DetectionCheckpointer, eval_period: int = 0) -> None:
        """
        Args:
            checkpointer: the trainer's.
            eval_period: iterations from one evaluation to the next; 0 without any.
        """
        self._checkpointer, self._eval_period = checkpointer, eval_period
        self._group: Any = None
        self._is_whole = False  # the step of this iteration was run

    def before_train(self) -> None:
        """Signals are asked about over gloo, which does not wait for a GPU."""
        if comm.get_world_size() > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def before_step(self) -> None:
        """From here on a signal waits."""
        self._is_whole = False
        wait_with_interrupts(True)

    def after_step(self) -> None:
        """End if any process was asked to.

        Raises:
            KeyboardInterrupt: in all processes, when the checkpoint is there.
        """
        number = self._agreed(asked_to_end())
        self._is_whole = True
        if number and self.trainer.iter + 1 < self.trainer.max_iter:
            count_as_asked(number)
            self.save()
            comm.synchronize()  # whoever ends first may have the others killed
            raise KeyboardInterrupt(number)
        if self.trainer.iter + 1 < self.trainer.max_iter and self._may_end_alone():
            self._wait_no_longer()

    def after_train(self) -> None:
        """The model is saved, or the training was broken off: nothing is to wait for.

        Raises:
            KeyboardInterrupt: a signal has waited, in the last step.
        """
        if self.trainer.iter >= self.trainer.max_iter:
            self._wait_no_longer()
        wait_with_interrupts(False)

    def save(self) -> None:
        """Save what the last step left, unless it was not finished or is saved already."""
        name = f"model_{self.trainer.iter:07d}"
        path = os.path.join(self._checkpointer.save_dir, f"{name}.pth")
        if not self._is_whole or not comm.is_main_process():
            return
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            return  # model_final.pth
        if os.path.normpath(self._checkpointer.get_checkpoint_file()) != os.path.normpath(path):
            self._checkpointer.save(name, iteration=self.trainer.iter)

    def _may_end_alone(self) -> bool:
        """Whether a signal before the next step ends at once.

        Of several processes, one may be in the next step already and would wait for those that
        have ended; all of them are in an evaluation.
        """
        evaluates = self._eval_period > 0 and (self.trainer.iter + 1) % self._eval_period == 0
        return evaluates or comm.get_world_size() == 1

    def _agreed(self, number: int) -> int:
        """The largest number of all processes."""
        if comm.get_world_size() == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group)
        return int(numbers)

    def _wait_no_longer(self) -> None:
        wait_with_interrupts(False)
        if asked_to_end():
            raise KeyboardInterrupt(asked_to_end())
