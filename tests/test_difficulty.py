"""Groups of objects by size and of classes by difficulty, by hand."""

import math

import pytest
import torch

from doublehead_d2.analysis.difficulty import (
    GROUPS,
    UNKNOWN,
    difficulties_of,
    memberships,
    size_of,
)


def test_sizes() -> None:
    areas = (0.0, 1023.99, 1024, 1024.01, 9215.99, 9216, 9216.01, 1e6)
    assert [size_of(area) for area in areas] == [0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("aps", "expected"),
    [
        ([10.0, 30.0, 20.0], [2, 0, 1]),
        ([10.0, 40.0, 20.0, 30.0], [2, 0, 1, 0]),  # one left: easy
        ([10.0, 50.0, 20.0, 40.0, 30.0], [2, 0, 1, 0, 1]),  # two left: easy and medium
        ([5.0, 5.0, 5.0], [0, 1, 2]),
        ([None, 0.0, math.nan, 20.0, 10.0], [UNKNOWN, 2, UNKNOWN, 0, 1]),
        ([7.0], [0]),
        ([], []),
    ],
)
def test_thirds_of_classes(aps: list, expected: list[int]) -> None:
    assert difficulties_of(aps) == expected


def test_memberships() -> None:
    found = memberships(torch.tensor([0, 2, UNKNOWN]), torch.tensor([1, UNKNOWN, 2]))
    named = [[g for g, has in zip(GROUPS, row, strict=True) if has] for row in found.tolist()]
    assert named == [["all", "small", "medium difficulty"], ["all", "large"], ["all", "hard"]]
