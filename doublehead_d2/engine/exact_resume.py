"""A hook with which a resumed training is the one that was not interrupted, to the bit."""

import logging
from collections.abc import Iterable
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN
from detectron2.utils import comm

from doublehead_d2.data.seeding import STEP, seed_all
from doublehead_d2.engine.train_loader import TrainLoader

logger = logging.getLogger(__name__)


class ExactResume(HookBase):
    """Data goes on at its place, and random numbers follow from (seed, iteration, process).

    With the state of model, optimizer and schedule that detectron2 keeps, that is all that a step
    follows from: there is no state of random numbers to be kept for each process, and what is drawn
    between two steps, e.g. by an evaluation, changes nothing.

    In a `train_net.py` of your own, in every process, with `build_train_loader` of
    `engine.train_loader` in place of detectron2's: `ExactResume(loader, seed=cfg.SEED)`.
    """

    def __init__(self, loader: Iterable[Any], *, seed: int = -1) -> None:
        """
        Args:
            loader: of the training data; one that is no `TrainLoader` starts anew.
            seed: SEED of the config; below 0 it is the loader's, or one that is drawn.
        """
        self._loader = loader
        self._wanted = seed
        if seed < 0:
            if isinstance(loader, TrainLoader):
                seed = loader.seed
            else:
                seed = int(comm.shared_random_seed())
        self.seed = seed
        self._before: dict[str, Any] | None = None  # state of the checkpoint

    def before_train(self) -> None:
        """Go on where the checkpoint ended."""
        done = self.trainer.start_iter
        if self._before is not None:
            self._take_up(self._before)
        elif done:
            logger.warning(
                "The checkpoint is of a version whose data could not go on: from iteration %d on "
                "images come in the order that they have there by seed %d.",
                *(done, self.seed),
            )
        if self._wanted < 0 and self._before is None:
            logger.info(
                "SEED is %d: order and random numbers of this training follow from %d, which its "
                "checkpoints keep.",
                *(self._wanted, self.seed),
            )
        if isinstance(self._loader, TrainLoader):
            self._loader.begin(seed=self.seed, start=done * self._loader.parts)
        elif done:
            logger.warning("This loader of training data cannot go on: its images start anew.")
        for hook in self.trainer._hooks:
            loader = getattr(hook, "_data_loader", None)
            if isinstance(hook, PreciseBN) and isinstance(loader, TrainLoader):
                updates = done // hook._period if hook._period > 0 else 0
                loader.begin(seed=self.seed, start=updates * hook._num_iter)

    def before_step(self) -> None:
        """What the model draws follows from the iteration."""
        seed_all(self.seed, STEP, self.trainer.iter, comm.get_rank())

    def state_dict(self) -> dict[str, Any]:
        """What the order and the random numbers follow from."""
        facts = self._loader.facts if isinstance(self._loader, TrainLoader) else {}
        return {"seed": self.seed, "facts": facts, "processes": comm.get_world_size()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._before = state_dict

    def _take_up(self, before: dict[str, Any]) -> None:
        """Take the seed of the checkpoint, and say what keeps this training from being the same."""
        if self._wanted < 0:
            self.seed = before["seed"]
        now = {**self.state_dict()["facts"], "SEED": self.seed}
        changes = [
            f"{name} (now {now[name]}, before {value})"
            for name, value in {**before["facts"], "SEED": before["seed"]}.items()
            if name in now and now[name] != value
        ]
        if changes:
            logger.warning(
                "The order of the training data is another one than before, and images of this "
                "epoch may be seen twice or not: what has changed is %s.",
                ", ".join(changes),
            )
        processes = comm.get_world_size()
        if processes != before["processes"]:
            logger.warning(
                "Resumed in %d processes instead of %d: images come in the same order, and what is "
                "random in a step follows from seed, iteration and process.",
                *(processes, before["processes"]),
            )
