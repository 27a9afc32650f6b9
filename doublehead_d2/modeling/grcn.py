"""G-RCN (https://arxiv.org/abs/2012.03677), built from its abstract: two tasks, two Conv5.

Each task pools its RoIs from a map of its own: classification from a copy of Conv5 that keeps the
large stride it was pre-trained with, localisation from one that drops Conv5's downsampling
(`modeling/conv5_copies.py` has the backbones). Classification also sees the whole image, as one
more RoI. The paper's body was not available: all but this are our choices (docs/MODEL_ZOO.md).

Shape legend: N images; R RoIs of all images, Ri of image i; K foreground classes; C channels of a
map, D of a head's vector; h x w bins of a RoI. Boxes are XYXY in absolute coordinates of the
(padded) network input.
"""

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from doublehead_d2.config import check_grcn_config, check_map_names
from doublehead_d2.modeling.output_layers import (
    DoubleHeadPredictions,
    HeadOutputLayers,
    HeadPredictions,
    scoped_losses,
)
from doublehead_d2.modeling.parts import Part
from doublehead_d2.modeling.pooling import in_float32, pool_in_parallel
from doublehead_d2.modeling.separate_heads import (
    ChooseRoIs,
    ImageSizes,
    SeparateROIHeads,
    put_rows,
)
from doublehead_d2.modeling.siblings import fill_missing


@ROI_BOX_HEAD_REGISTRY.register()
class AveragePoolHead(nn.Module):
    """The mean of a RoI's features, no parameters: what is left of C4's head without its Conv5."""

    @configurable
    def __init__(self, input_shape: ShapeSpec) -> None:
        """
        Args:
            input_shape: shape of the RoI features; its channels are used.
        """
        super().__init__()
        self._channels = input_shape.channels

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """It has no settings."""
        return {"input_shape": input_shape}

    def forward(self, x: Tensor) -> Tensor:
        """Map RoI features R x C x h x w to R x C."""
        return x.mean(dim=[2, 3])

    @property
    def output_shape(self) -> ShapeSpec:
        """C channels."""
        return ShapeSpec(channels=self._channels)


class Branch(NamedTuple):
    """What a task has for itself above the backbone, but for its output layers."""

    in_features: list[str]
    pooler: ROIPooler
    head: nn.Module
    context: str  # one of `config.grcn.CONTEXTS`

    def pool(
        self, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
    ) -> tuple[Tensor, Tensor | None]:
        """RoI features R x C x h x w, and with a context those of the images, N x C x h x w."""
        maps = list(in_float32(features, self.in_features).values())
        whole = None
        if self.context != "none":
            whole = pool_whole_images(self.pooler, maps, image_sizes)
        return self.pooler(maps, boxes), whole

    def vectors(self, pooled: Tensor, whole: Tensor | None, image_of: Tensor) -> Tensor:
        """The head's vectors, R x D; R x 2D where those of the images are concatenated.

        Args:
            pooled, whole: of :meth:`pool`.
            image_of: R indices of the images that RoIs are of.
        """
        if whole is None:
            return self.head(pooled).flatten(1)
        norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
        if self.head.training and any(isinstance(m, norms) for m in self.head.modules()):
            # One batch, of one statistic. Others are spared the copy of all RoI features.
            both = self.head(torch.cat([pooled, whole])).flatten(1)
            vectors, contexts = both[: -len(whole)], both[-len(whole) :]
        else:
            vectors, contexts = self.head(pooled).flatten(1), self.head(whole).flatten(1)
        contexts = contexts[image_of]
        if self.context == "add":
            return vectors + contexts
        return torch.cat([vectors, contexts], dim=1)

    @staticmethod
    def output_shape(head: Any, context: str) -> ShapeSpec:
        """Of :meth:`vectors`."""
        shape = head.output_shape
        size = shape.channels * (shape.height or 1) * (shape.width or 1)
        return ShapeSpec(channels=2 * size if context == "concat" else size)


def pool_whole_images(pooler: ROIPooler, maps: list[Tensor], image_sizes: ImageSizes) -> Tensor:
    """Pool every image as one RoI of its own size.

    RoIAlign at the edge of a box reads half a cell beyond it. So that padding says nothing, each
    image is pooled from its own cells alone, as if it were in no batch.

    Args:
        pooler: for the maps.
        maps: each N x C x H x W.
        image_sizes: of the images without padding.

    Returns:
        N x C x h x w.
    """
    pooled = []
    for i, (height, width) in enumerate(image_sizes):
        own = []
        for features, align in zip(maps, pooler.level_poolers, strict=True):
            stride = round(1 / align.spatial_scale)
            # Rounded up, of positive numbers alone: ONNX does not round down, but towards zero.
            rows, columns = (height + stride - 1) // stride, (width + stride - 1) // stride
            own.append(features[i : i + 1, :, :rows, :columns])
        # Sizes are tensors while a model is traced.
        corners = [torch.as_tensor(x).to(maps[0]) for x in (0, 0, width, height)]
        pooled.append(pooler(own, [Boxes(torch.stack(corners)[None])]))
    return torch.cat(pooled)


@ROI_HEADS_REGISTRY.register()
class GRCNROIHeads(SeparateROIHeads[DoubleHeadPredictions]):
    """A branch for classification and one for boxes, each with maps, RoIs and head of its own."""

    @configurable
    def __init__(
        self,
        *,
        reg_in_features: list[str],
        reg_pooler: ROIPooler,
        cls_context: str = "concat",
        reg_context: str = "none",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            reg_in_features: the maps that the regression branch pools from.
            reg_pooler: its pooler.
            cls_context: what the whole image tells the RoIs of the classification branch, one of
                `config.grcn.CONTEXTS`.
            reg_context: as `cls_context`, of the regression branch.
            kwargs: as `SeparateROIHeads`; its `box_*` are the classification branch.
        """
        super().__init__(**kwargs)
        pool_in_parallel(reg_pooler)
        self.reg_in_features = reg_in_features
        self.reg_pooler = reg_pooler
        self.cls_context = cls_context
        self.reg_context = reg_context
        # The weights of a stock detector, which has one head for both tasks, fill both branches.
        self.siblings = {
            "box_head": "reg_head",
            "reg_head": "box_head",
            "reg_predictor.bbox_pred": "box_predictor.bbox_pred",
        }

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the config; raises ValueError where `MODEL.ROI_GRCN` is invalid."""
        check_grcn_config(cfg)
        node = cfg.MODEL.ROI_GRCN
        for key, names in (
            ("MODEL.ROI_HEADS.IN_FEATURES", cfg.MODEL.ROI_HEADS.IN_FEATURES),
            ("MODEL.ROI_GRCN.REG_HEAD.IN_FEATURES", node.REG_HEAD.IN_FEATURES),
        ):
            check_map_names(key, names, list(input_shape))
        ret = super().from_config(cfg, input_shape)
        ret["cls_context"] = node.CLS_HEAD.CONTEXT
        ret["reg_context"] = node.REG_HEAD.CONTEXT
        ret["lazy_reg_head"] = node.LAZY_REG_HEAD
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.ROI_GRCN
        ret = super()._init_box_head(cfg, input_shape)
        shape = Branch.output_shape(ret["box_head"], node.CLS_HEAD.CONTEXT)
        weights = {"cls_weight": node.CLS_HEAD.LOSS_WEIGHT, "box_reg_weight": 0.0}
        ret["box_predictor"] = HeadOutputLayers(cfg, shape, **weights)
        # detectron2 makes pooler and head of the other branch, too, from what describes that one.
        reg_cfg = cfg.clone()
        reg_cfg.defrost()
        reg_cfg.MODEL.ROI_HEADS.IN_FEATURES = node.REG_HEAD.IN_FEATURES
        reg_cfg.MODEL.ROI_BOX_HEAD.NAME = node.REG_HEAD.NAME
        reg = super()._init_box_head(reg_cfg, input_shape)
        ret["reg_in_features"], ret["reg_pooler"] = reg["box_in_features"], reg["box_pooler"]
        ret["reg_head"] = reg["box_head"]
        shape = Branch.output_shape(ret["reg_head"], node.REG_HEAD.CONTEXT)
        weights = {"cls_weight": 0.0, "box_reg_weight": node.REG_HEAD.LOSS_WEIGHT}
        ret["reg_predictor"] = HeadOutputLayers(cfg, shape, **weights)
        return ret

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        fill_missing(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def branch(self, name: str) -> Branch:
        """The classification branch, "box_head", or the regression branch, "reg_head"."""
        if name == "box_head":
            return Branch(self.box_in_features, self.box_pooler, self.box_head, self.cls_context)
        return Branch(self.reg_in_features, self.reg_pooler, self.reg_head, self.reg_context)

    def predict(
        self,
        features: dict[str, Tensor],
        boxes: list[Boxes],
        image_sizes: ImageSizes,
        choose: ChooseRoIs | None = None,
    ) -> DoubleHeadPredictions:
        """Run both branches on the given boxes.

        Args:
            features: the backbone's feature maps by name, each N x C x H x W.
            boxes: N elements, Ri boxes each.
            image_sizes: of the images without padding: height, width.
            choose: as :meth:`SeparateROIHeads.predict`.

        Returns:
            predictions for the R boxes, image after image; scores of the classification branch and
            deltas of the regression branch, zeros for what a branch does not say.
        """
        cls_head = self.box_predictor(self._vectors("box_head", features, boxes, image_sizes))
        shown = choose(cls_head) if choose is not None else None
        if shown is not None:
            boxes = [x[mask] for x, mask in zip(boxes, shown, strict=True)]
        reg_head = self.reg_predictor(self._vectors("reg_head", features, boxes, image_sizes))
        if shown is not None:
            reg_head = HeadPredictions(*(put_rows(x, torch.cat(shown)) for x in reg_head))
        return DoubleHeadPredictions(cls_head, reg_head, shown)

    def cls_logits(
        self,
        features: dict[str, Tensor],
        boxes: list[Boxes],
        image_sizes: ImageSizes | None = None,
    ) -> Tensor:
        """R x (K+1) class scores, logits, by the classification branch alone.

        Args:
            features, boxes, image_sizes: as :meth:`predict`; without sizes images fill their maps.
        """
        if image_sizes is None:
            maps, align = features[self.box_in_features[0]], self.box_pooler.level_poolers[0]
            height, width = (round(cells / align.spatial_scale) for cells in maps.shape[2:])
            image_sizes = [(height, width)] * len(boxes)
        return self.box_predictor(self._vectors("box_head", features, boxes, image_sizes)).scores

    def pool_boxes(
        self, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
    ) -> dict[str, Tensor]:
        """What each head is shown, as :meth:`SeparateROIHeads.pool_boxes`, without a context."""
        names = ("box_head", "reg_head")
        return {name: self.branch(name).pool(features, boxes, image_sizes)[0] for name in names}

    def losses(
        self, predictions: DoubleHeadPredictions, proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """The weighted losses of both branches.

        Args:
            predictions: of :meth:`predict` for the boxes of `proposals`.
            proposals: sampled RoIs with `proposal_boxes`, `gt_boxes` and `gt_classes`.

        Returns:
            "loss_cls" of the classification branch, "loss_box_reg" of the regression branch. Both
            are means over all R sampled RoIs, and 0 for R = 0.
        """
        losses = scoped_losses("cls_head", self.box_predictor, predictions.cls_head, proposals)
        return losses | scoped_losses(
            "reg_head", self.reg_predictor, predictions.reg_head, proposals
        )

    def score_boxes(
        self, predictions: DoubleHeadPredictions, proposals: list[Instances], *mode: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes of one branch and scores of the other, as :meth:`SeparateROIHeads.score_boxes`."""
        assert not mode, f"G-RCN is scored in one way alone, not as {mode}"
        boxes = self.reg_predictor.predict_boxes(predictions.reg_head, proposals)
        return boxes, self.box_predictor.predict_probs(predictions.cls_head, proposals)

    def box_source_of(
        self, predictions: DoubleHeadPredictions
    ) -> tuple[HeadOutputLayers, HeadPredictions]:
        """Output layers and predictions of the regression branch."""
        return self.reg_predictor, predictions.reg_head

    def parts(self) -> list[Part]:
        """The classification branch and the regression branch, each with its whole images."""
        return [
            self._in_branch(part) if part.name in ("box_head", "reg_head") else part
            for part in super().parts()
        ]

    def _in_branch(self, part: Part) -> Part:
        branch = self.branch(part.name)

        def vectors(pooled: Tensor) -> Tensor:
            """Of RoIs of one image, which is one more RoI."""
            whole = None if branch.context == "none" else pooled[:1]
            image_of = torch.zeros(len(pooled), dtype=torch.int64, device=pooled.device)
            return branch.vectors(pooled, whole, image_of)

        _, predictor = part.modules
        return part._replace(
            layers=[vectors, predictor], in_features=branch.in_features, pooler=branch.pooler
        )

    def predict_proposals(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        choose: ChooseRoIs | None = None,
    ) -> DoubleHeadPredictions:
        """:meth:`predict` for proposals, which know the size of their image."""
        return self.predict(
            features,
            [x.proposal_boxes for x in proposals],
            [x.image_size for x in proposals],
            choose,
        )

    def _vectors(
        self, name: str, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
    ) -> Tensor:
        """What the output layers of a branch are given, of R RoIs."""
        branch = self.branch(name)
        pooled, whole = branch.pool(features, boxes, image_sizes)
        for rois in (pooled, *([] if whole is None else [whole])):
            self._count(name, rois)
        image_of = convert_boxes_to_pooler_format(boxes)[:, 0].long()
        return branch.vectors(pooled, whole, image_of)
