"""What the balance weights of Double-Head-Ext do to AP: the numbers of Figure 8.

Source: https://arxiv.org/abs/1904.06493, Section 5.2; issue 22. λ^fc is that of the classification
head, λ^conv that of the regression head. AP is in percent.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode

MODES = ("reg_head", "cls_head", "unfused", "fused")  # (a) to (d)
SINGLE = ("reg_head", "cls_head")
VANILLA = (1.0, 1.0)  # λ^fc and λ^conv of a Double-Head without unfocused tasks


class LambdaPoint(NamedTuple):
    """A model, and its AP by mode; None, or nothing, for a mode that its heads do not allow."""

    model: str
    lambda_fc: float
    lambda_conv: float
    ap: Mapping[str, float | None]

    @property
    def pair(self) -> tuple[float, float]:
        """λ^fc and λ^conv."""
        return self.lambda_fc, self.lambda_conv

    def __str__(self) -> str:
        return f"λfc = {self.lambda_fc:g}, λconv = {self.lambda_conv:g}"


class Gain(NamedTuple):
    """By how much one way of scoring a model is above another."""

    value: float  # points of AP
    point: LambdaPoint

    def __str__(self) -> str:
        return f"{self.value:+.1f} ({self.point})"


def lambdas_of(cfg: CfgNode) -> tuple[float, float]:
    """λ^fc and λ^conv of a model of `DoubleHeadROIHeads`.

    Raises:
        ValueError: it has other RoI heads, which have no λ.
    """
    name = cfg.MODEL.ROI_HEADS.NAME
    if name != "DoubleHeadROIHeads":
        raise ValueError(f"MODEL.ROI_HEADS.NAME is '{name}'; allowed: 'DoubleHeadROIHeads'")
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    return node.CLS_HEAD.LAMBDA, node.REG_HEAD.LAMBDA


def lambda_grid(points: Iterable[LambdaPoint], *, data: str, metric: str = "AP") -> dict[str, Any]:
    """The content of lambda_grid.json.

    Args:
        points: models of any pairs of λ, each pair once.
        data: name of the data set that they were scored on.
        metric: name of what `LambdaPoint.ap` is.

    Raises:
        ValueError: two models have the same pair, or a λ is not from 0 to 1.
    """
    models: dict[tuple[float, float], str] = {}
    found: list[dict[str, Any]] = []
    for point in points:
        if not all(0 <= value <= 1 for value in point.pair):
            raise ValueError(f"'{point.model}' has {point}; allowed: from 0 to 1")
        other = models.setdefault(point.pair, point.model)
        if len(models) == len(found):
            raise ValueError(
                f"'{other}' and '{point.model}' both have {point}; allowed: one model of each pair"
            )
        ap = {mode: point.ap.get(mode) for mode in MODES}
        lambdas = {"lambda_fc": point.lambda_fc, "lambda_conv": point.lambda_conv}
        found.append({"model": point.model, **lambdas, "AP": ap})
    return {"data": data, "metric": metric, "points": found}


def points_of(content: Mapping[str, Any]) -> list[LambdaPoint]:
    """The models of lambda_grid.json."""
    return [
        LambdaPoint(x["model"], x["lambda_fc"], x["lambda_conv"], x["AP"])
        for x in content["points"]
    ]


def gains(points: Iterable[LambdaPoint], mode: str, over: Sequence[str]) -> list[Gain]:
    """What a mode is above the best of others, the smallest gain first.

    Args:
        points: models; those without the mode, or without any of the others, are left out.
        mode: one of `MODES`.
        over: the others.
    """
    found = []
    for point in points:
        value = point.ap.get(mode)
        others = [x for x in map(point.ap.get, over) if x is not None]
        if value is not None and others:
            found.append(Gain(value - max(others), point))
    return sorted(found, key=lambda gain: gain.value)


def observations(content: Mapping[str, Any]) -> list[str]:
    """The three observations that the paper makes in Figure 8, with the numbers of this grid.

    What cannot be compared is not said: a grid without numbers has none.

    Args:
        content: of :func:`lambda_grid`.
    """
    points, metric = points_of(content), content["metric"]
    found = []
    if single := gains(points, "unfused", SINGLE):
        words = f"Two heads (c) have more {metric} than the better single one (a, b)"
        found.append(f"{words} for {_spread(single)}")
    if fusion := gains(points, "fused", ["unfused"]):
        words = f"Fusion of scores (d) has more {metric} than none (c)"
        found.append(f"{words} for {_spread(fusion)}")
    fused = [(x, point) for point in points if (x := point.ap.get("fused")) is not None]
    if fused:
        value, best = max(fused, key=lambda x: x[0])
        words = f"The best fused model (d), of {best}, has {value:.1f} {metric}"
        vanilla = [point.ap.get("unfused") for point in points if point.pair == VANILLA]
        if vanilla and vanilla[0] is not None:
            words += f", {value - vanilla[0]:+.1f} against Double-Head without unfocused tasks "
            words += f"(c, λfc = 1, λconv = 1), which has {vanilla[0]:.1f}"
        found.append(words + ".")
    return found


def _spread(found: Sequence[Gain]) -> str:
    more = sum(gain.value > 0 for gain in found)
    return f"{more} of {len(found)} pairs; the differences are {found[0]} to {found[-1]}."
