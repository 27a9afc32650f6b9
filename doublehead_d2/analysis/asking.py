"""What a detector's heads say about given boxes, in each way of scoring it; no hooks, no copies.

Heads of this package answer by their own methods. detectron2's heads with one branch,
`StandardROIHeads` and `Res5ROIHeads`, have one adapter, here.

Shape legend: N images; R RoIs of all images, Ri of image i; K foreground classes. Boxes are XYXY in
absolute coordinates of the (padded) network input.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from doublehead_d2.analysis.error_runs import CONFIGURED
from doublehead_d2.benchmark.heads import ask as ask_for_parts
from doublehead_d2.evaluation import all_modes
from doublehead_d2.modeling.box_head import DoubleHeadConvHead
from doublehead_d2.modeling.separate_heads import SeparateROIHeads

CHUNK = 2000  # RoIs at a time


class Mode(NamedTuple):
    """A way of scoring a detector."""

    kind: str  # what its heads are made of: "fc", "conv", "both" (one of each) or "other"
    scoring: tuple[Any, ...]  # what `SeparateROIHeads.inference` takes


class Answers(NamedTuple):
    """What is said about R boxes in one mode, image after image."""

    scores: Tensor  # R x (K+1) probabilities, or fused scores; of :func:`ask_for_classes` R
    boxes: (
        Tensor  # R x 4K or, class-agnostic, R x 4, in the image; of :func:`ask_for_classes` R x 4
    )


class Seen(NamedTuple):
    """What RoI heads are given of a batch."""

    features: dict[str, Tensor]  # the backbone's maps by name, each N x C x H x W
    proposals: list[Instances]  # of the RPN: N elements with `proposal_boxes`

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """N times height, width without padding."""
        return [x.image_size for x in self.proposals]


class _Heads(Protocol):
    """What heads are asked, a part of `SeparateROIHeads`."""

    def predict_proposals(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        """All that the heads say of the proposals."""

    def score_boxes(
        self, predictions: Any, proposals: list[Instances], *mode: Any
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Boxes and scores, N elements each."""

    def inference(
        self, predictions: Any, proposals: list[Instances], *mode: Any
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections, and which proposals they come from."""


class _StockHeads:
    """The adapter for detectron2's heads, whose box head does both tasks."""

    def __init__(self, heads: Any) -> None:
        # Pooler, box head and output layers; it refuses heads that have no such one.
        self._part = ask_for_parts(heads).parts()[0]
        self._predictor = heads.box_predictor

    def predict_proposals(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        part = self._part
        maps = [features[name] for name in part.in_features]
        x: Any = part.pooler(maps, [p.proposal_boxes for p in proposals])
        for layer in part.layers:
            x = layer(x)
        return x

    def score_boxes(
        self, predictions: Any, proposals: list[Instances], *mode: Any
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        boxes = self._predictor.predict_boxes(predictions, proposals)
        return boxes, self._predictor.predict_probs(predictions, proposals)

    def inference(
        self, predictions: Any, proposals: list[Instances], *mode: Any
    ) -> tuple[list[Instances], list[Tensor]]:
        return self._predictor.inference(predictions, proposals)


def modes_of(model: GeneralizedRCNN) -> dict[str, Mode]:
    """The ways in which a detector can be scored, by name.

    Those of `DoubleHeadROIHeads.scoring_modes`, and "configured" for a detector that has one way
    alone, or is configured to none of them.

    Args:
        model: a detector.

    Raises:
        ValueError: its RoI heads cannot be asked; names them and what is allowed.
    """
    heads: Any = model.roi_heads
    if not isinstance(heads, SeparateROIHeads):
        _heads_of(model)
        return {CONFIGURED: Mode(_kind_of([getattr(heads, "box_head", None)]), ())}
    if not hasattr(heads, "scoring_modes"):
        return {CONFIGURED: Mode(_kind_of([heads.box_head, heads.reg_head]), ())}
    by_role = {"cls_head": heads.box_head, "reg_head": heads.reg_head}
    modes = {}
    for name, (fusion, box_source) in all_modes(heads)[0].items():
        # What fuses scores is none of the roles: both are needed.
        roles = {fusion, box_source} if fusion in by_role else set(by_role)
        modes[name] = Mode(_kind_of([by_role[role] for role in roles]), (fusion, box_source))
    return modes


@torch.no_grad()
def see(model: GeneralizedRCNN, inputs: list[dict[str, Any]]) -> Seen:
    """Run a detector up to its RoI heads.

    Args:
        model: in evaluation mode.
        inputs: N elements as the model takes them: "image", C x H x W, and where it has no RPN
            "proposals".
    """
    assert not model.training, "the model is in training mode"
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    if model.proposal_generator is None:
        return Seen(features, [x["proposals"].to(model.device) for x in inputs])
    return Seen(features, model.proposal_generator(images, features, None)[0])


def ask(
    model: GeneralizedRCNN,
    modes: Mapping[str, Mode],
    features: dict[str, Tensor],
    boxes: Sequence[Boxes],
    image_sizes: Sequence[tuple[int, int]],
    chunk: int = CHUNK,
) -> dict[str, Answers]:
    """What the heads say about all the given boxes, also where it is too little for a detection.

    Both heads see every box once, whatever the modes.

    Args:
        model: in evaluation mode.
        modes: of :func:`modes_of`, those that are wanted.
        features: of :func:`see`.
        boxes: N elements, Ri boxes each, on any device.
        image_sizes: N times height, width without padding.
        chunk: RoIs that the heads see at a time; memory grows with it.

    Returns:
        by mode. Boxes are clipped to the image as those of detections are.
    """
    parts = [
        {name: Answers(scores, found) for name, (found, scores) in said.items()}
        for _, said in _by_chunk(model, modes, features, boxes, image_sizes, chunk)
    ]
    return _joined(modes, parts)


def ask_for_classes(
    model: GeneralizedRCNN,
    modes: Mapping[str, Mode],
    features: dict[str, Tensor],
    boxes: Sequence[Boxes],
    image_sizes: Sequence[tuple[int, int]],
    classes: Tensor,
    chunk: int = CHUNK,
) -> dict[str, Answers]:
    """As :func:`ask`, but of each box what is said for one class, that of its object.

    Of 14,000 boxes of 80 classes that is 0.3 MB a mode, where all would be 23.

    Args:
        model, modes, features, boxes, image_sizes, chunk: as :func:`ask`.
        classes: R indices, 0 to K - 1.

    Returns:
        by mode: R scores, and boxes R x 4.
    """
    parts = []
    for rows, said in _by_chunk(model, modes, features, boxes, image_sizes, chunk):
        own = classes[rows].to(model.device)
        every = torch.arange(len(own), device=own.device)
        part = {}
        for name, (found, scores) in said.items():
            by_class = found.view(len(own), found.shape[1] // 4, 4)
            agnostic = by_class.shape[1] == 1
            box = by_class[every, torch.zeros_like(own) if agnostic else own]
            part[name] = Answers(scores[every, own], box)
        parts.append(part)
    return _joined(modes, parts)


@torch.no_grad()
def detections(
    model: GeneralizedRCNN, modes: Mapping[str, Mode], seen: Seen
) -> dict[str, list[Instances]]:
    """The detections after NMS, as the model's own thresholds give them.

    Args:
        model: in evaluation mode.
        modes: of :func:`modes_of`, those that are wanted.
        seen: of :func:`see`.

    Returns:
        by mode N elements with `pred_boxes`, `scores` and `pred_classes`, the best first.
    """
    heads = _heads_of(model)
    predictions = heads.predict_proposals(seen.features, seen.proposals)
    return {
        name: heads.inference(predictions, seen.proposals, *mode.scoring)[0]
        for name, mode in modes.items()
    }


def _heads_of(model: GeneralizedRCNN) -> _Heads:
    """The RoI heads as they can be asked."""
    heads = model.roi_heads
    return heads if isinstance(heads, SeparateROIHeads) else _StockHeads(heads)


def _kind_of(heads: Sequence[nn.Module | None]) -> str:
    """What heads are made of together; None is Conv5 and a mean of `Res5ROIHeads`."""
    kinds = set()
    for head in heads:
        if isinstance(head, DoubleHeadConvHead):
            kinds.add("conv")
        elif isinstance(head, FastRCNNConvFCHead) and not head.conv_norm_relus:
            kinds.add("fc")
        else:
            kinds.add("other")
    if len(kinds) == 1:
        return kinds.pop()
    return "both" if kinds == {"fc", "conv"} else "other"


@torch.no_grad()
def _by_chunk(
    model: GeneralizedRCNN,
    modes: Mapping[str, Mode],
    features: dict[str, Tensor],
    boxes: Sequence[Boxes],
    image_sizes: Sequence[tuple[int, int]],
    chunk: int,
) -> Iterator[tuple[slice, dict[str, tuple[Tensor, Tensor]]]]:
    """Rows of some of the R boxes, and by mode what is said of them: boxes and scores.

    At least one chunk, which has no rows if there are no boxes.
    """
    assert not model.training, "the model is in training mode"
    heads = _heads_of(model)
    total = sum(len(x) for x in boxes)
    for start in range(0, max(total, 1), chunk):
        proposals, first = [], 0
        for own, size in zip(boxes, image_sizes, strict=True):
            rows = slice(max(start - first, 0), max(start + chunk - first, 0))
            proposals.append(
                Instances(size, proposal_boxes=Boxes(own.tensor[rows].to(model.device)))
            )
            first += len(own)
        predictions = heads.predict_proposals(features, proposals)
        said = {}
        for name, mode in modes.items():
            found, scores = heads.score_boxes(predictions, proposals, *mode.scoring)
            clipped = [_clip(x, size) for x, size in zip(found, image_sizes, strict=True)]
            said[name] = torch.cat(clipped), torch.cat(list(scores))
        yield slice(start, min(start + chunk, total)), said


def _clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes Ri x 4K or Ri x 4 clipped to the image."""
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_size)
    return clipped.tensor.view_as(boxes)


def _joined(modes: Mapping[str, Mode], parts: list[dict[str, Answers]]) -> dict[str, Answers]:
    return {
        name: Answers(*(torch.cat(x) for x in zip(*(part[name] for part in parts), strict=True)))
        for name in modes
    }
