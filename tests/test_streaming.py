"""Statistics in constant memory against two passes in float64, and by hand."""

import json
import statistics

import pytest
import torch
from torch import Tensor

from doublehead_d2.analysis.streaming import Comoments, Histograms, Moments, uniform_bins

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def random_pairs(count: int, offset: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, y that follows it, and bins of which the last is empty."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, generator=generator, dtype=torch.float64)
    y = 0.5 * x + torch.rand(count, generator=generator, dtype=torch.float64)
    return offset + x, 2 * offset + y, torch.randint(4, (count,), generator=generator)


def test_moments_by_hand() -> None:
    moments = Moments(3)
    moments.add(torch.tensor([1.0, 4.0, 2.0, 6.0]), torch.tensor([0, 2, 0, 0]))
    # 1, 2, 6: mean 3, squares of deviations 4 + 1 + 9 = 14
    torch.testing.assert_close(moments.count, torch.tensor([3, 0, 1]))
    expected = torch.tensor([3.0, torch.nan, 4.0], dtype=torch.float64)
    torch.testing.assert_close(moments.mean, expected, equal_nan=True)
    expected = torch.tensor([(14 / 3) ** 0.5, torch.nan, 0.0], dtype=torch.float64)
    torch.testing.assert_close(moments.deviation, expected, equal_nan=True)


def test_pearson_by_hand() -> None:
    comoments = Comoments(1)
    # x - 2 = -1 0 1, y - 3 = -2 1 1: products 2 + 0 + 1 = 3, squares 2 and 6
    comoments.add(torch.tensor([1, 2, 3]), torch.tensor([1, 4, 4]), torch.zeros(3).long())
    assert comoments.pearson.item() == pytest.approx(3 / 12**0.5, abs=1e-15)


@pytest.mark.parametrize("offset", [0.0, 1e8])
@pytest.mark.parametrize("sizes", [(1000,), (1, 999), (500, 0, 123, 377), (1,) * 1000])
def test_equal_to_two_passes(offset: float, sizes: tuple[int, ...]) -> None:
    x, y, bins = random_pairs(1000, offset)
    moments, comoments = Moments(5), Comoments(5)
    for part in zip(x.split(sizes), y.split(sizes), bins.split(sizes), strict=True):
        moments.add(part[0], part[2])
        comoments.add(*part)
    for i in range(4):
        own = x[bins == i].tolist()
        # the standard library sums exactly, by fractions
        assert moments.mean[i].item() == pytest.approx(statistics.fmean(own), rel=1e-15)
        assert moments.deviation[i].item() == pytest.approx(statistics.pstdev(own), rel=1e-9)
        expected = torch.corrcoef(torch.stack([x - offset, y - 2 * offset])[:, bins == i])[0, 1]
        torch.testing.assert_close(comoments.pearson[i], expected, **CLOSE)
    assert moments.count[4] == 0 and moments.mean[4].isnan() and comoments.pearson[4].isnan()


def test_a_naive_sum_of_squares_would_fail() -> None:
    x, _, bins = random_pairs(1000, 1e8)
    own = x[bins == 0]
    naive = (own.square().mean() - own.mean().square()).clamp(min=0).sqrt().item()
    assert naive != pytest.approx(statistics.pstdev(own.tolist()), rel=0.1)


def test_correlation_far_from_zero_to_1e_9() -> None:
    x, y, bins = random_pairs(1000, 0.0)
    # In steps of 2^-20 no bit is lost beside an offset of 1e8 or 2e8: the sums are the same.
    x, y = ((v * 2**20).round() / 2**20 for v in (x, y))
    comoments = Comoments(4)
    for part in zip((x + 1e8).split(77), (y - 2e8).split(77), bins.split(77), strict=True):
        comoments.add(*part)
    expected = torch.stack(
        [torch.corrcoef(torch.stack([x, y])[:, bins == i])[0, 1] for i in range(4)]
    )
    torch.testing.assert_close(comoments.pearson, expected, **CLOSE)


@pytest.mark.parametrize("kind", [Moments, Comoments])
def test_merged_in_any_order(kind: type) -> None:
    pairs = random_pairs(600, 1e4)
    arguments = pairs if kind is Comoments else pairs[::2]
    parts = []
    for part in zip(*(v.split((100, 0, 350, 150)) for v in arguments), strict=True):
        parts.append(kind(5))
        parts[-1].add(*part)
    whole = kind(5)
    whole.add(*arguments)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (1, 2, 3, 0)):
        merged = kind(5)
        for i in order:
            merged.merge(parts[i])
        torch.testing.assert_close(merged.count, whole.count)
        found, expected = (x._origins + x._means for x in (merged, whole))
        torch.testing.assert_close(found, expected, **CLOSE)
        torch.testing.assert_close(merged._products, whole._products, **CLOSE)
    # merging has not changed what was merged
    assert parts[1].count.sum() == 0 and parts[3].count.sum() == 150


def test_a_merge_by_hand() -> None:
    one, other = Moments(1), Moments(1)
    one.add(torch.tensor([0.0, 2.0]), torch.zeros(2).long())
    other.add(torch.tensor([7.0]), torch.zeros(1).long())
    one.merge(other)
    # 0, 2, 7: mean 3, squares of deviations 9 + 1 + 16 = 26
    assert one.mean.item() == pytest.approx(3) and one.deviation.item() == pytest.approx(
        (26 / 3) ** 0.5
    )


def test_what_has_no_correlation() -> None:
    comoments = Comoments(4)
    # one pair; x of 0.1 alone, whose mean a sum would miss; y alone; two pairs
    x = torch.tensor([0.3] + [0.1] * 9 + [0.2, 0.5] + [0.2, 0.5])
    y = torch.tensor([0.3] + [0.1 * i for i in range(9)] + [0.7, 0.7] + [0.4, 0.1])
    groups = torch.tensor([0] + [1] * 9 + [2] * 2 + [3] * 2)
    for part in zip(x.split(4), y.split(4), groups.split(4), strict=True):
        comoments.add(*part)
    assert comoments.pearson[:3].isnan().all()
    assert comoments.pearson[3].item() == pytest.approx(-1)


def test_small_spreads_are_no_zeros() -> None:
    comoments = Comoments(1)
    x = torch.tensor([0.0, 1e-90, 2e-90], dtype=torch.float64)
    comoments.add(x, -x, torch.zeros(3).long())
    assert comoments.pearson.item() == pytest.approx(-1)


def test_what_is_not_finite_is_refused() -> None:
    moments = Moments(2)
    with pytest.raises(ValueError, match="2 of 3 values are not finite"):
        moments.add(torch.tensor([0.0, torch.nan, torch.inf]), torch.tensor([0, 1, 1]))
    assert moments.count.tolist() == [0, 0]


def test_a_bin_that_is_not_there() -> None:
    with pytest.raises(AssertionError, match="bin 2 of 2"):
        Moments(2).add(torch.ones(1), torch.tensor([2]))
    with pytest.raises(AssertionError, match="3 bins, 2"):
        Moments(2).merge(Moments(3))


@pytest.mark.parametrize("kind", [Moments, Comoments])
@pytest.mark.parametrize("count", [0, 60])
def test_states_lose_nothing(kind: type, count: int) -> None:
    pairs = random_pairs(count, 1 / 3)
    streamed = kind(5)
    streamed.add(*(pairs if kind is Comoments else pairs[::2]))
    again = kind.from_state(json.loads(json.dumps(streamed.state(), allow_nan=False)))
    for name in ("count", "_origins", "_means", "_products"):
        found, expected = getattr(again, name), getattr(streamed, name)
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    again.merge(streamed)  # its shapes, too
    assert again.count.sum() == 2 * count


def test_states_of_another_statistic_are_refused() -> None:
    with pytest.raises(ValueError, match="6 origins of 3 bins; allowed: 3, those of Moments"):
        Moments.from_state(Comoments(3).state())


def test_histograms_by_hand() -> None:
    histograms = Histograms(2, 4)
    values = torch.tensor([0.0, 0.2499, 0.25, 1.0, 0.75, 0.5])
    histograms.add(values, torch.tensor([0, 0, 0, 0, 1, 1]))
    histograms.add(torch.zeros(0), torch.zeros(0).long())
    assert histograms.count.tolist() == [[2, 1, 0, 1], [0, 0, 1, 1]]
    again = Histograms.from_state(json.loads(json.dumps(histograms.state())))
    again.merge(histograms)
    assert again.count.tolist() == [[4, 2, 0, 2], [0, 0, 2, 2]]
    with pytest.raises(AssertionError, match="bin 2 of 2"):
        histograms.add(torch.zeros(1), torch.tensor([2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_of_bins(dtype: torch.dtype) -> None:
    # written as decimals, as in the paper's axes: each begins its bin
    edges = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5], dtype=dtype)
    edges = torch.cat([edges, torch.tensor([i / 20 for i in range(11, 20)], dtype=dtype)])
    torch.testing.assert_close(uniform_bins(edges, 20), torch.arange(1, 20))
    before = torch.nextafter(edges, torch.zeros_like(edges))
    torch.testing.assert_close(uniform_bins(before, 20), torch.arange(19))
    ends = torch.tensor([0.0, 1.0, 1 + 1e-6], dtype=dtype)
    assert uniform_bins(ends, 20).tolist() == [0, 19, 19]
    assert uniform_bins(ends[:0], 20).tolist() == []
