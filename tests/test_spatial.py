"""Cosines of positions, and an fc layer as a map."""

import json
import math

import pytest
import torch
from torch import nn

from doublehead_d2.analysis import spatial
from doublehead_d2.analysis.spatial import (
    MeanCosines,
    fc_map,
    mean_off_diagonal,
    position_cosines,
    weight_cosines,
)


def test_cosines_by_hand() -> None:
    # Two channels, positions (row, column): (0, 0): (1, 0), (0, 1): (1, 1), (1, 0): (0, 2),
    # (1, 1): (-3, 0). Of (1, 0) and (1, 1) the angle is 45°, of (1, 0) and (-3, 0) 180°.
    vectors = torch.tensor([[[1.0, 1.0], [0.0, -3.0]], [[0.0, 1.0], [2.0, 0.0]]])
    half = math.sqrt(0.5)
    expected = [[1, half, 0, -1], [half, 1, half, -half], [0, half, 1, 0], [-1, -half, 0, 1]]
    found = position_cosines(vectors[None])
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_cosines_of_a_zero_vector_are_not_defined() -> None:
    found = position_cosines(torch.tensor([[[[0.0, 2.0]], [[0.0, 1.0]]]]))
    assert found.isnan().tolist() == [[[True, True], [True, False]]]


def test_positions_are_told_apart_row_by_row() -> None:
    """Every position its own direction, but for two that share one: 1 where they meet."""
    maps = torch.zeros(1, 6, 2, 3)
    for row in range(2):
        for column in range(3):
            maps[0, 3 * row + column, row, column] = 1.0
    maps[0, :, 1, 2] = maps[0, :, 0, 1]
    expected = torch.eye(6, dtype=torch.float64)
    expected[1, 5] = expected[5, 1] = 1.0
    torch.testing.assert_close(position_cosines(maps)[0], expected)


def test_outputs_by_position_sum_up_to_the_layer() -> None:
    torch.manual_seed(0)
    pooled = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    fc = nn.Linear(4 * 3 * 2, 7).double()
    maps = fc_map(fc.weight, pooled)
    assert maps.shape == (5, 7, 3, 2)
    torch.testing.assert_close(maps.sum(dim=(2, 3)) + fc.bias, fc(pooled.flatten(1)))
    # The sum does not say where a part is: what stands at one position alone gives nothing else.
    alone = torch.zeros_like(pooled)
    alone[:, :, 2, 1] = pooled[:, :, 2, 1]
    torch.testing.assert_close(maps[:, :, 2, 1], fc(alone.flatten(1)) - fc.bias)
    assert fc_map(fc.weight, pooled[:0]).shape == (0, 7, 3, 2)


def test_an_fc_map_by_hand() -> None:
    # One output, two channels, positions 0 and 1: the weights (1, 2 | 3, 4) are channel 0 at both
    # positions, then channel 1. Of x = (10, 20 | 30, 40): 1·10 + 3·30 = 100 and 2·20 + 4·40 = 200.
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    pooled = torch.tensor([[[[10.0, 20.0]], [[30.0, 40.0]]]])
    assert fc_map(weight, pooled).flatten().tolist() == [100.0, 200.0]


def test_cosines_of_weights_by_hand() -> None:
    # Two outputs, one channel, positions 0, 1: their vectors are (3, 4) and (4, 3).
    weight = torch.tensor([[3.0, 4.0], [4.0, 3.0]])
    found = weight_cosines(weight, (1, 1, 2))
    expected = torch.tensor([[1.0, 0.96], [0.96, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    # One output, two channels: (1, 3) and (2, 4) by the order of the flattened features.
    found = weight_cosines(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (2, 1, 2))
    assert found[0, 1].item() == pytest.approx(14 / math.sqrt(10 * 20), abs=1e-12)


def test_mean_of_different_positions_by_hand() -> None:
    correlation = torch.tensor([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]])
    assert mean_off_diagonal(correlation) == pytest.approx(0.4)
    correlation[0, 1] = correlation[1, 0] = math.nan
    assert mean_off_diagonal(correlation) == pytest.approx(0.5)


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    maps = torch.randn(count, 5, 3, 3, generator=torch.Generator().manual_seed(seed))
    maps[::4, :, 1, 2] = 0.0  # nothing there
    return maps


def test_means_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spatial, "CHUNK", 4)
    maps = numbers(23)
    mean = MeanCosines(9)
    for part in maps.split([10, 0, 1, 12]):
        mean.add(part)
    assert mean.objects == 23 and mean.positions == 9
    # An oracle of its own: cosine_similarity, pair by pair, of the maps that have both
    for i in range(9):
        for j in range(9):
            a, b = (maps.double().flatten(2)[:, :, k] for k in (i, j))
            both = a.any(dim=1) & b.any(dim=1)
            expected = nn.functional.cosine_similarity(a[both], b[both], eps=0).mean()
            torch.testing.assert_close(mean.mean[i, j], expected, rtol=0, atol=1e-12)


def test_parts_merge_to_the_whole_and_survive_json() -> None:
    maps = numbers(20)
    whole, first, second = MeanCosines(9), MeanCosines(9), MeanCosines(9)
    whole.add(maps)
    first.add(maps[:7])
    second.add(maps[7:])
    state = json.loads(json.dumps(first.state()))
    again = MeanCosines.from_state(state)
    assert again.state() == first.state()
    again.merge(second)
    torch.testing.assert_close(again.mean, whole.mean, rtol=0, atol=1e-12)
    assert again.objects == 20 and second.objects == 13
    empty = MeanCosines(9)
    assert empty.mean.isnan().all() and empty.objects == 0


def test_what_is_refused() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        MeanCosines(9).add(numbers(3).fill_(math.inf))
    with pytest.raises(AssertionError, match="9, 9"):
        MeanCosines(9).merge(MeanCosines(4))
