"""What the two heads say about a set of boxes, and how their class scores are fused.

Shape legend: R RoIs; K foreground classes; class K is background. Scores are logits unless called
probabilities; deltas are those of `Box2BoxTransform`: 4K per RoI, or 4 when class-agnostic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn


class HeadPredictions(NamedTuple):
    """One head's predictions; a predictor that λ switches off leaves zeros.

    It is the pair that `FastRCNNOutputLayers.losses`, `predict_boxes` and `predict_probs` take.
    """

    scores: Tensor  # R x (K+1) logits
    deltas: Tensor  # R x 4K, or R x 4


class DoubleHeadPredictions(NamedTuple):
    """What the two heads say about the same R boxes."""

    cls_head: HeadPredictions
    reg_head: HeadPredictions
    # N masks of Ri: the boxes that the regression head was shown, where not all. Of the others it
    # says nothing; zeros stand in.
    shown: list[Tensor] | None = None


class ZeroPredictor(nn.Module):
    """Stands where λ switches a predictor off: no parameters, so that DDP misses no gradient."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map features R x C to zeros R x out_features."""
        return x.new_zeros(x.shape[0], self.out_features)


class HeadOutputLayers(FastRCNNOutputLayers):
    """The output layers of one of the two heads.

    The head's ω and λ (Eqs. 1 to 3 of the paper) are nothing but detectron2's `loss_weight`. A
    predictor of weight 0 is not built, and its loss is not returned.
    """

    cls_score: nn.Linear | ZeroPredictor
    bbox_pred: nn.Linear | ZeroPredictor

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, loss_weight: dict[str, float], **kwargs: Any):
        """
        Args:
            input_shape: shape of the head's feature vectors.
            loss_weight: weights of "loss_cls" and "loss_box_reg", both >= 0, not both 0.
            kwargs: the other arguments of `FastRCNNOutputLayers`.
        """
        super().__init__(input_shape, loss_weight=loss_weight, **kwargs)
        self.classifies = loss_weight["loss_cls"] > 0
        self.localizes = loss_weight["loss_box_reg"] > 0
        assert self.classifies or self.localizes, f"a head without a task: {loss_weight}"
        if not self.classifies:
            self.cls_score = ZeroPredictor(self.cls_score.out_features)
        if not self.localizes:
            self.bbox_pred = ZeroPredictor(self.bbox_pred.out_features)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: ShapeSpec, *, cls_weight: float, box_reg_weight: float
    ) -> dict[str, Any]:
        """As `FastRCNNOutputLayers`; BBOX_REG_LOSS_WEIGHT multiplies the head's own weight."""
        ret = super().from_config(cfg, input_shape)
        ret["loss_weight"] = {
            "loss_cls": cls_weight,
            "loss_box_reg": box_reg_weight * cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT,
        }
        return ret

    def forward(self, x: Tensor) -> HeadPredictions:
        """Predict from feature vectors R x C."""
        return HeadPredictions(*super().forward(x))

    def losses(self, predictions: HeadPredictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Weighted losses of the predictors that exist: "loss_cls", "loss_box_reg".

        Both are divided by the number of all RoIs in `proposals`, as in detectron2.
        """
        losses = super().losses(predictions, proposals)
        exists = {"loss_cls": self.classifies, "loss_box_reg": self.localizes}
        return {name: loss for name, loss in losses.items() if exists[name]}


def scoped_losses(
    scope: str, layers: HeadOutputLayers, predictions: HeadPredictions, proposals: list[Instances]
) -> dict[str, Tensor]:
    """Losses of one head, its accuracies logged as `<scope>/fast_rcnn/*`.

    Unscoped, the accuracies of one head would overwrite the other's.

    Args:
        scope: name of the head in the logged metrics.
        layers: the head's output layers.
        predictions: theirs for the boxes of `proposals`.
        proposals: as `HeadOutputLayers.losses`.
    """
    if layers.classifies:
        with get_event_storage().name_scope(scope):
            return layers.losses(predictions, proposals)
    with EventStorage():  # a head without a classifier has no accuracy worth logging
        return layers.losses(predictions, proposals)


def build_cls_output_layers(cfg: CfgNode, input_shape: ShapeSpec) -> HeadOutputLayers:
    """Output layers of the head focused on classification: ω (λ cls + (1-λ) box) (Eq. 2)."""
    node = cfg.MODEL.ROI_DOUBLE_HEAD.CLS_HEAD
    return HeadOutputLayers(
        cfg,
        input_shape,
        cls_weight=node.LOSS_WEIGHT * node.LAMBDA,
        box_reg_weight=node.LOSS_WEIGHT * (1 - node.LAMBDA),
    )


def build_reg_output_layers(cfg: CfgNode, input_shape: ShapeSpec) -> HeadOutputLayers:
    """Output layers of the head focused on regression: ω ((1-λ) cls + λ box) (Eq. 3)."""
    node = cfg.MODEL.ROI_DOUBLE_HEAD.REG_HEAD
    return HeadOutputLayers(
        cfg,
        input_shape,
        cls_weight=node.LOSS_WEIGHT * (1 - node.LAMBDA),
        box_reg_weight=node.LOSS_WEIGHT * node.LAMBDA,
    )


_FUSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls_head": lambda cls_probs, reg_probs: cls_probs,
    "reg_head": lambda cls_probs, reg_probs: reg_probs,
    "complementary": lambda cls_probs, reg_probs: cls_probs + reg_probs * (1 - cls_probs),
    "average": lambda cls_probs, reg_probs: (cls_probs + reg_probs) / 2,
    "max": torch.maximum,
}


def fuse_scores(cls_probs: Tensor, reg_probs: Tensor, fusion: str) -> Tensor:
    """Fuse the class probabilities of the two heads (Section 4.2, Table 3).

    "complementary" is s = s_fc + s_conv (1 - s_fc) (Eq. 4). Its rows do not sum to one, the
    background column is fused like the others, and scores rise: a threshold that suits one head
    means less after it.

    Args:
        cls_probs: R x (K+1) probabilities of the head focused on classification.
        reg_probs: R x (K+1) probabilities of the head focused on regression.
        fusion: one of `config.SCORE_FUSIONS`.

    Returns:
        R x (K+1) scores in [0, 1].
    """
    return _FUSIONS[fusion](cls_probs, reg_probs)
