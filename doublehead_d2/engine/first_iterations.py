"""A hook that shows that a training runs, before the first twenty iterations are over."""

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventWriter

SHOWN = (1, 2, 5, 10)  # iterations of this run, counted from 1
PERIOD = 20  # of DefaultTrainer's writers


class FirstIterations(HookBase):
    """Prints losses and time of the first iterations; metrics.json keeps its rows.

    The writers of `DefaultTrainer` come every 20 iterations, which takes minutes on a CPU.
    """

    def __init__(self, printer: EventWriter | None = None) -> None:
        """
        Args:
            printer: what prints; None for detectron2's.
        """
        self._printer = printer

    def before_train(self) -> None:
        """Begin to count; detectron2's printer has an own estimate of the time that is left."""
        self._writer = self._printer or CommonMetricPrinter(self.trainer.max_iter)

    def after_step(self) -> None:
        """Print, unless the writers are about to."""
        done = self.trainer.iter + 1
        by_writers = done % PERIOD == 0 or done == self.trainer.max_iter
        if done - self.trainer.start_iter in SHOWN and not by_writers:
            self._writer.write()
