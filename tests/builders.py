"""Small models and inputs that several test files build."""

from functools import cache

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import GeneralizedRCNN, build_model, build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances

from doublehead_d2 import add_doublehead_config, model_zoo
from doublehead_d2.modeling import DoubleHeadROIHeads

IMAGE_SIZE = (64, 64)
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
EXT = [
    "MODEL.ROI_DOUBLE_HEAD.CLS_HEAD.LAMBDA",
    0.7,
    "MODEL.ROI_DOUBLE_HEAD.REG_HEAD.LAMBDA",
    0.8,
    "MODEL.ROI_DOUBLE_HEAD.SCORE_FUSION",
    "complementary",
]


def default_cfg(*opts: object) -> CfgNode:
    """detectron2's defaults with our keys, changed by `opts`."""
    cfg = get_cfg()
    add_doublehead_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def narrow(cfg: CfgNode, *, backbone: int, heads: int) -> None:
    """Divide the widths of a ResNet-FPN's layers, and those of its FPN and heads, in place."""
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64 // backbone
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256 // backbone
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64 // backbone
    cfg.MODEL.FPN.OUT_CHANNELS = 256 // heads
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1024 // heads
    node = cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD
    node.DIM, node.BOTTLENECK_DIM, node.NONLOCAL_DIM = 1024 // heads, 256 // heads, 512 // heads


def model_of(cfg: CfgNode) -> str:
    """What configs of one model have in common: all but weights, data, schedule and names."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    return "".join(node.dump() for node in (cfg.MODEL, cfg.INPUT, cfg.TEST))


@cache
def read_once(name: str) -> CfgNode:
    """A config of the zoo, to be cloned: reading YAML takes longer than building a small model."""
    return model_zoo.get_config(name)


def small_cfg(*opts: object) -> CfgNode:
    """The Base config with heads of the reference arrays' size and 5 classes."""
    cfg = read_once("COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml").clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    narrow(cfg, backbone=16, heads=32)
    cfg.merge_from_list(list(opts))
    return cfg


def small_heads(*opts: object, channels: int = 8, seed: int = 0) -> DoubleHeadROIHeads:
    """RoI heads of `small_cfg`, built after seeding torch."""
    torch.manual_seed(seed)
    shapes = {name: ShapeSpec(channels=channels, stride=s) for name, s in STRIDES.items()}
    return build_roi_heads(small_cfg(*opts), shapes)


def grcn_cfg(name: str, *opts: object) -> CfgNode:
    """A config at a sixteenth of the width of ResNet, or with narrow fc layers, and 5 classes."""
    cfg = read_once(name).clone()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "cpu", "", 5
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    conv_head = cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD
    conv_head.DIM, conv_head.BOTTLENECK_DIM, conv_head.NONLOCAL_DIM = 16, 8, 8
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 200
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]  # random frozen norms let activations grow
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.merge_from_list(list(opts))
    return cfg


def grcn_model(name: str, *opts: object, seed: int = 0) -> GeneralizedRCNN:
    """The model of `grcn_cfg`, built after seeding torch, in evaluation."""
    torch.manual_seed(seed)
    model = build_model(grcn_cfg(name, *opts)).eval()
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):  # not the identity, as trained ones
            norm.weight.uniform_(0.5, 1.0)
            norm.bias.normal_(std=0.1)
    return model


def random_features(num_images: int = 2, channels: int = 8, seed: int = 0) -> dict:
    """FPN maps of 64 x 64 images."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(num_images, channels, 64 // s, 64 // s, generator=generator)
        for name, s in STRIDES.items()
    }


def random_boxes(count: int, seed: int = 0) -> Boxes:
    """Boxes of 4 to 40 pixels with their upper left corner in the image."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    size = 4 + torch.rand(count, 2, generator=generator) * 36
    return Boxes(torch.cat([corner, corner + size], dim=1))


def sampled_proposals(counts: tuple = (6, 4), num_foreground: int = 2, classes: int = 5) -> list:
    """Proposals as after sampling: the first of each image foreground, the others background."""
    proposals = []
    for i, count in enumerate(counts):
        boxes = random_boxes(count, seed=i)
        gt_classes = torch.full((count,), classes, dtype=torch.int64)
        foreground = min(num_foreground, count)
        gt_classes[:foreground] = torch.arange(foreground) % classes
        proposals.append(
            Instances(
                IMAGE_SIZE,
                proposal_boxes=boxes,
                objectness_logits=torch.zeros(count),
                gt_classes=gt_classes,
                gt_boxes=Boxes(boxes.tensor + torch.tensor([1.0, -1.0, 2.0, 0.5])),
            )
        )
    return proposals


def image_list(num_images: int = 2) -> ImageList:
    """Images of `IMAGE_SIZE`; RoI heads look at nothing but their number."""
    return ImageList(torch.zeros(num_images, 3, *IMAGE_SIZE), [IMAGE_SIZE] * num_images)
