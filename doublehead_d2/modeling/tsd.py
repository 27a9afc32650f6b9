"""TSD, task-aware spatial disentanglement (https://arxiv.org/abs/2003.07540), as RoI heads.

From the RoI feature F of a proposal P, two small networks predict where each task looks: for
classification an offset of every bin (ΔC), for localisation one translation of the whole proposal
(ΔR), which makes it P_r. Both pool again, and have a head each. A sibling head, which does both
tasks on F, exists in training alone.

Shape legend: N images; R RoIs of all images, Ri of image i; K foreground classes; C channels; h x w
bins of a RoI. Boxes are XYXY in absolute coordinates of the (padded) network input.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_box_head
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from doublehead_d2.config import check_tsd_config
from doublehead_d2.modeling.legacy import with_least_sizes
from doublehead_d2.modeling.output_layers import (
    HeadOutputLayers,
    HeadPredictions,
    scoped_losses,
)
from doublehead_d2.modeling.parts import Part
from doublehead_d2.modeling.pooling import pool_as_mmdet1, pool_at_offsets
from doublehead_d2.modeling.progressive_constraint import cls_constraint, loc_constraint
from doublehead_d2.modeling.separate_heads import (
    ChooseRoIs,
    ImageSizes,
    SeparateROIHeads,
    put_rows,
)


class TSDPredictions(NamedTuple):
    """What TSD says about R boxes, the proposals P."""

    tsd: HeadPredictions  # of the disentangled heads; deltas are from P_r
    sibling: HeadPredictions | None  # None in inference, and where there is no sibling head
    delta_c: Tensor  # R x 2 x h x w offsets of the bins, x first
    delta_r: Tensor  # R x 2 translation of the proposal, x first; both in widths and heights / γ


class OffsetHead(nn.Module):
    """The networks that predict ΔC and ΔR; they share their first layer (Section 3.2)."""

    def __init__(self, input_shape: ShapeSpec, *, dim: int) -> None:
        """
        Args:
            input_shape: channels, height h and width w of a RoI feature.
            dim: width of the hidden layers.
        """
        super().__init__()
        assert input_shape.channels and input_shape.height and input_shape.width, input_shape
        self.bins = (input_shape.height, input_shape.width)
        self.fc = nn.Linear(input_shape.channels * math.prod(self.bins), dim)
        self.delta_c = _two_layers(dim, 2 * math.prod(self.bins))
        self.delta_r = _two_layers(dim, 2)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                # N(0, 1 / fan-in), the authors'. Not zero: there are offsets from the first step.
                nn.init.kaiming_normal_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map RoI features R x C x h x w to ΔC, R x 2 x h x w, and ΔR, R x 2."""
        x = F.relu(self.fc(x.flatten(1)))
        return self.delta_c(x).view(-1, 2, *self.bins), self.delta_r(x)


def _two_layers(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))


@ROI_HEADS_REGISTRY.register()
class TSDROIHeads(SeparateROIHeads[TSDPredictions]):
    """A head for classification and one for localisation, each where its offsets look."""

    onnx_obstacle = "it pools every bin of a RoI at its own offset, in a way that ONNX lacks"

    @configurable
    def __init__(
        self,
        *,
        offset_head: OffsetHead,
        sibling_head: nn.Module | None = None,
        sibling_predictor: HeadOutputLayers | None = None,
        samples: int = 4,
        offset_scale: float = 0.1,
        pc_weights: tuple[float, float] = (1.0, 1.0),
        pc_margins: tuple[float, float] = (0.2, 0.2),
        **kwargs: Any,
    ) -> None:
        """
        Args:
            offset_head: predicts where both tasks look.
            sibling_head: the head for both tasks, RoI features to feature vectors; None: no sibling
                head, then `pc_weights` must be 0.
            sibling_predictor: its output layers.
            samples: per bin and axis where RoIs are pooled at offsets.
            offset_scale: γ, the part of a width or height that an offset of 1 moves.
            pc_weights: of M_cls and M_loc, the progressive constraint; 0: no such loss.
            pc_margins: m_c, of probabilities, and m_r, of IoUs.
            kwargs: as `SeparateROIHeads`; `legacy_boxes` pools as the authors' code does, too.
        """
        super().__init__(**kwargs)
        if self.legacy_boxes:
            for module in self.modules():
                if isinstance(module, ROIPooler):
                    pool_as_mmdet1(module)
        self.offset_head = offset_head
        self.sibling_head = sibling_head
        self.sibling_predictor = sibling_predictor
        self.samples = samples
        self.offset_scale = offset_scale
        self.pc_weights = pc_weights
        self.pc_margins = pc_margins
        self.rois_shown["offset_head"] = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the config; raises ValueError where `MODEL.ROI_TSD` is invalid."""
        check_tsd_config(cfg)
        node = cfg.MODEL.ROI_TSD
        ret = super().from_config(cfg, input_shape)
        ret["samples"] = node.SAMPLES
        ret["offset_scale"] = node.OFFSET_SCALE
        ret["pc_weights"] = (node.PC.CLS_WEIGHT, node.PC.LOC_WEIGHT)
        ret["pc_margins"] = (node.PC.CLS_MARGIN, node.PC.LOC_MARGIN)
        ret["legacy_boxes"] = node.LEGACY_BOXES
        ret["lazy_reg_head"] = node.LAZY_REG_HEAD
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        node, pooled = cfg.MODEL.ROI_TSD, cls.pooled_shape(cfg, input_shape, ret)
        ret["offset_head"] = OffsetHead(pooled, dim=node.OFFSET_DIM)
        weights = {"cls_weight": node.CLS_HEAD.LOSS_WEIGHT, "box_reg_weight": 0.0}
        ret["box_predictor"] = HeadOutputLayers(cfg, ret["box_head"].output_shape, **weights)
        ret["reg_head"] = reg_head = cls.build_reg_head(cfg, node.REG_HEAD.NAME, pooled)
        weights = {"cls_weight": 0.0, "box_reg_weight": node.REG_HEAD.LOSS_WEIGHT}
        ret["reg_predictor"] = HeadOutputLayers(cfg, reg_head.output_shape, **weights)
        if node.SIBLING_LOSS_WEIGHT:
            ret["sibling_head"] = sibling = build_box_head(cfg, pooled)
            weights = dict.fromkeys(("cls_weight", "box_reg_weight"), node.SIBLING_LOSS_WEIGHT)
            ret["sibling_predictor"] = HeadOutputLayers(cfg, sibling.output_shape, **weights)
        return ret

    def predict(
        self, features: dict[str, Tensor], boxes: list[Boxes], choose: ChooseRoIs | None = None
    ) -> TSDPredictions:
        """Run the heads on the given boxes, as :meth:`SeparateROIHeads.predict`.

        The sibling head is run in training alone.
        """
        maps = self._box_maps(features)
        pooled, delta_c, delta_r = self._look(maps, boxes)
        cls_head = self._predict_cls_head(maps, boxes, delta_c)
        shown = choose(cls_head) if choose is not None else None
        deltas = self._predict_deltas(maps, boxes, delta_r, shown)
        sibling = None
        if self.training and self.sibling_head is not None and self.sibling_predictor is not None:
            sibling = self.sibling_predictor(self.sibling_head(pooled))
        return TSDPredictions(HeadPredictions(cls_head.scores, deltas), sibling, delta_c, delta_r)

    def cls_logits(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """R x (K+1) class scores, logits, by the classification head alone.

        Args:
            features, boxes: as :meth:`predict`.
        """
        maps = self._box_maps(features)
        return self._predict_cls_head(maps, boxes, self._look(maps, boxes)[1]).scores

    def pool_boxes(
        self, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
    ) -> dict[str, Tensor]:
        """What each head is shown, as :meth:`SeparateROIHeads.pool_boxes`, moved by its offsets."""
        maps = self._box_maps(features)
        _, delta_c, delta_r = self._look(maps, boxes)
        offsets = {"box_head": delta_c, "reg_head": self._of_all_bins(delta_r)}
        return {head: self._pool(maps, boxes, moved) for head, moved in offsets.items()}

    def parts(self) -> list[Part]:
        """Offset networks, classification head, regression head; the sibling head runs nowhere."""
        box, *others = super().parts()
        offset = box._replace(
            name="offset_head", modules=[self.offset_head], layers=[self.offset_head]
        )
        parts = [offset, box, *others]
        if self.sibling_head is not None and self.sibling_predictor is not None:
            modules: list[nn.Module] = [self.sibling_head, self.sibling_predictor]
            parts.append(box._replace(name="sibling_head", modules=modules, layers=[]))
        return parts

    def losses(self, predictions: TSDPredictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """The weighted losses of all heads, without the RPN's.

        Args:
            predictions: of :meth:`predict` in training for the boxes of `proposals`.
            proposals: sampled RoIs with `proposal_boxes`, `gt_boxes` and `gt_classes`.

        Returns:
            "loss_cls" and "loss_box_reg" of the disentangled heads, the latter from P_r;
            "loss_cls_sibling" and "loss_box_reg_sibling" from P, and "loss_pc_cls" and
            "loss_pc_loc" where they are switched on. All are 0 for R = 0.
        """
        tsd = self._from_proposals(predictions)
        ours = scoped_losses("cls_head", self.box_predictor, tsd, proposals)
        ours |= scoped_losses("reg_head", self.reg_predictor, tsd, proposals)
        if predictions.sibling is None or self.sibling_predictor is None:
            return ours
        siblings = scoped_losses(
            "sibling_head", self.sibling_predictor, predictions.sibling, proposals
        )
        losses = ours | {f"{name}_sibling": loss for name, loss in siblings.items()}
        cls_weight, loc_weight = self.pc_weights
        if cls_weight:
            losses["loss_pc_cls"] = cls_weight * cls_constraint(
                tsd.scores,
                predictions.sibling.scores,
                [x.gt_classes for x in proposals],
                self.pc_margins[0],
            )
        if loc_weight:
            losses["loss_pc_loc"] = loc_weight * self._loc_constraint(predictions, proposals)
        return losses

    def score_boxes(
        self, predictions: TSDPredictions, proposals: list[Instances], *mode: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes from P_r and scores by ΔC, as :meth:`SeparateROIHeads.score_boxes`."""
        assert not mode, f"TSD is scored in one way alone, not as {mode}"
        layers, tsd = self.box_source_of(predictions)
        boxes = self._clipped(layers.predict_boxes(tsd, proposals), proposals)
        return boxes, self.box_predictor.predict_probs(tsd, proposals)

    def box_source_of(
        self, predictions: TSDPredictions
    ) -> tuple[HeadOutputLayers, HeadPredictions]:
        """The regression head's output layers, and predictions whose deltas are from P."""
        return self.reg_predictor, self._decodable(self._from_proposals(predictions))

    def _from_proposals(self, predictions: TSDPredictions) -> HeadPredictions:
        """The disentangled heads' predictions with deltas from P instead of P_r.

        P_r has the size of P. So deltas d from P_r are d + (γ w_x Δr_x, γ w_y Δr_y, 0, 0) from P,
        w the weights of the box coder: boxes, losses and gradients are the same, and detectron2's
        losses, whose proposals have no gradient, can be used.
        """
        deltas = predictions.tsd.deltas.float()
        weights = deltas.new_tensor(self.reg_predictor.box2box_transform.weights[:2])
        shift = F.pad(predictions.delta_r.float() * (self.offset_scale * weights), (0, 2))  # R x 4
        deltas = (deltas.unflatten(1, (-1, 4)) + shift[:, None]).flatten(1)
        return HeadPredictions(predictions.tsd.scores, deltas)

    def _decodable(self, predictions: HeadPredictions) -> HeadPredictions:
        """Predictions whose deltas detectron2 decodes as the authors do, with `legacy_boxes`."""
        if not self.legacy_boxes:
            return predictions
        deltas = with_least_sizes(predictions.deltas, self.reg_predictor.box2box_transform)
        return HeadPredictions(predictions.scores, deltas)

    def _look(self, maps: list[Tensor], boxes: list[Boxes]) -> tuple[Tensor, Tensor, Tensor]:
        """RoI features F, R x C x h x w, and the offsets ΔC and ΔR predicted from them."""
        pooled = self.box_pooler(maps, boxes)
        self._count("offset_head", pooled)
        return pooled, *self.offset_head(pooled)

    def _predict_cls_head(
        self, maps: list[Tensor], boxes: list[Boxes], delta_c: Tensor
    ) -> HeadPredictions:
        pooled = self._pool(maps, boxes, delta_c)
        self._count("box_head", pooled)
        return self.box_predictor(self.box_head(pooled))

    def _predict_deltas(
        self,
        maps: list[Tensor],
        boxes: list[Boxes],
        delta_r: Tensor,
        shown: list[Tensor] | None,
    ) -> Tensor:
        """Deltas from P_r, R x 4K or R x 4; zeros for boxes that the head is not shown."""
        mask = None if shown is None else torch.cat(shown)
        if shown is not None:
            boxes = [x[m] for x, m in zip(boxes, shown, strict=True)]
            delta_r = delta_r[mask]
        pooled = self._pool(maps, boxes, self._of_all_bins(delta_r))
        self._count("reg_head", pooled)
        deltas = self.reg_predictor(self.reg_head(pooled)).deltas
        return deltas if mask is None else put_rows(deltas, mask)

    def _pool(self, maps: list[Tensor], boxes: list[Boxes], offsets: Tensor) -> Tensor:
        return pool_at_offsets(
            self.box_pooler,
            maps,
            boxes,
            offsets,
            samples=self.samples,
            offset_scale=self.offset_scale,
            legacy=self.legacy_boxes,
        )

    def _of_all_bins(self, delta_r: Tensor) -> Tensor:
        """R x 2 x h x w: every bin moves as the proposal does."""
        return delta_r[:, :, None, None].expand(-1, -1, *self.offset_head.bins)

    def _loc_constraint(self, predictions: TSDPredictions, proposals: list[Instances]) -> Tensor:
        """M_loc, without its weight."""
        assert predictions.sibling is not None and self.sibling_predictor is not None
        layers, tsd = self.box_source_of(predictions)
        sibling = self._decodable(predictions.sibling)
        boxes = layers.predict_boxes_for_gt_classes(tsd, proposals)
        sibling_boxes = self.sibling_predictor.predict_boxes_for_gt_classes(sibling, proposals)
        # detectron2 gives the RoIs of an image without objects no ground truth but their class.
        gt_boxes = [x.gt_boxes if x.has("gt_boxes") else x.proposal_boxes for x in proposals]
        return loc_constraint(
            torch.cat(boxes),
            torch.cat(sibling_boxes),
            torch.cat([x.tensor for x in gt_boxes]),
            select_foreground_proposals(proposals, self.num_classes)[1],
            self.pc_margins[1],
            least_union=1.0 if self.legacy_boxes else 0.0,
        )
