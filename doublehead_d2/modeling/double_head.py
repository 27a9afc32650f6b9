"""Double-Head R-CNN and Double-Head-Ext (https://arxiv.org/abs/1904.06493) as RoI heads.

Shape legend: N images; R RoIs of all images, Ri of image i; K foreground classes; C channels.
Boxes are XYXY in absolute coordinates of the (padded) network input.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from doublehead_d2.config import check_doublehead_config
from doublehead_d2.modeling.output_layers import (
    DoubleHeadPredictions,
    HeadOutputLayers,
    HeadPredictions,
    build_cls_output_layers,
    build_reg_output_layers,
    fuse_scores,
    scoped_losses,
)
from doublehead_d2.modeling.roi_boxes import EnlargedBoxes
from doublehead_d2.modeling.separate_heads import (
    ChooseRoIs,
    ImageSizes,
    SeparateROIHeads,
    put_rows,
)


@ROI_HEADS_REGISTRY.register()
class DoubleHeadROIHeads(SeparateROIHeads[DoubleHeadPredictions]):
    """Two box heads on the same RoIs: one focused on classification, one on regression."""

    @configurable
    def __init__(
        self,
        *,
        cls_roi_scale: float = 1.0,
        reg_roi_scale: float = 1.3,
        score_fusion: str = "cls_head",
        box_source: str = "reg_head",
        score_floor: float = 0.0,
        train_reg_head_on: str = "all",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            cls_roi_scale: enlargement of the RoIs that the classification head pools.
            reg_roi_scale: enlargement of the RoIs that the regression head pools.
            score_fusion: where class scores come from, one of `config.SCORE_FUSIONS`.
            box_source: where boxes come from, one of `config.BOX_SOURCES`.
            score_floor: in inference with fused scores, leave out RoIs whose probabilities by the
                classification head are all below.
            train_reg_head_on: sampled RoIs that the regression head is shown in training, one of
                `config.TRAIN_REG_HEAD_ON`.
            kwargs: as `SeparateROIHeads`; `legacy_boxes` pools as the authors' code does, too.
        """
        super().__init__(**kwargs)
        self.cls_roi_scale = cls_roi_scale
        self.reg_roi_scale = reg_roi_scale
        self.score_fusion = score_fusion
        self.box_source = box_source
        self.score_floor = score_floor
        self.train_reg_head_on = train_reg_head_on

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the config; raises ValueError where `MODEL.ROI_DOUBLE_HEAD` is invalid."""
        check_doublehead_config(cfg)
        node = cfg.MODEL.ROI_DOUBLE_HEAD
        ret = super().from_config(cfg, input_shape)
        ret["cls_roi_scale"] = node.CLS_HEAD.ROI_SCALE
        ret["reg_roi_scale"] = node.REG_HEAD.ROI_SCALE
        ret["score_fusion"] = node.SCORE_FUSION
        ret["box_source"] = node.BOX_SOURCE
        ret["legacy_boxes"] = node.LEGACY_BOXES
        ret["lazy_reg_head"] = node.LAZY_REG_HEAD
        ret["score_floor"] = node.SCORE_FLOOR
        ret["train_reg_head_on"] = node.TRAIN_REG_HEAD_ON
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        name = cfg.MODEL.ROI_DOUBLE_HEAD.REG_HEAD.NAME
        reg_head = cls.build_reg_head(cfg, name, cls.pooled_shape(cfg, input_shape, ret))
        ret["box_predictor"] = build_cls_output_layers(cfg, ret["box_head"].output_shape)
        ret["reg_head"] = reg_head
        ret["reg_predictor"] = build_reg_output_layers(cfg, reg_head.output_shape)
        return ret

    def predict(
        self, features: dict[str, Tensor], boxes: list[Boxes], choose: ChooseRoIs | None = None
    ) -> DoubleHeadPredictions:
        """Run both heads on the given boxes, as :meth:`SeparateROIHeads.predict`."""
        maps = self._box_maps(features)
        cls_head, pooled = self._predict_cls_head(maps, boxes)
        shown = choose(cls_head) if choose is not None else None
        reg_head = self._predict_reg_head(maps, boxes, pooled, shown)
        return DoubleHeadPredictions(cls_head, reg_head, shown)

    def shown_to_reg_head(
        self, proposals: list[Instances], cls_head: HeadPredictions
    ) -> list[Tensor] | None:
        """Which RoIs the regression head is shown: the one answer, in training and in inference.

        In training, with `train_reg_head_on` "foreground", those that it learns from. In inference
        those that can be detected: where scores are the classification head's alone, the RoIs with
        a class above the test threshold, and nothing is lost (none, if boxes are its own, too).
        Fused scores need both heads; a `score_floor` leaves out RoIs that the classification head
        gives less in every class, and with them the detections that the regression head alone
        would have made of them. Scoring in `modes` needs all.

        Args:
            proposals: N elements; in training with `gt_classes`.
            cls_head: what the classification head says of them.

        Returns:
            N masks of Ri, or None for all.
        """
        if self.training:
            on_all = self.train_reg_head_on == "all"
            return None if on_all else self._foreground(proposals)
        lazy = self.lazy_reg_head and self.score_fusion == "cls_head"
        if self.modes or not (lazy or self.score_floor > 0):
            return None
        best = self._best_scores(cls_head, proposals)
        if not lazy:
            return [b >= self.score_floor for b in best]
        if self.box_source == "cls_head":
            return [torch.zeros_like(b, dtype=torch.bool) for b in best]
        return [b > self.box_predictor.test_score_thresh for b in best]

    def cls_logits(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """R x (K+1) class scores, logits, by the classification head alone.

        Args:
            features, boxes: as :meth:`predict`.
        """
        return self._predict_cls_head(self._box_maps(features), boxes)[0].scores

    def pool_boxes(
        self, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
    ) -> dict[str, Tensor]:
        """What each head is shown, as :meth:`SeparateROIHeads.pool_boxes`."""
        maps = self._box_maps(features)
        scales = {"box_head": self.cls_roi_scale, "reg_head": self.reg_roi_scale}
        return {head: self._pool(maps, boxes, scale) for head, scale in scales.items()}

    def losses(
        self, predictions: DoubleHeadPredictions, proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """The weighted losses of both heads; their sum is Eq. 1 without the RPN.

        Args:
            predictions: of :meth:`predict` for the boxes of `proposals`.
            proposals: sampled RoIs with `proposal_boxes`, `gt_boxes` and `gt_classes`.

        Returns:
            "loss_cls" and "loss_box_reg" of the heads focused on them, and "loss_cls_unfocused" and
            "loss_box_reg_unfocused" where λ leaves the other head a share. All are means over all R
            sampled RoIs, and 0 for R = 0.
        """
        cls_losses = scoped_losses("cls_head", self.box_predictor, predictions.cls_head, proposals)
        reg_losses = scoped_losses("reg_head", self.reg_predictor, predictions.reg_head, proposals)
        losses = {
            "loss_cls": cls_losses.get("loss_cls"),
            "loss_box_reg": reg_losses.get("loss_box_reg"),
            "loss_cls_unfocused": reg_losses.get("loss_cls"),
            "loss_box_reg_unfocused": cls_losses.get("loss_box_reg"),
        }
        return {name: loss for name, loss in losses.items() if loss is not None}

    def score_boxes(
        self,
        predictions: DoubleHeadPredictions,
        proposals: list[Instances],
        score_fusion: str | None = None,
        box_source: str | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes of one head and fused scores (Section 4.2), which detections are chosen from.

        Args:
            predictions: of :meth:`predict` for the boxes of `proposals`.
            proposals: N elements with `proposal_boxes`.
            score_fusion: instead of the configured one, one of `config.SCORE_FUSIONS`.
            box_source: instead of the configured one, one of `config.BOX_SOURCES`.

        Returns:
            as :meth:`SeparateROIHeads.score_boxes`.
        """
        fusion, source = score_fusion or self.score_fusion, box_source or self.box_source
        assert predictions.shown is None or (fusion, source) == self.scoring, (
            f"the regression head was shown what {self.scoring} asks for, not {(fusion, source)}"
        )
        layers, head_predictions = self.box_source_of(predictions, source)
        boxes = self._clipped(layers.predict_boxes(head_predictions, proposals), proposals)
        cls_probs = self.box_predictor.predict_probs(predictions.cls_head, proposals)
        reg_probs = self.reg_predictor.predict_probs(predictions.reg_head, proposals)
        scores = [fuse_scores(*probs, fusion) for probs in zip(cls_probs, reg_probs, strict=True)]
        if predictions.shown is not None and (fusion, source) != ("cls_head", "cls_head"):
            # Nobody knows what the regression head would have said of the others. What is not
            # finite is left out, whatever the threshold.
            scores = [
                s.masked_fill(~mask[:, None], float("-inf"))
                for s, mask in zip(scores, predictions.shown, strict=True)
            ]
        return boxes, scores

    def box_source_of(
        self, predictions: DoubleHeadPredictions, box_source: str | None = None
    ) -> tuple[HeadOutputLayers, HeadPredictions]:
        """Output layers and predictions of the head whose boxes are used.

        Args:
            predictions: of :meth:`predict`.
            box_source: instead of the configured one, one of `config.BOX_SOURCES`.
        """
        if (box_source or self.box_source) == "cls_head":
            return self.box_predictor, predictions.cls_head
        return self.reg_predictor, predictions.reg_head

    @property
    def scoring(self) -> tuple[str, str]:
        """The score fusion and box source that the model is configured to."""
        return self.score_fusion, self.box_source

    def scoring_modes(self) -> dict[str, tuple[str, str]]:
        """The four ways of Fig. 8, those that the predictors allow: name to (fusion, box source).

        "fused" fuses as the model is configured, or by complementary fusion (Eq. 4) where it is
        configured not to fuse.
        """
        cls_layers, reg_layers = self.box_predictor, self.reg_predictor
        modes = {}
        if reg_layers.classifies and reg_layers.localizes:
            modes["reg_head"] = ("reg_head", "reg_head")
        if cls_layers.classifies and cls_layers.localizes:
            modes["cls_head"] = ("cls_head", "cls_head")
        if cls_layers.classifies and reg_layers.localizes:
            modes["unfused"] = ("cls_head", "reg_head")
            if reg_layers.classifies:
                single = self.score_fusion in ("cls_head", "reg_head")
                modes["fused"] = ("complementary" if single else self.score_fusion, "reg_head")
        return modes

    def _foreground(self, proposals: list[Instances]) -> list[Tensor]:
        """Masks of the sampled RoIs that a regression head which only localises learns from."""
        masks = select_foreground_proposals(proposals, self.num_classes)[1]
        # A synchronised batch norm waits for all processes and takes no empty batch, and precise
        # batch norm (TEST.PRECISE_BN), which wants no gradient, divides by the batch's size. The
        # RoI that stands in, of the first image that has any, has no loss.
        synchronised = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
        waits = any(isinstance(module, synchronised) for module in self.reg_head.modules())
        if (waits or not torch.is_grad_enabled()) and not torch.cat(masks).any():
            for mask in masks:
                if len(mask):
                    mask[0] = True
                    break
        return masks

    def _predict_cls_head(
        self, maps: list[Tensor], boxes: list[Boxes]
    ) -> tuple[HeadPredictions, Tensor]:
        """Predictions of the classification head, and the RoI features that it saw."""
        pooled = self._pool(maps, boxes, self.cls_roi_scale)
        self._count("box_head", pooled)
        return self.box_predictor(self.box_head(pooled)), pooled

    def _predict_reg_head(
        self,
        maps: list[Tensor],
        boxes: list[Boxes],
        cls_pooled: Tensor,
        shown: list[Tensor] | None,
    ) -> HeadPredictions:
        """Predictions of the regression head, zeros for boxes that it is not shown.

        From the classification head's RoI features if the scales agree.
        """
        mask = None if shown is None else torch.cat(shown)
        if self.reg_roi_scale == self.cls_roi_scale:
            pooled = cls_pooled if mask is None else cls_pooled[mask]
        else:
            if shown is not None:
                boxes = [x[m] for x, m in zip(boxes, shown, strict=True)]
            pooled = self._pool(maps, boxes, self.reg_roi_scale)
        self._count("reg_head", pooled)
        predictions = self.reg_predictor(self.reg_head(pooled))
        if mask is None:
            return predictions
        return HeadPredictions(*(put_rows(x, mask) for x in predictions))

    def _pool(self, maps: list[Tensor], boxes: list[Boxes], scale: float) -> Tensor:
        """RoI features R x C x H x W of boxes enlarged by `scale`."""
        if scale != 1.0 or self.legacy_boxes:
            boxes = [EnlargedBoxes(x, scale, legacy=self.legacy_boxes) for x in boxes]
        return self.box_pooler(maps, boxes)
