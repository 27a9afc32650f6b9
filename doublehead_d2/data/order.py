"""Which images a training sees when: a function of a seed and of the place in the training.

N: images of the training data.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from doublehead_d2.data.seeding import EPOCH, SUBSET, Draw, generator

LANDSCAPE, PORTRAIT = range(2)


class DataOrder(NamedTuple):
    """The order of the images of a training, in batches of all processes together.

    Each epoch is an order of its own. Images of a group wait for one another until they are as many
    as a batch: what is left of an epoch comes first in the batches of the next one, so that of any
    number of epochs each image is seen once an epoch.
    """

    groups: np.ndarray  # N, the group of each image
    batch: int  # images
    # N, how often an image is seen an epoch on average, rounded up or down at random; None: once
    repeats: np.ndarray | None = None
    subset: int | None = None  # so many images, drawn at random, are all that are seen

    def epoch(self, seed: int, number: int) -> np.ndarray:
        """The images of an epoch, in the order in which they are drawn."""
        random = generator(seed, EPOCH, number)
        images = np.arange(len(self.groups))
        if self.subset is not None:
            images = generator(seed, SUBSET).permutation(images)[: self.subset]
        if self.repeats is not None:
            whole = np.floor(self.repeats)
            more = random.random(len(images)) < self.repeats - whole
            images = np.repeat(images, whole.astype(int) + more)
        return random.permutation(images)

    def batches(self, seed: int, start: int = 0) -> Iterator[np.ndarray]:
        """The batches from number `start` on, without an end, each of one group."""
        assert len(self.groups), "there are no images"
        first, number, waiting = self._place(seed, start)
        for epoch in itertools.count(first):
            images = self.epoch(seed, epoch)
            full: list[tuple[int, np.ndarray]] = []  # when the last image was drawn, and all
            for group, before in waiting.items():
                drawn = np.flatnonzero(self.groups[images] == group)
                members = np.concatenate([before, images[drawn]])
                end = len(members) // self.batch * self.batch
                last = drawn[self.batch - 1 - len(before) :: self.batch]
                full += zip(last, members[:end].reshape(-1, self.batch), strict=True)
                waiting[group] = members[end:]
            full.sort(key=lambda item: item[0])
            yield from (batch for _, batch in full[max(start - number, 0) :])
            number += len(full)

    def _place(self, seed: int, start: int) -> tuple[int, int, dict[int, np.ndarray]]:
        """The epoch in which a batch ends, the batches before it, the images that wait by group."""
        if self.repeats is not None:  # epochs are not of one length, and have to be counted through
            return 0, 0, dict.fromkeys(np.unique(self.groups).tolist(), np.arange(0))
        groups, counts = np.unique(self.groups[self.epoch(seed, 0)], return_counts=True)
        sizes = dict(zip(groups.tolist(), counts.tolist(), strict=True))

        def full(epochs: int) -> int:
            return sum(epochs * size // self.batch for size in sizes.values())

        epochs = bisect.bisect_right(range((start + 1) * self.batch + 1), start, key=full) - 1
        waiting = {
            g: self._last(seed, epochs, g, epochs * n % self.batch) for g, n in sizes.items()
        }
        return epochs, full(epochs), waiting

    def _last(self, seed: int, epochs: int, group: int, count: int) -> np.ndarray:
        """The last `count` images of a group that are drawn in so many epochs."""
        found = np.arange(0)
        while len(found) < count:
            epochs -= 1
            images = self.epoch(seed, epochs)
            found = np.concatenate([images[self.groups[images] == group], found])
        return found[len(found) - count :]


def draws(
    order: DataOrder,
    seed: int,
    *,
    rank: int = 0,
    processes: int = 1,
    parts: int = 1,
    start: int = 0,
) -> Iterator[Draw]:
    """What a process draws: its share of each part of each batch, one after the other.

    Args:
        order: of all processes.
        seed: of the training.
        rank: of the process.
        processes: all of them.
        parts: in which batches are run; a part is shared by all processes.
        start: parts before the first draw.
    """
    size = order.batch // parts // processes
    assert size * parts * processes == order.batch, "a batch is cut into equal shares"
    step, part = divmod(start, parts)
    for number, batch in enumerate(order.batches(seed, step), step):
        for i in range(part if number == step else 0, parts):
            first = (i * processes + rank) * size
            for place in range(first, first + size):
                yield Draw(int(batch[place]), number * order.batch + place, seed)


def group_by_shape(records: Sequence[dict]) -> np.ndarray:
    """The group of each record: wider than high, or not, as detectron2 has them.

    Those that do not say their size are of the second group.
    """
    wide = [record.get("width", 0) > record.get("height", 0) for record in records]
    return np.where(wide, LANDSCAPE, PORTRAIT)
