"""Means, deviations, correlations and histograms of values that are too many to be kept.

What is kept does not grow with the number of values. Each batch is summed up in two passes in
float64, and put to what is there by the formulas of Chan, Golub and LeVeque (Updating formulae and
a pairwise algorithm for computing sample variances, 1979):

    n = n_a + n_b,  δ = m_b - m_a,  m = m_a + δ n_b / n,  S = S_a + S_b + δ δᵀ n_a n_b / n

with m the mean and S the sums of products of deviations from it. Means are kept as distances from
the smallest value of the first batch, and no square of a value is ever summed, so that a spread of
1 around 1e8 is not lost. Parts of a run, in whatever order, merge to what one pass over all would
have found. Source: issue 22, for Section 3 of the paper.

Shape legend: R values of a batch; B bins, or groups, that are counted each on its own; H cells of a
histogram; V variables.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

Streamed = TypeVar("Streamed", bound="_Streamed")


class _Streamed:
    """Counts, means and products of deviations of V variables in B bins."""

    variables: ClassVar[int]

    def __init__(self, bins: int) -> None:
        """
        Args:
            bins: B, each counted on its own.
        """
        self.count = torch.zeros(bins, dtype=torch.int64)
        """B numbers of values."""
        size = self.variables
        # The means are the sums of these two; both are 0 in an empty bin.
        self._origins = torch.zeros(bins, size, dtype=torch.float64)
        self._means = torch.zeros(bins, size, dtype=torch.float64)
        self._products = torch.zeros(bins, size, size, dtype=torch.float64)

    def merge(self: Streamed, other: Streamed) -> None:
        """Take in what another one has counted.

        Args:
            other: of as many bins; it is left as it is.
        """
        assert len(other.count) == len(self.count), f"{len(other.count)} bins, {len(self.count)}"
        self._take_in(other.count, other._origins, other._means, other._products)

    def state(self) -> dict[str, Any]:
        """All that is kept, as JSON takes it. Python writes and reads floats without a loss."""
        values = {name: getattr(self, f"_{name}").tolist() for name in self._shapes(0)}
        return {"count": self.count.tolist(), **values}

    @classmethod
    def from_state(cls: type[Streamed], state: Mapping[str, Any]) -> Streamed:
        """What :meth:`state` was taken of, bit by bit.

        Raises:
            ValueError: numbers of another kind of statistic.
        """
        bins = len(state["count"])
        streamed = cls(bins)
        streamed.count = torch.tensor(state["count"], dtype=torch.int64)
        for name, shape in cls._shapes(bins).items():
            values = torch.tensor(state[name], dtype=torch.float64)
            if values.numel() != math.prod(shape):
                raise ValueError(
                    f"the state has {values.numel()} {name} of {bins} bins; allowed: "
                    f"{math.prod(shape)}, those of {cls.__name__}"
                )
            setattr(streamed, f"_{name}", values.view(shape))
        return streamed

    @classmethod
    def _shapes(cls, bins: int) -> dict[str, tuple[int, ...]]:
        size = cls.variables
        return {"origins": (bins, size), "means": (bins, size), "products": (bins, size, size)}

    def _add(self, values: Tensor, bins: Tensor) -> None:
        """Count values, R x V float64 on the CPU, in their bins, R."""
        bins = bins.detach().to("cpu", torch.int64)
        if not values.isfinite().all():
            raise ValueError(
                f"{int((~values.isfinite()).any(dim=1).sum())} of {len(values)} values are not "
                "finite; allowed: numbers alone (has the training of the model diverged?)"
            )
        count = torch.bincount(bins, minlength=len(self.count))
        assert len(count) == len(self.count), f"bin {int(bins.max())} of {len(self.count)}"
        rows = bins[:, None].expand_as(values)
        origins = torch.zeros_like(self._origins).scatter_reduce(
            0, rows, values, "amin", include_self=False
        )
        values = values - origins[bins]
        means = torch.zeros_like(origins).index_add_(0, bins, values)
        means /= count.clamp(min=1)[:, None]
        deviations = values - means[bins]
        products = torch.zeros_like(self._products)
        products.index_add_(0, bins, deviations[:, :, None] * deviations[:, None])
        self._take_in(count, origins, means, products)

    def _take_in(self, count: Tensor, origins: Tensor, means: Tensor, products: Tensor) -> None:
        first, more = (self.count == 0)[:, None], (count > 0)[:, None]
        total = self.count + count
        delta = torch.where(more, (origins - self._origins) + (means - self._means), 0.0)
        share = (count / total.clamp(min=1).double())[:, None]
        squares = delta[:, :, None] * delta[:, None]
        self._products = (
            self._products + products + squares * (self.count[:, None] * share)[:, None]
        )
        self._means = torch.where(first, means, self._means + delta * share)
        self._origins = torch.where(first, origins, self._origins)
        self.count = total


class Moments(_Streamed):
    """Mean and standard deviation in each of B bins."""

    variables = 1

    def add(self, values: Tensor, bins: Tensor) -> None:
        """Count more values.

        Args:
            values: R of any real type on any device.
            bins: R indices of their bins.

        Raises:
            ValueError: a value is not finite.
        """
        self._add(values.detach().to("cpu", torch.float64)[:, None], bins)

    @property
    def mean(self) -> Tensor:
        """B means in float64; NaN in an empty bin."""
        return torch.where(self.count > 0, (self._origins + self._means)[:, 0], torch.nan)

    @property
    def deviation(self) -> Tensor:
        """B standard deviations of the population, divided by n and not n - 1; NaN if empty.

        Those of the values that there are, as in Figure 2: a bin is not a sample of a larger one.
        """
        return (self._products[:, 0, 0] / self.count).sqrt()


class Comoments(_Streamed):
    """What correlations of pairs (x, y) in each of B groups are made from."""

    variables = 2

    def add(self, x: Tensor, y: Tensor, groups: Tensor) -> None:
        """Count more pairs.

        Args:
            x, y: R each, of any real type on any device.
            groups: R indices of their groups.

        Raises:
            ValueError: a value is not finite.
        """
        pairs = [values.detach().to("cpu", torch.float64) for values in (x, y)]
        self._add(torch.stack(pairs, dim=1), groups)

    def means_from(self, centers: Tensor) -> Tensor:
        """B x 2 means of x and y in float64, as distances from centers that broadcast to B x 2."""
        return (self._origins - centers) + self._means

    @property
    def products(self) -> Tensor:
        """B x 2 x 2 sums of products of deviations from the means."""
        return self._products

    @property
    def pearson(self) -> Tensor:
        """B correlation coefficients in float64, -1 to 1.

        NaN where there are fewer than two pairs, or where x or y is the same in all of them.
        """
        return pearson(self._products).masked_fill(self.count < 2, torch.nan)


class Histograms:
    """How often values of 0 to 1 fall into each of H uniform cells, in each of B bins."""

    def __init__(self, bins: int, cells: int) -> None:
        """
        Args:
            bins: B, each counted on its own.
            cells: H.
        """
        self.count = torch.zeros(bins, cells, dtype=torch.int64)
        """B x H numbers of values."""

    def add(self, values: Tensor, bins: Tensor) -> None:
        """Count more values.

        Args:
            values: R of 0 to 1; their cells are those of :func:`uniform_bins`.
            bins: R indices of their bins.
        """
        rows, cells = self.count.shape
        places = bins.to("cpu", torch.int64) * cells + uniform_bins(values.to("cpu"), cells)
        counted = torch.bincount(places, minlength=rows * cells)
        assert len(counted) == rows * cells, f"bin {int(bins.max())} of {rows}"
        self.count += counted.view(rows, cells)

    def merge(self, other: "Histograms") -> None:
        """Take in what another one, of as many bins and cells, has counted."""
        assert other.count.shape == self.count.shape, f"{other.count.shape}, {self.count.shape}"
        self.count += other.count

    def state(self) -> dict[str, Any]:
        """All that is kept, as JSON takes it."""
        return {"cells": self.count.shape[1], "count": self.count.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Histograms":
        """What :meth:`state` was taken of."""
        histograms = cls(len(state["count"]), state["cells"])
        histograms.count += torch.tensor(state["count"], dtype=torch.int64).view_as(
            histograms.count
        )
        return histograms


def uniform_bins(values: Tensor, bins: int) -> Tensor:
    """Which of B uniform bins of 0 to 1 each value is in; 1 is in the last.

    Bin i has the values from i / B on up to, and without, (i + 1) / B. These edges are rounded to
    the type of the values: the float32 closest to 0.05 begins bin 1 of 20, as does the float64
    closest to it, and the float before it is in bin 0.

    Args:
        values: R, float32 or float64. What rounding has put above 1 is in the last bin.
        bins: B.

    Returns:
        R int64 indices, 0 to B - 1.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    return torch.bucketize(values, edges.to(values), right=True)


def pearson(products: Tensor) -> Tensor:
    """Correlation coefficients; NaN where a variable has no spread.

    Args:
        products: ... x 2 x 2 sums of products of deviations.

    Returns:
        ... of -1 to 1.
    """
    # Roots before the product: that of two small sums might be 0.
    spread = products[..., 0, 0].sqrt() * products[..., 1, 1].sqrt()
    return torch.where(spread > 0, products[..., 0, 1] / spread, torch.nan).clamp(-1, 1)
