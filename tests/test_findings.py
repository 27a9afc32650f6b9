"""What counts as coordinates."""

import numpy as np
import pytest

from doublehead_d2.data.findings import are_coordinates

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "numbers", [[], [0], (1.5, -2), [999_999.9, -999_999.9], np.array([1, 2.5]), [True], iter([3])]
)
def test_coordinates(numbers: object) -> None:
    assert are_coordinates(numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        *([NAN], [1, NAN], [NAN, 1], [1, NAN, 2], [INF], [1, -INF], [INF, -INF]),
        *([1e6], [-1e6, 1], [1, 1e30], [10**400, 1], np.array([1, NAN])),
        *(["1"], [1, "2"], [None], [1, None], [[1, 2]], np.ones((2, 2)), None, 3),
    ],
)
def test_no_coordinates(numbers: object) -> None:
    assert not are_coordinates(numbers)
