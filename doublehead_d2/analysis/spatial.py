"""How alike the positions of a head's map are: the numbers of Figure 4.

Source: https://arxiv.org/abs/1904.06493, Section 3.4; issue 22. The similarity of two positions of
a map is the cosine of their vectors. The paper averages it over objects; their ground-truth boxes
are the RoIs. An fc-head has no map; one is made of its first layer, whose weights are split by
position, before bias and ReLU. `head_maps.py` asks a detector for these maps.

Shape legend: R RoIs; C channels of a RoI feature, D of a map; h x w positions, P = h·w of them, row
by row; F outputs of an fc layer.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CHUNK = 64  # RoIs whose cosines are computed together: a map is copied in float64


def position_cosines(maps: Tensor) -> Tensor:
    """cos(i, j) = ⟨v_i, v_j⟩ / (‖v_i‖ ‖v_j‖) of all pairs of positions, in float64.

    Args:
        maps: R x D x h x w.

    Returns:
        R x P x P; NaN where a vector is zero, which points nowhere.
    """
    vectors = maps.double().flatten(2)  # R x D x P
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return unit.transpose(1, 2) @ unit


def fc_map(weight: Tensor, pooled: Tensor) -> Tensor:
    """What each position gives to the outputs of an fc layer.

    The layer takes RoI features flattened with the channel first, so that the weight of channel c
    and position p stands in column c·P + p. Output f of position p is Σ_c W[f, c·P + p] x[c, p];
    summed over positions, with the bias, it is what the layer gives before its ReLU.

    Args:
        weight: F x (C·h·w).
        pooled: RoI features R x C x h x w, what the layer takes.

    Returns:
        R x F x h x w.
    """
    by_position = weight.unflatten(1, pooled.shape[1:])  # F x C x h x w
    return torch.einsum("fchw,rchw->rfhw", by_position, pooled)


def weight_cosines(weight: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Cosines of an fc layer's weights of two positions, each a matrix C x F taken as a vector.

    Args:
        weight: F x (C·h·w), columns as :func:`fc_map`.
        shape: C, h and w.

    Returns:
        P x P.
    """
    return position_cosines(weight.unflatten(1, shape).flatten(0, 1)[None])[0]


def mean_off_diagonal(correlation: Tensor) -> float:
    """The mean over pairs of different positions: low where a head is sensitive to space.

    Args:
        correlation: P x P, P from 2; NaN is left out.
    """
    different = ~torch.eye(len(correlation), dtype=torch.bool, device=correlation.device)
    return float(correlation[different].nanmean())


class MeanCosines:
    """:func:`position_cosines` averaged over objects, in memory that does not grow with them."""

    def __init__(self, positions: int) -> None:
        """
        Args:
            positions: P.
        """
        self.objects = 0
        """Maps that were added."""
        self._sums = torch.zeros(positions, positions, dtype=torch.float64)
        # Of the maps in which both vectors point somewhere
        self._counts = torch.zeros(positions, positions, dtype=torch.int64)

    def add(self, maps: Tensor) -> None:
        """Take in maps R x D x h x w, an object each."""
        assert maps.isfinite().all(), "a map has values that are not finite"
        for chunk in maps.split(CHUNK):
            cosines = position_cosines(chunk)
            self._sums += cosines.nansum(dim=0).cpu()
            self._counts += (~cosines.isnan()).sum(dim=0).cpu()
        self.objects += len(maps)

    def merge(self, other: "MeanCosines") -> None:
        """Take in what another one has, of as many positions; it is left as it is."""
        assert self._sums.shape == other._sums.shape, f"{self._sums.shape}, {other._sums.shape}"
        self.objects += other.objects
        self._sums += other._sums
        self._counts += other._counts

    @property
    def positions(self) -> int:
        """P."""
        return len(self._sums)

    @property
    def mean(self) -> Tensor:
        """P x P; NaN where no map has both vectors."""
        return self._sums / self._counts

    def state(self) -> dict[str, Any]:
        """All that is kept, as JSON takes it, without a loss."""
        sums, counts = self._sums.tolist(), self._counts.tolist()
        return {"objects": self.objects, "sums": sums, "counts": counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "MeanCosines":
        """What :meth:`state` was taken of, bit by bit."""
        cosines = cls(len(state["sums"]))
        cosines.objects = state["objects"]
        cosines._sums = torch.tensor(state["sums"], dtype=torch.float64)
        cosines._counts = torch.tensor(state["counts"], dtype=torch.int64)
        return cosines
