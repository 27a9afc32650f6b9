"""The line that tells of a training's progress, for people."""

import datetime
import logging
from typing import Any

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from doublehead_d2.config.training import LOSSES

WINDOW = 20  # iterations that losses and waiting are of, as in `CommonMetricPrinter`

logger = logging.getLogger(__name__)


class ProgressPrinter(EventWriter):
    """Epochs and iterations, time left, losses, images per second, in place of detectron2's.

    It puts "epoch" and "images_per_second" beside "eta_seconds" into the event storage, and so into
    metrics.json and TensorBoard when it stands before their writers:

        def build_writers(self):  # of a `DefaultTrainer`
            first = ProgressPrinter(max_iter=..., batch=..., images=count_images(self.data_loader))
            return [first, *super().build_writers()[1:]]
    """

    def __init__(self, *, max_iter: int, batch: int, images: int | None = None) -> None:
        """
        Args:
            max_iter: iterations of the whole training.
            batch: images an iteration, over all processes.
            images: images of an epoch; None where that is not known.
        """
        self._max_iter = max_iter
        self._batch = batch
        self._images = images

    def write(self) -> None:
        """Print, except after the last iteration, which has been told of."""
        storage = get_event_storage()
        done = storage.iter + 1
        if done > self._max_iter or "total_loss" not in storage.histories():
            return
        parts = [self._epochs(storage, done), f"iter: {done}/{self._max_iter}"]
        parts += self._time(storage, done) + _losses(storage)
        if "lr" in storage.histories():
            parts.append(f"lr: {storage.history('lr').latest():.3g}")
        if torch.cuda.is_available():
            parts.append(f"memory: {torch.cuda.max_memory_allocated() / 2**20:.0f} MB")
        logger.info("%s", "  ".join(part for part in parts if part))

    def _epochs(self, storage: EventStorage, done: int) -> str:
        if not self._images:
            return ""
        epoch, last = (n * self._batch / self._images for n in (done, self._max_iter))
        storage.put_scalar("epoch", epoch, smoothing_hint=False)
        return f"epoch: {epoch:.2f}/{last:.1f}"

    def _time(self, storage: EventStorage, done: int) -> list[str]:
        if "time" not in storage.histories():  # it is not measured in the first iterations
            return []
        seconds = storage.history("time").median(1000)
        left = seconds * (self._max_iter - done)
        speed = self._batch / storage.history("time").median(WINDOW)
        storage.put_scalar("eta_seconds", left, smoothing_hint=False)
        storage.put_scalar("images_per_second", speed, smoothing_hint=False)
        parts = [f"left: {datetime.timedelta(seconds=int(left))}", f"{speed:.3g} images/s"]
        if "data_time" in storage.histories():
            share = storage.history("data_time").avg(WINDOW) / storage.history("time").avg(WINDOW)
            if share > 0.1:  # below, nobody need care
                parts.append(f"waits for data: {min(share, 1):.0%}")
        return parts


def count_images(loader: Any) -> int | None:
    """Images that a loader of detectron2 draws from; None where it does not say."""
    while hasattr(loader, "dataset"):
        loader = loader.dataset
    try:
        return len(loader)
    except TypeError:
        return None


def _losses(storage: EventStorage) -> list[str]:
    """Medians of the losses of training, the total first."""
    names = [n for n in storage.histories() if "loss" in n and not n.startswith(f"{LOSSES}/")]
    names.sort(key=lambda name: name != "total_loss")
    return [f"{name}: {storage.history(name).median(WINDOW):.4g}" for name in names]
