"""RoI heads that can be asked what they are made of."""

from typing import Any, Protocol

from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor

from doublehead_d2.modeling.parts import Part, standard_parts


class HeadsWithParts(Protocol):
    """What the benchmarks ask of RoI heads."""

    def parts(self) -> list[Part]:
        """The parts in the order in which they run in inference."""

    def cls_logits(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """R x (K+1) class scores, logits, by the classification head alone."""


class StockHeads:
    """Answers for detectron2's `StandardROIHeads`."""

    def __init__(self, heads: StandardROIHeads) -> None:
        self._heads = heads

    def parts(self) -> list[Part]:
        """As `modeling.parts.standard_parts`."""
        return standard_parts(self._heads)

    def cls_logits(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Class scores of the box head."""
        heads = self._heads
        maps = [features[name] for name in heads.box_in_features]
        return heads.box_predictor(heads.box_head(heads.box_pooler(maps, boxes)))[0]


class StockRes5Heads:
    """Answers for detectron2's `Res5ROIHeads` (C4), whose Conv5 runs on every RoI; no masks."""

    def __init__(self, heads: Res5ROIHeads) -> None:
        self._heads = heads

    def parts(self) -> list[Part]:
        """The box head: Conv5, the mean, output layers."""
        heads = self._heads
        modules = [heads.res5, heads.box_predictor]
        layers = [heads.res5, _mean, heads.box_predictor]
        return [Part("box_head", modules, layers, heads.in_features, heads.pooler)]

    def cls_logits(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Class scores of the box head."""
        heads = self._heads
        x = heads.pooler([features[name] for name in heads.in_features], boxes)
        return heads.box_predictor(_mean(heads.res5(x)))[0]


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=[2, 3])


def ask(heads: Any) -> HeadsWithParts:
    """RoI heads as they can be asked.

    Raises:
        ValueError: they have no `parts()`, and their forward is neither that of `StandardROIHeads`
            nor that of `Res5ROIHeads`.
    """
    if hasattr(heads, "parts"):
        return heads
    if type(heads) is Res5ROIHeads:
        return StockRes5Heads(heads)
    if not isinstance(heads, StandardROIHeads) or isinstance(heads, CascadeROIHeads):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{type(heads).__name__}'; allowed: 'StandardROIHeads', "
            "'Res5ROIHeads', or heads that say what they are made of "
            "(doublehead_d2.modeling.parts.Part)"
        )
    return StockHeads(heads)
