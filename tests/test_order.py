"""Which images a training sees when."""

import itertools
from collections import Counter

import numpy as np
import pytest

from doublehead_d2.data.order import DataOrder, draws, group_by_shape
from doublehead_d2.data.seeding import Draw


def listed(*orders: list[int]) -> type[DataOrder]:
    """An order whose epochs are written down; the last one is repeated."""

    class Listed(DataOrder):
        def epoch(self, seed: int, number: int) -> np.ndarray:
            return np.array(orders[min(number, len(orders) - 1)])

    return Listed


def batches(order: DataOrder, count: int, start: int = 0, seed: int = 7) -> list[list[int]]:
    return [x.tolist() for x in itertools.islice(order.batches(seed, start), count)]


def order_of(wide: int, high: int, batch: int, **options: object) -> DataOrder:
    """Images 0 to wide - 1 of the first group, then those of the second."""
    return DataOrder(np.array([0] * wide + [1] * high), batch, **options)


def test_groups_wait_until_they_fill_a_batch() -> None:
    # Images 0, 1, 2 are wide, 3, 4 high. Batches of 2, epochs 0 3 1 2 4 and 4 2 0 3 1:
    # 0 3 1 -> [0 1]; 2 4 -> [3 4]; 2 waits. 4 waits, too, 2 -> [2 2]; 0 waits, 3 -> [4 3],
    # 1 -> [0 1]; nothing waits. The third epoch is as the second: 4, 2 wait, 0 -> [2 0], ...
    order = listed([0, 3, 1, 2, 4], [4, 2, 0, 3, 1])(np.array([0, 0, 0, 1, 1]), 2)
    expected = [[0, 1], [3, 4], [2, 2], [4, 3], [0, 1], [2, 0], [4, 3]]
    assert batches(order, 7) == expected
    for start in range(6):
        assert batches(order, 7 - start, start) == expected[start:]


def test_one_group_is_cut_as_it_comes() -> None:
    order = listed([2, 0, 1], [1, 2, 0])(np.zeros(3, int), 2)
    assert batches(order, 4) == [[2, 0], [1, 1], [2, 0], [1, 2]]


def test_a_batch_of_more_images_than_there_are() -> None:
    order = listed([2, 0, 1], [1, 2, 0])(np.array([0, 0, 1]), 5)
    # Wide: 0 1 | 1 0 | 1 0 ..., the one that is high: 2 each epoch. In epoch 3 the wide ones are
    # five before its 2 comes.
    assert batches(order, 3) == [[0, 1, 1, 0, 1], [2, 2, 2, 2, 2], [0, 1, 0, 1, 0]]
    assert batches(order, 1, 1) == [[2, 2, 2, 2, 2]]


ORDERS = {
    "two groups": order_of(5, 8, 4),
    "a group of one image": order_of(1, 9, 4),
    "one group": order_of(7, 0, 3),
    "fewer images than a batch": order_of(2, 1, 8),
    "repeated": order_of(3, 4, 4, repeats=np.array([1, 1.5, 1, 2.25, 1, 1, 3.0])),
    "a subset": order_of(6, 6, 2, subset=5),
}


@pytest.mark.parametrize("name", ORDERS)
def test_any_start_is_the_tail(name: str) -> None:
    order = ORDERS[name]
    whole = batches(order, 60)
    assert batches(order, 60, seed=8) != whole
    for start in (1, 2, 3, 7, 20, 41):
        assert batches(order, 60 - start, start) == whole[start:]
    assert all(len({order.groups[i] for i in batch}) == 1 for batch in whole)


def test_a_late_start_is_not_counted_through() -> None:
    class Counted(DataOrder):
        def epoch(self, seed: int, number: int) -> np.ndarray:
            epochs.append(number)
            return super().epoch(seed, number)

    epochs: list[int] = []
    next(Counted(np.array([0, 0, 1]), 4).batches(0, 10**6))
    assert len(epochs) < 20 and max(epochs) > 10**6


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 26, 40])
def test_each_image_is_seen_once_an_epoch(batch: int) -> None:
    order = order_of(5, 8, batch)
    # In as many epochs as a batch has images nothing waits at the end of the last one.
    counts = Counter(itertools.chain(*batches(order, 13)))
    assert counts == dict.fromkeys(range(13), batch)


def test_an_epoch_has_each_image_once_and_another_order() -> None:
    order = order_of(5, 8, 4)
    epochs = [order.epoch(7, number).tolist() for number in range(3)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert order.epoch(7, 1).tolist() == epochs[1]


def test_repeats_are_rounded_at_random() -> None:
    order = order_of(3, 0, 1, repeats=np.array([1.0, 2.0, 1.25]))
    counts = [Counter(order.epoch(0, number).tolist()) for number in range(400)]
    assert all((x[0], x[1]) == (1, 2) and x[2] in (1, 2) for x in counts)
    # 1.25 on average: 500 in 400 epochs, with a deviation of sqrt(400 * 0.25 * 0.75) = 8.7
    assert 465 < sum(x[2] for x in counts) < 535


def test_a_subset_is_the_same_in_all_epochs() -> None:
    order = order_of(20, 0, 1, subset=6)
    chosen = {tuple(sorted(order.epoch(3, number).tolist())) for number in range(5)}
    assert len(chosen) == 1 and len(set(next(iter(chosen)))) == 6
    assert tuple(sorted(order.epoch(4, 0).tolist())) not in chosen


def first(order: DataOrder, count: int, **options: int) -> list[Draw]:
    return list(itertools.islice(draws(order, 7, **options), count))


def test_draws_have_their_places() -> None:
    order = listed([2, 0, 1, 3])(np.zeros(4, int), 2)
    expected = [Draw(2, 0, 7), Draw(0, 1, 7), Draw(1, 2, 7), Draw(3, 3, 7), Draw(2, 4, 7)]
    assert first(order, 5) == expected
    assert first(order, 3, start=1) == expected[2:]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_each_part(parts: int, processes: int) -> None:
    order = order_of(9, 7, 12)
    size = 12 // parts // processes
    shares = [
        first(order, 5 * 12 // processes, rank=rank, processes=processes, parts=parts)
        for rank in range(processes)
    ]
    together = [
        draw
        for i in range(5 * parts)
        for share in shares
        for draw in share[i * size : (i + 1) * size]
    ]
    assert together == first(order, 60)


def test_a_start_within_a_step() -> None:
    order = order_of(9, 7, 12)
    options = {"rank": 1, "processes": 2, "parts": 3}
    whole = first(order, 40, **options)
    for start in (1, 2, 3, 7):
        assert first(order, 10, start=start, **options) == whole[2 * start : 2 * start + 10]


def test_shapes_are_grouped_as_by_detectron2() -> None:
    sizes = [(3, 2), (2, 3), (2, 2)]
    records = [{"width": w, "height": h} for w, h in sizes] + [{}]
    assert group_by_shape(records).tolist() == [0, 1, 1, 1]


def test_no_images() -> None:
    with pytest.raises(AssertionError, match="there are no images"):
        next(order_of(0, 0, 2).batches(0))
    with pytest.raises(AssertionError, match="equal shares"):
        next(draws(order_of(4, 0, 4), 0, processes=3))
