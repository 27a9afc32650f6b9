"""Batches of one key: what runs together, when, and in which order it comes out."""

from collections.abc import Iterator

from doublehead_d2.inference.batches import in_groups


class Runs:
    """Makes results of items and remembers what it was given at a time."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, items: list[str]) -> list[str]:
        self.batches.append(items)
        return [item.upper() for item in items]


def keyed(text: str) -> Iterator[tuple[str | None, str]]:
    """Items such as a1, whose key is the letter; - has none."""
    return ((None if item[0] == "-" else item[0], item) for item in text.split())


def test_equal_keys_run_together_and_come_out_in_order() -> None:
    run = Runs()
    results = list(in_groups(keyed("a1 b1 a2 -x b2 a3"), run, 2, 100))
    assert results == ["A1", "B1", "A2", "-x", "B2", "A3"]
    assert run.batches == [["a1", "a2"], ["b1", "b2"], ["a3"]]


def test_at_the_end_the_first_to_wait_runs_first() -> None:
    run = Runs()
    assert list(in_groups(keyed("b1 a1 b2"), run, 8, 100)) == ["B1", "A1", "B2"]
    assert run.batches == [["b1", "b2"], ["a1"]]


def test_a_rare_key_waits_for_no_more_than_the_window() -> None:
    run, taken = Runs(), []

    def items() -> Iterator[tuple[str | None, str]]:
        for pair in keyed("a1 b1 b2 b3 b4 b5 a2"):
            taken.append(pair[1])
            yield pair

    results = in_groups(items(), run, 3, 4)
    assert next(results) == "A1"
    # b1 to b3 filled a batch; with a1 they are the four that may wait.
    assert taken == ["a1", "b1", "b2", "b3"]
    assert run.batches == [["b1", "b2", "b3"], ["a1"]]
    assert list(results) == ["B1", "B2", "B3", "B4", "B5", "A2"]


def test_batches_of_one_come_out_at_once() -> None:
    run = Runs()
    results = in_groups(keyed("a1 a2"), run, 1, 4)
    assert next(results) == "A1" and run.batches == [["a1"]]


def test_nothing_and_what_needs_no_run() -> None:
    run = Runs()
    assert list(in_groups(keyed(""), run, 2, 2)) == []
    assert list(in_groups(keyed("-x -y"), run, 2, 2)) == ["-x", "-y"]
    assert not run.batches
