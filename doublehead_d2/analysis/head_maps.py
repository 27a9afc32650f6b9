"""The maps of a detector's box heads, for any of its systems; no hooks, no copied forward pass.

Source: Section 3.4 of https://arxiv.org/abs/1904.06493; issue 22. What the map of a head is:

- conv-head ("conv"): its last map, before the average over positions;
- fc-head ("fc"): its first layer's outputs by position, before bias and ReLU, as the paper makes
  them; where convolutions come first, of what they give;
- Conv5 on RoIs ("other"; `Res5ROIHeads`, C4): its output;
- a head without parameters ("other"; `AveragePoolHead`, G-RCN and C5): the RoI feature itself.

Each head is shown what it is shown in inference: RoIs enlarged in Double-Head, moved by offsets in
TSD, from a map of their own in G-RCN. The context of the whole image in G-RCN has no positions and
is left out.

Shape legend: N images; R RoIs of all images; C channels of a RoI feature, D of a map; h x w
positions, P = h·w of them. Boxes are XYXY in absolute coordinates of the (padded) network input.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from doublehead_d2.analysis.error_runs import CONFIGURED
from doublehead_d2.analysis.spatial import (
    CHUNK,
    MeanCosines,
    fc_map,
    mean_off_diagonal,
    weight_cosines,
)
from doublehead_d2.benchmark.heads import ask
from doublehead_d2.modeling.box_head import DoubleHeadConvHead
from doublehead_d2.modeling.separate_heads import ImageSizes, SeparateROIHeads


class HeadMap(NamedTuple):
    """The map of a box head."""

    kind: str  # "conv", "fc" or "other"
    output: Tensor  # R x D x h x w


@torch.no_grad()
def head_maps(
    model: GeneralizedRCNN, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
) -> dict[str, HeadMap]:
    """The maps of all box heads for given boxes.

    They take D·P numbers a RoI, 200 kB at the paper's widths: some hundred RoIs at a time.

    Args:
        model: in evaluation mode.
        features: the backbone's feature maps by name, each N x C x H x W.
        boxes: N elements, R in all.
        image_sizes: of the images without padding: height, width.

    Returns:
        by the head's name: "box_head" of every detector, "reg_head" of those with two.

    Raises:
        ValueError: RoI heads, or a box head, of a kind that has no such map.
    """
    assert not model.training, "the model is in training mode"
    heads = model.roi_heads
    pooled = _pooled(heads, features, boxes, image_sizes)
    return {name: last_map(_head(heads, name), rois) for name, rois in pooled.items()}


def last_map(head: nn.Module, pooled: Tensor) -> HeadMap:
    """The map of a box head, as the top of this file has it.

    Args:
        head: a box head, or Conv5 on RoIs.
        pooled: RoI features R x C x h x w.

    Raises:
        ValueError: a head of a kind that has no such map.
    """
    if isinstance(head, DoubleHeadConvHead):
        return HeadMap("conv", head.feature_map(pooled))
    if isinstance(head, FastRCNNConvFCHead):
        x = pooled
        for conv in head.conv_norm_relus:
            x = conv(x)
        if head.fcs:
            return HeadMap("fc", fc_map(head.fcs[0].weight, x))
        return HeadMap("conv", x)
    if next(head.parameters(), None) is None:
        return HeadMap("other", pooled)
    output = head(pooled)
    if output.dim() != 4:
        raise ValueError(
            f"a box head is '{type(head).__name__}', which gives no map; allowed: "
            "'DoubleHeadConvHead', 'FastRCNNConvFCHead', heads without parameters, and heads that "
            "give a map"
        )
    return HeadMap("other", output)


class SpatialCorrelation:
    """The mean cosines of each head of one detector, over as many objects as there are."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        """Of the heads, by name."""
        self.cosines: dict[str, MeanCosines] = {}
        """The same of their maps."""

    @torch.no_grad()
    def add(
        self,
        model: GeneralizedRCNN,
        features: dict[str, Tensor],
        boxes: list[Boxes],
        image_sizes: ImageSizes,
    ) -> None:
        """Take in the objects of a batch, `CHUNK` RoIs at a time.

        Args:
            model, features, boxes, image_sizes: as :func:`head_maps`; the boxes of the objects.

        Raises:
            ValueError: as :func:`head_maps`.
        """
        assert not model.training, "the model is in training mode"
        pooled = _pooled(model.roi_heads, features, boxes, image_sizes)
        for name, rois in pooled.items():
            for chunk in rois.split(CHUNK):
                kind, output = last_map(_head(model.roi_heads, name), chunk)
                positions = output.shape[2] * output.shape[3]
                self.kinds[name] = kind
                self.cosines.setdefault(name, MeanCosines(positions)).add(output)

    def merge(self, other: "SpatialCorrelation") -> None:
        """Take in what another one, of the same detector, has; it is left as it is."""
        self.kinds |= other.kinds
        for name, cosines in other.cosines.items():
            self.cosines.setdefault(name, MeanCosines(cosines.positions)).merge(cosines)

    def state(self) -> dict[str, Any]:
        """All that is kept, as JSON takes it, without a loss."""
        cosines = {name: x.state() for name, x in self.cosines.items()}
        return {"kinds": dict(self.kinds), "cosines": cosines}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SpatialCorrelation":
        """What :meth:`state` was taken of, bit by bit."""
        spatial = cls()
        spatial.kinds = dict(state["kinds"])
        spatial.cosines = {n: MeanCosines.from_state(x) for n, x in state["cosines"].items()}
        return spatial

    def entries(
        self, name: str, model: GeneralizedRCNN, mode: str = CONFIGURED
    ) -> list[dict[str, Any]]:
        """The "maps" of spatial.json: of each head its map, and of an fc-head its weights.

        Args:
            name: of the model in the legend.
            model: that objects were added of.
            mode: the way of scoring that the model is configured to.

        Returns:
            the regression head first; numbers that are not defined are None.
        """
        found = []
        for head in sorted(self.cosines, reverse=True):
            kind, mean = self.kinds[head], self.cosines[head].mean
            common = {"model": name, "mode": mode, "head": head, "kind": kind}
            found.append({**common, "of": "output", **_numbers(mean)})
            if kind == "fc":
                weights = _weights(_head(model.roi_heads, head), len(mean))
                found.append({**common, "of": "weights", **_numbers(weights)})
        return found


def _head(heads: Any, name: str) -> nn.Module:
    """A box head; that of `Res5ROIHeads` is its Conv5."""
    return heads.res5 if hasattr(heads, "res5") else getattr(heads, name)


def _pooled(
    heads: Any, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
) -> dict[str, Tensor]:
    """What each head is shown, R x C x h x w, by the head's name."""
    if isinstance(heads, SeparateROIHeads):
        return heads.pool_boxes(features, boxes, image_sizes)
    part = ask(heads).parts()[0]
    return {part.name: part.pooler([features[name] for name in part.in_features], boxes)}


def _weights(head: Any, positions: int) -> Tensor:
    """P x P cosines of an fc-head's first weights."""
    weight = head.fcs[0].weight.detach()
    side = _side(positions)
    return weight_cosines(weight, (weight.shape[1] // positions, side, side)).cpu()


def _numbers(correlation: Tensor) -> dict[str, Any]:
    rows = [[None if x != x else x for x in row] for row in correlation.tolist()]
    mean = mean_off_diagonal(correlation)
    return {
        "side": _side(len(correlation)),
        "correlation": rows,
        "mean_off_diagonal": None if mean != mean else mean,
    }


def _side(positions: int) -> int:
    side = math.isqrt(positions)
    assert side**2 == positions, f"{positions} positions make no square"
    return side
