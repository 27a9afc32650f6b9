"""Batches of images that are padded to one size, their results in the order given."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

Run = Callable[[list[Any]], Sequence[Any]]


class _Slot:
    """The place of an item in the order: waits, or has its result."""

    def __init__(self, key: Hashable, item: Any) -> None:
        self.key = key
        self.content = item
        self.done = key is None


def in_groups(
    items: Iterable[tuple[Hashable, Any]], run: Run, batch_size: int, window: int
) -> Iterator[Any]:
    """Run items of equal keys together.

    Args:
        items: pairs of a key and an item; with the key None it is its own result.
        run: gives the results of a list of items, one each.
        batch_size: the most items that it is given.
        window: the most items that wait for one another; at least 1.

    Yields:
        the results, in the order of the items.
    """
    slots: deque[_Slot] = deque()
    groups: dict[Hashable, list[_Slot]] = {}
    for key, item in items:
        slots.append(_Slot(key, item))
        if key is not None:
            group = groups.setdefault(key, [])
            group.append(slots[-1])
            if len(group) == batch_size:
                _finish(groups.pop(key), run)
        if len(slots) >= window and not slots[0].done:
            _finish(groups.pop(slots[0].key), run)
        yield from _take_done(slots)
    while slots:
        _finish(groups.pop(slots[0].key), run)
        yield from _take_done(slots)


def _finish(group: list[_Slot], run: Run) -> None:
    results = run([slot.content for slot in group])
    for slot, result in zip(group, results, strict=True):
        slot.content, slot.done = result, True


def _take_done(slots: deque[_Slot]) -> Iterator[Any]:
    while slots and slots[0].done:
        yield slots.popleft().content
