"""Random numbers that follow from a seed and a place."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from doublehead_d2.data.seeding import (
    IMAGE,
    MOST_TRIES,
    STEP,
    Draw,
    SeededDataset,
    generator,
    kept_random_state,
    seed_all,
)

Numbers = tuple[float, float, float]


def drawn() -> Numbers:
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def with_numbers(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "drawn": drawn()}


def only_the_last(record: dict[str, Any]) -> dict[str, Any] | None:
    return with_numbers(record) if record["id"] == 3 else None


RECORDS = [{"id": i} for i in range(4)]
DRAWS = [Draw(2, 0, 5), Draw(0, 1, 5), Draw(2, 2, 5), Draw(3, 3, 5), Draw(1, 4, 5)]


def test_seeds_follow_from_all_arguments() -> None:
    found = set()
    for arguments in [(1, 2), (1, 3), (2, 2), (1, 2, 1), (2, 1)]:
        seed_all(*arguments)
        numbers = drawn()
        seed_all(*arguments)
        assert drawn() == numbers
        found |= set(numbers)
    assert len(found) == 15


def test_large_seeds() -> None:
    seed_all(2**63, STEP, 10**9)
    before = drawn()
    seed_all(2**63 - 1, STEP, 10**9)
    assert not set(before) & set(drawn())


def test_generators_are_of_their_own() -> None:
    values = [generator(*x).random() for x in [(1, 2), (1, 3), (2, 2), (1, 2, 0)]]
    assert len(set(values)) == 4
    assert generator(1, 2).random() == values[0]


@pytest.mark.parametrize("on_gpus", [True, False])
def test_kept_state(on_gpus: bool) -> None:
    seed_all(1)
    expected = drawn()
    seed_all(1)
    with pytest.raises(KeyError), kept_random_state(on_gpus=on_gpus):
        drawn()
        raise KeyError
    assert drawn() == expected


def test_an_image_follows_from_its_draw_alone() -> None:
    data = SeededDataset(RECORDS, with_numbers)
    assert len(data) == 4
    seed_all(9)
    expected = drawn()
    seed_all(9)
    images = [data[draw] for draw in DRAWS]
    assert drawn() == expected, "the process's own numbers are as they were"
    assert [image["id"] for image in images] == [2, 0, 2, 3, 1]
    assert len({number for image in images for number in image["drawn"]}) == 15
    assert data[DRAWS[2]] == images[2] != data[Draw(2, 2, 6)]


@pytest.mark.parametrize("mapper", [with_numbers, only_the_last])
def test_another_image_in_place_of_one_that_is_left_out(mapper: Any) -> None:
    whole, again = SeededDataset(RECORDS, mapper), SeededDataset(RECORDS, mapper)
    images = [whole[draw] for draw in DRAWS]
    # Not of what was left out before, as detectron2's
    assert [again[draw] for draw in reversed(DRAWS)] == images[::-1]
    if mapper is only_the_last:
        assert {image["id"] for image in images} == {3}
        assert len({image["drawn"] for image in images}) == 5


def test_a_mapper_that_leaves_all_out() -> None:
    calls = []
    data = SeededDataset(RECORDS, lambda record: calls.append(record["id"]))
    with pytest.raises(ValueError, match=r"gave None for 100 images in a row; allowed: None for"):
        data[Draw(1, 0, 0)]
    assert len(calls) == MOST_TRIES and calls[0] == 1 and set(calls) == {0, 1, 2, 3}


def test_steps_are_not_images() -> None:
    seed_all(5, STEP, 0, 0)
    numbers = drawn()
    seed_all(5, IMAGE, 0, 0)
    assert not set(numbers) & set(drawn())


@pytest.mark.slow
@pytest.mark.parametrize("mapper", [with_numbers, only_the_last])
def test_workers_give_the_same_images(mapper: Any) -> None:
    data = SeededDataset(RECORDS, mapper)
    options: dict[str, Any] = {"sampler": DRAWS, "batch_size": None}
    options["collate_fn"] = lambda image: image
    alone = list(DataLoader(data, **options))
    assert list(DataLoader(data, num_workers=2, **options)) == alone
    assert [image["drawn"] for image in alone] == [data[draw]["drawn"] for draw in DRAWS]
