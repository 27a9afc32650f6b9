"""Random numbers that follow from a seed and a place, not from what was drawn before."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset

Record = dict[str, Any]

# What random numbers are for; those of different purposes have nothing to do with one another.
EPOCH, SUBSET, IMAGE, STEP = range(4)

MOST_TRIES = 100  # images in a row that a mapper may leave out


class Draw(NamedTuple):
    """An image of a training, and its place in the stream of all that are drawn."""

    image: int  # index of its record
    position: int
    seed: int  # of the training


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """Random numbers of their own for each sequence of numbers that are not negative."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))


def seed_all(seed: int, *numbers: int, on_gpus: bool = True) -> None:
    """Let the random numbers of Python, numpy and torch follow from the arguments.

    Args:
        seed, numbers: none of them negative.
        on_gpus: those on all GPUs, too.
    """
    words = np.random.SeedSequence(seed, spawn_key=numbers).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002
    for_torch = int(words[2]) << 32 | int(words[3])
    # Not torch.manual_seed, which also seeds, and notes down for later, all devices that there are.
    torch.default_generator.manual_seed(for_torch)
    if on_gpus and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(for_torch)


@contextmanager
def kept_random_state(*, on_gpus: bool = True) -> Iterator[None]:
    """Leave the random numbers of Python, numpy and torch as they were.

    Args:
        on_gpus: those on all GPUs, too.
    """
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng() if on_gpus else torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


class SeededDataset(Dataset):
    """Maps the record of a :class:`Draw`, with random numbers that follow from the draw alone.

    So an image is the same whichever worker maps it, whatever was mapped before, and the random
    numbers of the process that asks for it stay as they were. That holds for any mapper that takes
    its random numbers from Python, numpy or torch themselves. In place of detectron2's
    `MapDataset`, whose replacements for what a mapper leaves out depend on what it left out before.
    """

    def __init__(self, records: Any, mapper: Callable[[Record], Record | None]) -> None:
        """
        Args:
            records: by index.
            mapper: gives None for a record that it leaves out, in whose place another one is drawn.
        """
        self.records = records
        self._mapper = PicklableWrapper(mapper)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Record:
        """The mapped record.

        Raises:
            ValueError: the mapper left out many records in a row.
        """
        image = draw.image
        with kept_random_state(on_gpus=False):
            for attempt in range(MOST_TRIES):
                seed_all(draw.seed, IMAGE, draw.position, attempt, on_gpus=False)
                mapped = self._mapper(self.records[image])
                if mapped is not None:
                    return mapped
                place = generator(draw.seed, IMAGE, draw.position, attempt, 1)
                image = int(place.integers(len(self)))
        raise ValueError(
            f"the mapper of the training data gave None for {MOST_TRIES} images in a row; allowed: "
            "None for some images, in whose place others are trained on"
        )
