"""What RoI heads with a head for classification and another for regression have in common.

Shape legend: N images; R RoIs of all images, Ri of image i; K foreground classes; C channels.
Boxes are XYXY in absolute coordinates of the (padded) network input.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from doublehead_d2.checkpoint.sources.recognise import refuse_foreign_keys
from doublehead_d2.modeling.legacy import clip_to_pixels
from doublehead_d2.modeling.levels import PoolsByLevel
from doublehead_d2.modeling.output_layers import HeadOutputLayers, HeadPredictions
from doublehead_d2.modeling.parts import Part, standard_parts
from doublehead_d2.modeling.pooling import in_float32, pool_in_parallel

# What the classification head says to N masks of Ri, or to None for all
ChooseRoIs = Callable[[HeadPredictions], list[Tensor] | None]
ImageSizes = Sequence[tuple[int, int]]  # of N images without padding: height, width
Predictions = TypeVar("Predictions")  # the record of a system


class SeparateROIHeads(PoolsByLevel, Generic[Predictions]):
    """The way of RoIs through two box heads, which every system fills in for itself.

    `box_head` and `box_predictor` belong to the classification head, so that the weights of a stock
    Faster R-CNN fill it; `reg_head` and `reg_predictor` to the regression head. Mask and keypoint
    heads are those of `StandardROIHeads`.

    A system says what its heads are shown and say (:meth:`predict`, :meth:`shown_to_reg_head`), and
    what becomes of it (:meth:`losses`, :meth:`inference`, :meth:`box_source_of`).
    """

    onnx_obstacle = ""  # what stands against a system as ONNX, in words

    def __init__(
        self,
        *,
        box_predictor: HeadOutputLayers,
        reg_head: nn.Module,
        reg_predictor: HeadOutputLayers,
        legacy_boxes: bool = False,
        lazy_reg_head: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_predictor: output layers of the classification head. Test thresholds are read here.
            reg_head: the head focused on regression, RoI features to feature vectors.
            reg_predictor: output layers of the regression head.
            legacy_boxes: clip detections as the authors' code does.
            lazy_reg_head: in inference, run the regression head on no RoI that cannot be detected.
            kwargs: as `StandardROIHeads`; `box_head` is the head focused on classification.
        """
        super().__init__(box_predictor=box_predictor, **kwargs)
        for module in self.modules():
            if isinstance(module, ROIPooler):
                pool_in_parallel(module)
        self.reg_head = reg_head
        self.reg_predictor = reg_predictor
        self.legacy_boxes = legacy_boxes
        self.lazy_reg_head = lazy_reg_head
        # Ways to score the model, set by `score_modes` for an evaluation: name to what
        # `inference` takes. Detections then carry the index of their mode.
        self.modes: dict[str, tuple[Any, ...]] = {}
        # see modeling.parts
        self.rois_shown: Counter[str] = Counter(box_head=0, reg_head=0)

    @staticmethod
    def pooled_shape(
        cfg: CfgNode, input_shape: dict[str, ShapeSpec], box_head: dict[str, Any]
    ) -> ShapeSpec:
        """Channels, height and width of a RoI feature.

        Args:
            cfg: a config.
            input_shape: the backbone's feature maps by name.
            box_head: what `StandardROIHeads._init_box_head` returns.
        """
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = input_shape[box_head["box_in_features"][0]].channels
        return ShapeSpec(channels=channels, height=resolution, width=resolution)

    @staticmethod
    def build_reg_head(cfg: CfgNode, name: str, pooled_shape: ShapeSpec) -> nn.Module:
        """The regression head, a name of ROI_BOX_HEAD_REGISTRY, for RoI features of that shape."""
        return ROI_BOX_HEAD_REGISTRY.get(name)(cfg, pooled_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], *args: Any) -> None:
        """Load, but refuse the weights of other code bases, of which no key would fit.

        A module is given the keys below its own name alone; those that the detector above it did
        not know are in `unexpected_keys` by now.
        """
        *_, unexpected_keys, _ = args
        refuse_foreign_keys([*state_dict, *unexpected_keys])
        super()._load_from_state_dict(state_dict, *args)

    def predict(
        self, features: dict[str, Tensor], boxes: list[Boxes], *args: Any, **kwargs: Any
    ) -> Predictions:
        """Run the heads on the given boxes.

        Args:
            features: the backbone's feature maps by name, each N x C x H x W.
            boxes: N elements, Ri boxes each.
            args, kwargs: what a system also looks at, and last `choose`, a `ChooseRoIs`: given
                what the classification head says, which boxes the regression head is shown, as
                :meth:`shown_to_reg_head`; by default all.

        Returns:
            predictions for the R boxes, image after image.
        """
        raise NotImplementedError

    def predict_proposals(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        choose: ChooseRoIs | None = None,
    ) -> Predictions:
        """:meth:`predict` for the boxes of proposals, with whatever else a system looks at.

        Args:
            features, choose: as :meth:`predict`.
            proposals: N elements with `proposal_boxes`.
        """
        return self.predict(features, [x.proposal_boxes for x in proposals], choose)

    def pool_boxes(
        self, features: dict[str, Tensor], boxes: list[Boxes], image_sizes: ImageSizes
    ) -> dict[str, Tensor]:
        """RoI features that :meth:`predict` shows the heads where all see all boxes.

        Args:
            features: the backbone's feature maps by name, each N x C x H x W.
            boxes: N elements, Ri boxes each.
            image_sizes: of the images without padding: height, width.

        Returns:
            R x C x h x w of "box_head" and of "reg_head".
        """
        raise NotImplementedError

    def shown_to_reg_head(
        self, proposals: list[Instances], cls_head: HeadPredictions
    ) -> list[Tensor] | None:
        """Which RoIs the regression head is shown: the one answer, in training and in inference.

        In inference those with a class above the test threshold: others have no detection.

        Args:
            proposals: N elements; in training with `gt_classes`.
            cls_head: what the classification head says of them.

        Returns:
            N masks of Ri, or None for all.
        """
        if self.training or not self.lazy_reg_head:
            return None
        threshold = self.box_predictor.test_score_thresh
        return [best > threshold for best in self._best_scores(cls_head, proposals)]

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """The weighted losses of the box heads, by name.

        Args:
            predictions: of :meth:`predict` for the boxes of `proposals`.
            proposals: sampled RoIs with `proposal_boxes`, `gt_boxes` and `gt_classes`.
        """
        raise NotImplementedError

    def score_boxes(
        self, predictions: Predictions, proposals: list[Instances], *mode: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What detections are chosen from: a box and a score of each class for every proposal.

        Args:
            predictions, proposals, mode: as :meth:`inference`.

        Returns:
            N elements each: boxes, Ri x 4K or, class-agnostic, Ri x 4, which need not lie in the
            image; and scores of 0 to 1, Ri x (K+1). Rows that are not finite are of proposals that
            the regression head should have been shown, but was not.
        """
        raise NotImplementedError

    def inference(
        self, predictions: Predictions, proposals: list[Instances], *mode: Any
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections.

        Args:
            predictions: of :meth:`predict` for the boxes of `proposals`.
            proposals: N elements with `proposal_boxes`.
            mode: how to score, instead of as configured, where a system has several ways.

        Returns:
            detections with `pred_boxes`, `scores` and `pred_classes`, and for each image the
            indices of its proposals that they come from.
        """
        return self._detections(*self.score_boxes(predictions, proposals, *mode), proposals)

    def box_source_of(self, predictions: Predictions) -> tuple[HeadOutputLayers, HeadPredictions]:
        """The output layers and the predictions that the boxes of detections are made from."""
        raise NotImplementedError

    def detect(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """In evaluation, the detections of :meth:`predict` and :meth:`inference`, at less cost.

        The regression head is shown only the RoIs that can be detected, as
        :meth:`shown_to_reg_head` says.

        Args:
            features: the backbone's feature maps by name, each N x C x H x W.
            proposals: N elements with `proposal_boxes`.

        Returns:
            as :meth:`inference`.
        """
        return self.inference(self._predict_shown(features, proposals), proposals)

    def parts(self) -> list[Part]:
        """Those of `StandardROIHeads`, and "reg_head" after "box_head"."""
        box, *others = standard_parts(self)
        layers: list[Any] = [self.reg_head, self.reg_predictor]
        return [box, box._replace(name="reg_head", modules=layers, layers=layers), *others]

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.training and not self.modes:
            return self.detect(features, proposals)[0]
        predictions = self._predict_shown(features, proposals)
        if not self.training:
            return self._inference_in_modes(predictions, proposals)
        losses = self.losses(predictions, proposals)
        # The mask and keypoint heads see the boxes that inference will give them.
        # Losses come first, because the proposals are changed in place.
        if self.train_on_pred_boxes:
            layers, head_predictions = self.box_source_of(predictions)
            with torch.no_grad():
                pred_boxes = layers.predict_boxes_for_gt_classes(head_predictions, proposals)
            for proposals_per_image, boxes_per_image in zip(proposals, pred_boxes, strict=True):
                proposals_per_image.proposal_boxes = Boxes(boxes_per_image)
        return losses

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        used = self.mask_in_features if self.mask_on else []
        return super()._forward_mask(in_float32(features, used), instances)

    def _forward_keypoint(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        used = self.keypoint_in_features if self.keypoint_on else []
        return super()._forward_keypoint(in_float32(features, used), instances)

    def _predict_shown(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> Predictions:
        """Predictions for proposals, of the regression head for those that it is shown."""
        choose = partial(self.shown_to_reg_head, proposals)
        return self.predict_proposals(features, proposals, choose)

    def _inference_in_modes(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> list[Instances]:
        """Detections of all `modes` together, their field `modes` the index of the mode.

        One `Instances` an image passes through the mask head and detectron2's post-processing like
        any other, so that the network runs once however many modes there are.
        """
        by_mode = []
        for index, mode in enumerate(self.modes.values()):
            detections, _ = self.inference(predictions, proposals, *mode)
            for detections_per_image in detections:
                detections_per_image.modes = torch.full_like(
                    detections_per_image.pred_classes, index
                )
            by_mode.append(detections)
        return [Instances.cat(list(modes)) for modes in zip(*by_mode, strict=True)]

    def _box_maps(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The feature maps that boxes are pooled from."""
        features = in_float32(features, self.box_in_features)
        return [features[f] for f in self.box_in_features]

    def _count(self, part: str, pooled: Tensor) -> None:
        if not torch.jit.is_tracing():  # sizes are tensors there
            self.rois_shown[part] += pooled.shape[0]

    def _best_scores(self, cls_head: HeadPredictions, proposals: list[Instances]) -> list[Tensor]:
        """The classification head's highest probability of a class, N elements of Ri."""
        probs = self.box_predictor.predict_probs(cls_head, proposals)
        return [p[:, :-1].amax(dim=1) for p in probs]

    def _clipped(self, boxes: list[Tensor], proposals: list[Instances]) -> list[Tensor]:
        """Boxes Ri x 4K or Ri x 4, with `legacy_boxes` clipped as the authors' code does."""
        if not self.legacy_boxes:
            return boxes
        sizes = [x.image_size for x in proposals]
        return [clip_to_pixels(b, s) for b, s in zip(boxes, sizes, strict=True)]

    def _detections(
        self, boxes: list[Tensor], scores: list[Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """What :meth:`inference` returns.

        Args:
            boxes, scores: of :meth:`score_boxes`. Rows that are not finite are left out.
            proposals: N elements, which know the size of their image.
        """
        image_sizes = [x.image_size for x in proposals]
        detections, kept = fast_rcnn_inference(
            boxes,
            scores,
            image_sizes,
            self.box_predictor.test_score_thresh,
            self.box_predictor.test_nms_thresh,
            self.box_predictor.test_topk_per_image,
        )
        # It counts the rows that are left when it has left out those that are not finite.
        finite = [
            torch.cat(x, dim=1).isfinite().all(dim=1) for x in zip(boxes, scores, strict=True)
        ]
        return detections, [f.nonzero().squeeze(1)[k] for f, k in zip(finite, kept, strict=True)]


def put_rows(values: Tensor, mask: Tensor) -> Tensor:
    """A row for each element of the mask: those of `values` where it is true, else zeros."""
    rows = mask.nonzero().squeeze(1)
    return values.new_zeros(mask.shape[0], values.shape[1]).index_copy(0, rows, values)
