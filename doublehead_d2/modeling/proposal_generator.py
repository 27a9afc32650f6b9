"""The RPN as the authors' checkpoints were trained with it."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor

from doublehead_d2.modeling.roi_boxes import clip_to_pixels


@PROPOSAL_GENERATOR_REGISTRY.register()
class LegacyRPN(RPN):
    """`RPN` whose proposals are clipped to the pixels of the image, as in maskrcnn-benchmark.

    A proposal outside the image stays there as a sliver one pixel thin, which takes part in all
    that follows; detectron2 drops it.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """As `RPN`; with MODEL.RPN.BOUNDARY_THRESH >= 0 anchors may end where the image does."""
        ret = super().from_config(cfg, input_shape)
        if ret["anchor_boundary_thresh"] >= 0:
            # detectron2 asks for x2 < width, the original that the last pixel, x2 - 1, be below it.
            # The corners of legacy anchors are integers, so that half a pixel tells the two apart.
            ret["anchor_boundary_thresh"] += 0.5
        return ret

    @torch.no_grad()  # proposals are constants to the heads
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode, clip and choose proposals.

        Args:
            anchors: of each feature map, Hi * Wi * A boxes.
            pred_objectness_logits: of each feature map, N x (Hi * Wi * A).
            pred_anchor_deltas: of each feature map, N x (Hi * Wi * A) x 4.
            image_sizes: (height, width) of the N images.

        Returns:
            N elements with `proposal_boxes` and `objectness_logits`, the best first.
        """
        decoded = self._decode_proposals(anchors, pred_anchor_deltas)
        clipped = []
        for boxes in decoded:  # N x (Hi * Wi * A) x 4
            images = zip(boxes, image_sizes, strict=True)
            clipped.append(torch.stack([clip_to_pixels(x, size) for x, size in images]))
        return find_top_rpn_proposals(
            clipped,
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )
