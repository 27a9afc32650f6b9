"""A hook that keeps the weights of the best evaluation and ends a training that stands still."""

import difflib
import logging
import math
import os
from typing import Any, NamedTuple

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from doublehead_d2.checkpoint.reading import load_tensors
from doublehead_d2.checkpoint.whole import WholeCheckpointer
from doublehead_d2.engine.ending import end_training
from doublehead_d2.engine.evaluation_hook import iterations_done

NAME = "model_best"

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """What an evaluation gave."""

    iterations: int  # done before it
    value: float

    def __str__(self) -> str:
        return f"{self.value:.4f} after {self.iterations} iterations"


class _WeightsCheckpointer(WholeCheckpointer):
    """Writes weights that no training is resumed from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Leave the last checkpoint what it is."""


class BestCheckpoint(HookBase):
    """Saves model_best.pth when a metric is better than ever, with patience ends the training.

    detectron2's `BestCheckpointer` forgets on `--resume` what was the best, lets a training resume
    from it, and only warns of a metric that is not there. This one's evaluations are part of each
    checkpoint. A value that is not finite is never the best.

    A training that has ended early and is resumed says so and ends again, unless the patience is
    now larger, or it is to have more iterations than it was to have: then it goes on, and the
    evaluations count anew.

    In a `train_net.py` of your own, where `Trainer` is a `DefaultTrainer` and an
    :class:`~doublehead_d2.engine.ending.EndsEarly`:

        hooks = super().build_hooks()  # in build_hooks; the writers are last in the main process
        best = BestCheckpoint(eval_period=..., checkpointer=self.checkpointer, metric="bbox/AP")
        hooks.insert(len(hooks) - comm.is_main_process(), best)

    In every process, behind the hook that evaluates. With an `EvaluationHook` in place of
    `EvalHook` an evaluation that a kill cut off is made up for.
    """

    def __init__(
        self,
        *,
        eval_period: int,
        checkpointer: DetectionCheckpointer,
        metric: str,
        mode: str = "max",
        patience: int = 0,
        min_delta: float = 0.0,
    ) -> None:
        """
        Args:
            eval_period: that of the evaluations.
            checkpointer: the trainer's.
            metric: as the event storage calls it, e.g. "bbox/AP".
            mode: "max" if the highest value is the best, "min" if the lowest.
            patience: evaluations in a row without improvement that end the training; 0: never.
            min_delta: the least improvement for that count to begin anew.
        """
        self._period = eval_period
        self._checkpointer = checkpointer
        self._weights = _WeightsCheckpointer(checkpointer.model, checkpointer.save_dir)
        self._metric = metric
        self._sign = {"max": 1, "min": -1}[mode]
        self._patience = patience
        self._min_delta = min_delta
        self._evaluations: dict[int, float] = {}  # by iterations done
        self._counted_from = 0  # evaluations up to here try no patience
        self._max_iter = 0
        self._ended = 0  # iterations after which it ended early
        self.saved: Evaluation | None = None  # what is in the file; known to the main process

    def before_train(self) -> None:
        """Take up what is known, and end at once what had ended."""
        done, before = self.trainer.start_iter, self._max_iter
        self._max_iter = self.trainer.max_iter
        if not done:
            return
        self.saved = self._read_saved()
        if done >= self.trainer.max_iter:
            return
        value, _ = self._latest()
        if value is not None and done not in self._evaluations:  # it is made up for
            self._record(value)
        if not self._is_out_of_patience():
            return
        if before and self.trainer.max_iter > before:
            logger.info(
                "%s has stood still, but SOLVER.MAX_ITER has become %d instead of %d: the training "
                "goes on, and evaluations count from here.",
                self._metric,
                self.trainer.max_iter,
                before,
            )
            self._counted_from = done
            return
        self._end(done)

    def after_step(self) -> None:
        """Compare, when there was an evaluation; perhaps end the training."""
        done = iterations_done(self.trainer)
        if done % self._period or done == self.trainer.max_iter:
            return  # as `EvalHook`, which evaluates the last iteration after training
        self._compare()
        if self._is_out_of_patience():
            self._end(done)

    def after_train(self) -> None:
        """Compare the last evaluation and say what was the best of all, unless broken off."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        if iterations_done(self.trainer) not in self._evaluations or not self._ended:
            self._compare()
        best = self.best
        if best is None:
            logger.warning("%s was never a number: there is no %s.pth.", self._metric, NAME)
        else:
            logger.info("The best %s is %s, of %s.pth.", self._metric, self.saved or best, NAME)

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation of this training, None before there is one with a number."""
        found = [Evaluation(*item) for item in self._evaluations.items() if math.isfinite(item[1])]
        return max(found, key=lambda x: (self._sign * x.value, -x.iterations), default=None)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far, and where they count from."""
        return {
            "metric": self._metric,
            "mode": self._sign,
            "evaluations": [list(item) for item in self._evaluations.items()],
            "counted_from": self._counted_from,
            "max_iter": self._max_iter,
            "ended": self._ended,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; evaluations by another metric are dropped."""
        if (state_dict["metric"], state_dict["mode"]) != (self._metric, self._sign):
            logger.warning(
                "The checkpoint knows the best of %s; of %s the best is looked for from here on.",
                state_dict["metric"],
                self._metric,
            )
            return
        self._evaluations = dict(state_dict["evaluations"])
        self._counted_from = state_dict["counted_from"]
        self._max_iter = state_dict["max_iter"]
        self._ended = state_dict["ended"]

    def _compare(self) -> None:
        """Record the evaluation that was just made.

        Raises:
            ValueError: it has no such metric; names those that there are.
        """
        value, names = self._latest()
        if value is None:
            close = difflib.get_close_matches(self._metric, names, n=3, cutoff=0.5)
            raise ValueError(
                f"TEST.BEST.METRIC is '{self._metric}', which the evaluation does not give; "
                f"allowed: {', '.join(map(repr, close + [n for n in names if n not in close]))}"
            )
        self._record(value)

    def _latest(self) -> tuple[float | None, list[str]]:
        """The metric, if it was evaluated just now, and the names of all that were.

        Only the main process has results; all others learn them here.
        """
        storage = self.trainer.storage
        latest, smoothed = storage.latest(), storage.smoothing_hints()
        now = {
            name: value
            for name, (value, iteration) in latest.items()
            if iteration == storage.iter and "/" in name and not smoothed[name]
        }
        value, names = comm.all_gather((now.get(self._metric), sorted(now)))[0]
        return value, names

    def _record(self, value: float) -> None:
        """Add an evaluation; save the weights if it is the best."""
        done = iterations_done(self.trainer)
        self._evaluations.pop(done, None)
        best = self.best
        self._evaluations[done] = value
        latest = Evaluation(done, value)
        if not math.isfinite(value) or (best is not None and self._gain(value, best.value) <= 0):
            self._say(f"is {latest}, the best {best or 'is still to come'}")
        elif self.saved is not None and self._gain(value, self.saved.value) < 0:
            self._say(f"is {latest}; {NAME}.pth keeps {self.saved}, from before the resumption")
        else:
            self._weights.save(NAME, iteration=done - 1, best=[self._metric, done, value])
            self.saved = latest
            self._say(f"is {latest}, the best so far, kept as {NAME}.pth")

    def _say(self, what: str) -> None:
        waited = self._waited()
        patience = (
            f" ({waited} of {self._patience} evaluations without improvement)" if waited else ""
        )
        logger.info("%s %s%s.", self._metric, what, patience if self._patience else "")

    def _gain(self, value: float, reference: float) -> float:
        """By how much a value is better than another."""
        return self._sign * (value - reference)

    def _waited(self) -> int:
        """Evaluations in a row, up to the latest, without an improvement of `min_delta`."""
        reference, waited = None, 0
        for done, value in sorted(self._evaluations.items()):
            gain = math.inf if reference is None else self._gain(value, reference)
            improved = math.isfinite(value) and gain > 0 and gain >= self._min_delta
            reference = value if improved else reference
            waited = 0 if improved or done <= self._counted_from else waited + 1
        return waited

    def _is_out_of_patience(self) -> bool:
        return 0 < self._patience <= self._waited()

    def _end(self, done: int) -> None:
        """End the training, its model the final one.

        Raises:
            EndOfTraining: always.
        """
        had_ended = self._ended == done
        logger.info(
            "%s has not improved%s for %d evaluations: the training %s after %d iterations of %d; "
            "the best %s is %s.%s",
            self._metric,
            f" by {self._min_delta:g}" if self._min_delta else "",
            self._waited(),
            "had ended" if had_ended else "ends",
            done,
            self._max_iter,
            self._metric,
            self.best or "not a number",
            f" With a TEST.BEST.PATIENCE above {self._patience}, or a SOLVER.MAX_ITER above "
            f"{self._max_iter}, it goes on."
            if had_ended
            else "",
        )
        if not had_ended:
            self._ended = done
            self.trainer.iter = done - 1  # which a checkpoint holds
            self._checkpointer.save("model_final", iteration=done - 1)
        end_training(self.trainer, done)

    def _read_saved(self) -> Evaluation | None:
        """What an earlier part of this training has left as the best, None without one."""
        path = os.path.join(self._weights.save_dir, f"{NAME}.pth")
        if not comm.is_main_process() or not PathManager.isfile(path):
            return None
        metric, done, value = load_tensors(path).get("best", ["", 0, 0.0])
        return Evaluation(done, value) if metric == self._metric else None
