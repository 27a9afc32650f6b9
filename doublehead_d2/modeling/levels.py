"""RoI heads that pool from several maps of one stride."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads

from doublehead_d2.modeling.pooling import levels_of, pool_at_strides


class PoolsByLevel(StandardROIHeads):
    """Chooses the map of a RoI by its place in the pyramid, whatever the strides are.

    detectron2's heads do so by stride, and refuse maps of one stride. On a pyramid whose strides
    double nothing differs.
    """

    pools_by_level = True  # asked for by checks of configs

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, levels_of(input_shape))
        return _at_strides(ret, "box", input_shape)

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_mask_head(cfg, levels_of(input_shape))
        return _at_strides(ret, "mask", input_shape)

    @classmethod
    def _init_keypoint_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_keypoint_head(cfg, levels_of(input_shape))
        return _at_strides(ret, "keypoint", input_shape)


def _at_strides(
    ret: dict[str, Any], part: str, input_shape: dict[str, ShapeSpec]
) -> dict[str, Any]:
    """What `_init_<part>_head` returned, its pooler at the true strides of its maps."""
    pooler = ret.get(f"{part}_pooler")  # none: there is no such head, or it does not pool
    if pooler is not None:
        pool_at_strides(pooler, [input_shape[name].stride for name in ret[f"{part}_in_features"]])
    return ret


@ROI_HEADS_REGISTRY.register()
class StandardROIHeadsByLevel(PoolsByLevel):
    """detectron2's `StandardROIHeads`, for backbones with several maps of one stride."""
