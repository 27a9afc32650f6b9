"""A training that a hook ends before its last iteration, as if that had been the last."""

import contextlib
from typing import Any

from detectron2.engine import TrainerBase


class EndOfTraining(BaseException):
    """Raised by a hook in every process; no error, and so not told as one."""


class EndsEarly(TrainerBase):
    """The base of a trainer whose hooks may raise :class:`EndOfTraining`.

    The training then ends as after its last iteration: hooks evaluate and write what they do at
    the end, and the process goes on. In a `train_net.py` of your own:

        class Trainer(DefaultTrainer, EndsEarly):
            ...
    """

    def train(self, *iterations: Any) -> Any:
        """As `TrainerBase.train`, which `DefaultTrainer` calls with the first and the last."""
        with contextlib.suppress(EndOfTraining):
            return super().train(*iterations)


def end_training(trainer: TrainerBase, iterations: int) -> None:
    """End a training from a hook.

    Args:
        trainer: the hook's.
        iterations: how many it has done.

    Raises:
        EndOfTraining: always.
    """
    # By these two, hooks know in `after_train` whether the training was finished or broken off.
    trainer.iter = trainer.max_iter = iterations
    raise EndOfTraining
