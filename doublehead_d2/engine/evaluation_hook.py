"""detectron2's hook for evaluations, none of them left out and none made twice."""

from collections.abc import Callable
from typing import Any

from detectron2.engine import TrainerBase
from detectron2.engine.hooks import EvalHook


class EvaluationHook(EvalHook):
    """`EvalHook` for hooks after it that count evaluations.

    - A checkpoint of an iteration with an evaluation is saved before it. Who resumes from there
      has it made up for, so that a resumed training has the same evaluations as any other.
    - A training that ends early, with an evaluation, is not evaluated again.

    In a `train_net.py` of your own it stands where `EvalHook` stood.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Any]) -> None:
        """
        Args:
            eval_period: iterations from one evaluation to the next; 0 for one at the end.
            eval_function: gives results as nested dicts, the same call in all processes.
        """
        super().__init__(eval_period, eval_function)
        self.evaluated = 0  # iterations that were done at the latest evaluation

    def before_train(self) -> None:
        """Make up for the evaluation that the checkpoint came before."""
        done = self.trainer.start_iter
        if 0 < done < self.trainer.max_iter and self._period > 0 and done % self._period == 0:
            self.trainer.storage.iter = done - 1
            self._do_eval()

    def after_train(self) -> None:
        """Evaluate at the end, unless this is the latest evaluation's model."""
        if self.evaluated == self.trainer.iter == self.trainer.max_iter:
            del self._func  # as `EvalHook`: it may hold the trainer
            return
        super().after_train()

    def _do_eval(self) -> None:
        super()._do_eval()
        self.evaluated = iterations_done(self.trainer)


def iterations_done(trainer: TrainerBase) -> int:
    """How many iterations a training has done, asked by a hook after a step or at the end."""
    # At the end detectron2 has counted on.
    return min(trainer.storage.iter + 1, trainer.max_iter)
