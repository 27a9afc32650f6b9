"""Where TSD's two tasks look for what they detect: how far and where its offsets point.

Source: TSD (https://arxiv.org/abs/2003.07540), Section 3.2; issue 16.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Looks(NamedTuple):
    """Where both tasks looked for D detections; boxes XYXY in pixels of the network's input."""

    boxes: Tensor  # D x 4, detected
    proposals: Tensor  # D x 4
    cls_offsets: Tensor  # D x 2 x h x w, γ ΔC: of widths and heights of the proposals, x first
    reg_offsets: Tensor  # D x 2, γ ΔR

    @property
    def bins(self) -> tuple[Tensor, Tensor]:
        """Centres of the bins, D x hw x 2 in pixels: regular ones, and where they are moved to."""
        places = _regular_places(self.cls_offsets)
        start, size = self.proposals[:, None, :2], _sizes(self.proposals)[:, None]
        offsets = self.cls_offsets.flatten(2).transpose(1, 2)
        return start + places * size, start + (places + offsets) * size

    @property
    def moved_proposals(self) -> Tensor:
        """P_r, D x 4."""
        return self.proposals + (self.reg_offsets * _sizes(self.proposals)).repeat(1, 2)


class Summary(NamedTuple):
    """How far and where offsets point."""

    detections: int
    cls_distance: float  # of a bin, on average, in sides of its proposal
    cls_spread: float  # 1: the bins lie as wide as regular ones; above: wider
    cls_towards: float  # 1: their middle moves onto the detected box's; 0: not towards it
    reg_distance: float  # of the proposal, on average, in its sides
    reg_towards: float  # 1: it moves onto the detected box; 0: not towards it

    def __str__(self) -> str:
        return (
            f"{self.detections} detections\n"
            f"classification moves a bin by {self.cls_distance:.3f} of the proposal's sides; its "
            f"bins lie {self.cls_spread:.2f} times as wide as regular ones, their middle moves "
            f"{100 * self.cls_towards:.0f} % of the way to the detected box\n"
            f"localisation moves the proposal by {self.reg_distance:.3f} of its sides, "
            f"{100 * self.reg_towards:.0f} % of the way to the detected box"
        )


def look(model: Any, image: Tensor) -> Looks:
    """Run a detector on an image and keep where it looked for each detection.

    Args:
        model: a `GeneralizedRCNN` in evaluation mode whose heads are TSD's.
        image: C x H x W as the model takes it, resized.

    Returns:
        one row a detection, the best first, as the model's own thresholds give them.
    """
    with torch.no_grad():
        images = model.preprocess_image([{"image": image}])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        heads = model.roi_heads
        predictions = heads.predict(features, [x.proposal_boxes for x in proposals])
        (instances,), (kept,) = heads.inference(predictions, proposals)
    return Looks(
        instances.pred_boxes.tensor,
        proposals[0].proposal_boxes.tensor[kept],
        heads.offset_scale * predictions.delta_c[kept],
        heads.offset_scale * predictions.delta_r[kept],
    )


def summarize(looks: Looks) -> Summary:
    """How far and where the offsets of at least one detection point."""
    places = _regular_places(looks.cls_offsets) - 0.5
    offsets = looks.cls_offsets.flatten(2).transpose(1, 2)
    common = offsets.mean(dim=1)
    around = offsets - common[:, None]
    middles = [(x[:, :2] + x[:, 2:]) / 2 for x in (looks.proposals, looks.boxes)]
    way, sizes = middles[1] - middles[0], _sizes(looks.proposals)

    def towards(shift: Tensor) -> float:
        return float((shift * sizes * way).sum() / way.square().sum().clamp(min=1e-12))

    return Summary(
        len(offsets),
        float(offsets.norm(dim=2).mean()),
        1 + float((around * places).sum() / (places.square().sum() * len(offsets))),
        towards(common),
        float(looks.reg_offsets.norm(dim=1).mean()),
        towards(looks.reg_offsets),
    )


def _sizes(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _regular_places(offsets: Tensor) -> Tensor:
    """Centres of the bins of offsets D x 2 x h x w, hw x 2, x first, in sides of a RoI."""
    height, width = offsets.shape[2:]
    y, x = ((torch.arange(n, device=offsets.device) + 0.5) / n for n in (height, width))
    return torch.cartesian_prod(y, x).flip(1)
