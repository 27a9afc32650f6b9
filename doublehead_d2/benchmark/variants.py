"""The detectors that are measured side by side, set up to cost what trained ones cost.

Models with random weights, whose RPN and classifier say little, are given the number of proposals,
and the share of them with a class above the test threshold (the survivors), by moving that
threshold. A trained Double-Head-Ext is measured as it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from torch import nn

from doublehead_d2 import model_zoo
from doublehead_d2.benchmark.heads import ask
from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.config import merge_opts
from doublehead_d2.modeling.pooling import ParallelROIAlign, pool_in_parallel

BASELINE = "faster_rcnn"
_NODE = "MODEL.ROI_DOUBLE_HEAD"


class Variant(NamedTuple):
    """A detector to measure."""

    config: str  # name in the zoo
    opts: tuple = ()  # config changes, KEY, VALUE, ...
    tasks: tuple[str, ...] = ("inference",)
    # On a CPU, neither chunks in the conv-head nor RoIAlign on all cores, or both; None: as built
    plain: bool | None = None


_FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_paper_1x.yaml"
_DOUBLE = "COCO-Detection/double_head_rcnn_R_50_FPN_paper_1x.yaml"
_EXT = "COCO-Detection/double_head_ext_rcnn_R_50_FPN_paper_1x.yaml"
_MMDET = "Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml"
_TSD = "COCO-Detection/tsd_rcnn_R_50_FPN_1x.yaml"
_DOUBLE_HEAD_TSD = "COCO-Detection/double_head_tsd_rcnn_R_50_FPN_1x.yaml"
_R_101 = "COCO-Detection/faster_rcnn_R_101_FPN_paper_1x.yaml"
_DETNET = "COCO-Detection/faster_rcnn_DetNet_59_FPN_1x.yaml"
_GRCN = "COCO-Detection/grcn_R_50_C5_1x.yaml"
# detectron2's faster_rcnn_R_50_DC5: as the corrected protocol, with an RPN on Conv5 and a 2-fc head
_DC5 = (
    *("MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.RPN.IN_FEATURES", ["res5"]),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
)
_ALL_ROIS = (f"{_NODE}.LAZY_REG_HEAD", False)
_FOREGROUND = (f"{_NODE}.TRAIN_REG_HEAD_ON", "foreground")
_CHECKPOINTS = (f"{_NODE}.CONV_HEAD.USE_ACT_CHECKPOINT", True)
_FOLDED = (f"{_NODE}.CONV_HEAD.FOLD_BN", True)
_FLOOR = (f"{_NODE}.SCORE_FLOOR", 0.05)
_BOTH = ("inference", "training")
# "_plain": every RoI through the whole conv-head at once, as in the two published implementations
VARIANTS = {
    BASELINE: Variant(_FASTER, tasks=_BOTH),
    # What of the difference to the baseline is RoIAlign's
    "faster_rcnn_pooled": Variant(_FASTER, plain=False),
    "double_head_plain": Variant(_DOUBLE, _ALL_ROIS, plain=True),
    "double_head": Variant(_DOUBLE, tasks=_BOTH),
    "mmdet_layout_plain": Variant(_MMDET, _ALL_ROIS, plain=True),
    "mmdet_layout": Variant(_MMDET),
    "ext_plain": Variant(_EXT, plain=True),
    "ext": Variant(_EXT, tasks=_BOTH),
    "ext_folded": Variant(_EXT, _FOLDED),
    "ext_floor": Variant(_EXT, _FLOOR),
    "double_head_foreground": Variant(_DOUBLE, _FOREGROUND, ("training",)),
    "double_head_checkpoints": Variant(_DOUBLE, _CHECKPOINTS, ("training",)),
    "double_head_both": Variant(_DOUBLE, _FOREGROUND + _CHECKPOINTS, ("training",)),
    "ext_checkpoints": Variant(_EXT, _CHECKPOINTS, ("training",)),
    "tsd": Variant(_TSD, tasks=_BOTH),
    "tsd_all_rois": Variant(_TSD, ("MODEL.ROI_TSD.LAZY_REG_HEAD", False)),
    "tsd_samples_2": Variant(_TSD, ("MODEL.ROI_TSD.SAMPLES", 2), _BOTH),
    "double_head_tsd": Variant(_DOUBLE_HEAD_TSD, tasks=_BOTH),
    "faster_rcnn_r101": Variant(_R_101, tasks=_BOTH),
    # Frozen norms, as the others: what a backbone costs that was trained as a whole
    "detnet": Variant(_DETNET, ("MODEL.DETNET.NORM", "FrozenBN"), _BOTH),
    # Without FPN: C4, Conv5 in the backbone (corrected), twice (G-RCN), and detectron2's DC5
    "c4": Variant("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", tasks=_BOTH),
    "c5": Variant("COCO-Detection/faster_rcnn_R_50_C5_1x.yaml", tasks=_BOTH),
    "grcn": Variant(_GRCN, tasks=_BOTH),
    "grcn_all_rois": Variant(_GRCN, ("MODEL.ROI_GRCN.LAZY_REG_HEAD", False)),
    "dc5": Variant("COCO-Detection/faster_rcnn_R_50_C5_1x.yaml", _DC5, _BOTH),
    "vgg16": Variant("COCO-Detection/faster_rcnn_VGG_16_1x.yaml", tasks=_BOTH),
    "grcn_vgg16": Variant("COCO-Detection/grcn_VGG_16_1x.yaml", tasks=_BOTH),
}
# The detectors that are in a trained Double-Head-Ext: its fc-head alone, its fc-head's scores with
# its conv-head's boxes, and the whole
_UNFUSED = (f"{_NODE}.SCORE_FUSION", "cls_head")
_NOT_SPARED = (f"{_NODE}.SCORE_FLOOR", 0.0, f"{_NODE}.CONV_HEAD.FOLD_BN", False)
TRAINED_VARIANTS: dict[str, tuple] = {
    BASELINE: ("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    "double_head_plain": (*_UNFUSED, *_ALL_ROIS),
    "double_head": _UNFUSED,
    "ext_plain": (),
    "ext": (),
    "ext_folded": _FOLDED,
    "ext_floor": _FLOOR,
}


class Setting(NamedTuple):
    """What a measurement is made with."""

    image_size: tuple[int, int] = (800, 1216)  # height, width
    batch_size: int = 1
    num_proposals: int = 1000  # an image
    survivors: float = 0.15  # share of the proposals with a class above the test threshold


def build_variant(name: str, device: str, opts: Sequence[object] = ()) -> GeneralizedRCNN:
    """A model of `VARIANTS` with random weights, in evaluation mode.

    Args:
        name: key of `VARIANTS`.
        device: as MODEL.DEVICE.
        opts: further config changes.
    """
    variant = VARIANTS[name]
    cfg = model_zoo.read_config(model_zoo.get_config_file(variant.config))
    merge_opts(cfg, [*variant.opts, *opts, "MODEL.WEIGHTS", "", "MODEL.DEVICE", device])
    # Random layers have no trained statistics: inputs of size 1, and below residual blocks that add
    # little, keep activations from growing until boxes overflow.
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    torch.manual_seed(0)
    model = _build(cfg, variant.plain)
    resnet = [model.backbone, getattr(model.roi_heads, "res5", nn.Identity())]  # C4's Conv5
    for module in (module for part in resnet for module in part.modules()):
        if isinstance(module, BottleneckBlock):
            module.conv3.norm.weight.fill_(0.2)
    return model


def build_trained(name: str, cfg: CfgNode) -> GeneralizedRCNN:
    """A model of `TRAINED_VARIANTS` with the weights of a trained Double-Head-Ext.

    Args:
        name: key of `TRAINED_VARIANTS`.
        cfg: of the trained model, its weights in MODEL.WEIGHTS.

    Raises:
        ValueError: the model has no weights, or not those of two heads that both learned both
            tasks, or does not fuse their scores.
    """
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    fused = cfg.MODEL.ROI_HEADS.NAME == "DoubleHeadROIHeads" and node.CLS_HEAD.LAMBDA < 1
    if not (fused and node.SCORE_FUSION not in ("cls_head", "reg_head") and cfg.MODEL.WEIGHTS):
        raise ValueError(
            f"MODEL.WEIGHTS is '{cfg.MODEL.WEIGHTS}', {_NODE}.SCORE_FUSION '{node.SCORE_FUSION}'; "
            "allowed: the weights of a trained Double-Head-Ext, from which the others are taken"
        )
    cfg = cfg.clone()
    cfg.merge_from_list([*_NOT_SPARED, *TRAINED_VARIANTS[name]])
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    node.SCORE_FLOOR = min(node.SCORE_FLOOR, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
    model = _build(cfg, VARIANTS[name].plain)
    checkpointer = DoubleHeadCheckpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    missing = [k for k in checkpointer.missing_keys if not k.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"'{cfg.MODEL.WEIGHTS}' lacks {len(missing)} tensors of the model, {missing[0]} first; "
            "allowed: the weights of a trained Double-Head-Ext"
        )
    return model


def _build(cfg: CfgNode, plain: bool | None) -> GeneralizedRCNN:
    model = build_model(cfg).eval()
    for module in model.modules() if plain is not None else ():
        if hasattr(module, "cpu_chunk") and plain:
            module.cpu_chunk = 1 << 30
        elif isinstance(module, ParallelROIAlign) and plain:
            module.parallel = False
        elif isinstance(module, ROIPooler) and not plain:
            pool_in_parallel(module)
    return model


def random_inputs(setting: Setting, num_objects: int = 0, num_classes: int = 80) -> list[dict]:
    """Images of noise, in detectron2's input format.

    Args:
        setting: size and number of the images.
        num_objects: annotated boxes an image, for training.
        num_classes: of the objects.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = setting.image_size
    inputs = []
    for _ in range(setting.batch_size):
        pixels = torch.randint(0, 256, (3, height, width), generator=generator).float()
        sample: dict[str, Any] = {"image": pixels, "height": height, "width": width}
        if num_objects:
            corners = torch.rand(num_objects, 2, 2, generator=generator)
            corners = corners.sort(dim=1)[0] * torch.tensor([width - 32.0, height - 32.0])
            boxes = torch.cat([corners[:, 0], corners[:, 1] + 32], dim=1)
            classes = torch.randint(0, num_classes, (num_objects,), generator=generator)
            objects = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=classes)
            sample["instances"] = objects
        inputs.append(sample)
    return inputs


@torch.no_grad()
def prepare(model: GeneralizedRCNN, inputs: list[dict], setting: Setting) -> None:
    """Set the number of proposals and the share of survivors, in place.

    Raises:
        ValueError: the RPN has not as many proposals; says how many.
    """
    rpn, heads = model.proposal_generator, model.roi_heads
    # detectron2's numbers of anchors before NMS, of each map of an FPN and of a single map
    single_map = len(rpn.in_features) == 1
    rpn.pre_nms_topk[False] = max(6000 if single_map else 1000, setting.num_proposals)
    if single_map:  # whose boxes overlap one another, as long as nothing is learned
        rpn.nms_thresh = 0.99
    rpn.post_nms_topk[False] = setting.num_proposals
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    proposals, _ = rpn(images, features)
    found = min(len(x) for x in proposals)
    if found < setting.num_proposals:
        raise ValueError(
            f"{setting.num_proposals} proposals are asked for; allowed: up to the {found} that the "
            f"random RPN gives for images of {setting.image_size}"
        )
    boxes = [x.proposal_boxes for x in proposals]
    scores = ask(heads).cls_logits(features, boxes)
    # Logits that differ from RoI to RoI as a trained model's; initial ones are all alike.
    factor = 3 / scores.std()
    heads.box_predictor.cls_score.weight *= factor
    scores = scores * factor
    best = scores.softmax(dim=1)[:, :-1].amax(dim=1)
    threshold = best.quantile(1 - setting.survivors).item()
    heads.box_predictor.test_score_thresh = threshold
    if getattr(heads, "score_floor", 0) > 0:
        heads.score_floor = threshold  # the highest that is allowed
