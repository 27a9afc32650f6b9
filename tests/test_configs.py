"""Every config of the zoo builds, and runs a training step and inference on random data."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from doublehead_d2 import DoubleHeadROIHeads, model_zoo

CONFIGS = model_zoo.list_configs()


def build(name: str, *opts: object) -> nn.Module:
    """The model of a config on the CPU; the big ones at an eighth of their width."""
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(list(opts))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    if cfg.MODEL.FPN.OUT_CHANNELS == 256:
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
        cfg.MODEL.FPN.OUT_CHANNELS = 32
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 128
        node = cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD
        node.DIM, node.BOTTLENECK_DIM, node.NONLOCAL_DIM = 128, 32, 64
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    torch.manual_seed(0)
    return build_model(cfg)


def random_image(with_objects: bool = True) -> dict:
    boxes = torch.tensor([[10.0, 10, 60, 70], [30, 40, 100, 90]]) if with_objects else []
    instances = Instances((128, 160))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor([0, 1] if with_objects else [], dtype=torch.int64)
    image = torch.randint(0, 256, (3, 128, 160)).float()
    return {"image": image, "instances": instances, "height": 256, "width": 320}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_trains_a_step_and_detects(name: str) -> None:
    model = build(name).train()
    with EventStorage():
        losses = model([random_image(), random_image(with_objects=False)])
    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{parameter_name} has no gradient"
            assert parameter.grad.isfinite().all(), parameter_name
    with torch.no_grad():
        detections = model.eval()([random_image()])[0]["instances"]
    assert detections.image_size == (256, 320)


@pytest.mark.parametrize("train_on_pred_boxes", [False, True])
def test_mask_and_keypoint_heads_train_beside_the_double_head(train_on_pred_boxes: bool) -> None:
    model = build(
        "Shapes-Detection/double_head_ext_rcnn_tiny.yaml",
        *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]),
        *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2),
        *("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", train_on_pred_boxes),
    ).train()
    image = random_image()
    boxes = image["instances"].gt_boxes.tensor
    outlines = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy().astype("float64")] for box in boxes]
    image["instances"].gt_masks = PolygonMasks(outlines)
    points = torch.cat([boxes.reshape(2, 2, 2), torch.full((2, 2, 1), 2.0)], dim=2)
    image["instances"].gt_keypoints = Keypoints(points)
    with EventStorage():
        losses = model([image])
    assert {"loss_mask", "loss_keypoint"} < set(losses)
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def expected_losses(name: str) -> set[str]:
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    if "ext" in name:
        losses |= {"loss_cls_unfocused", "loss_box_reg_unfocused"}
    return losses


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_what_its_name_says(name: str) -> None:
    model = build(name)
    assert isinstance(model.roi_heads, DoubleHeadROIHeads) == ("double_head" in name)
    with EventStorage():
        assert set(model([random_image()])) == expected_losses(name)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith(("COCO", "Pascal"))])
def test_full_size_is_the_papers(name: str) -> None:
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        heads = build_model(cfg).roi_heads
    fc_weights = sum(m.weight.numel() for m in heads.box_head.modules() if isinstance(m, nn.Linear))
    assert fc_weights / 2**20 == pytest.approx(13.25, abs=0.006)
    convs = [m for m in heads.reg_head.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in convs) / 2**20 == pytest.approx(7.19, abs=0.006)
    assert heads.box_predictor.smooth_l1_beta == heads.reg_predictor.smooth_l1_beta == 1.0


def test_ext_at_lambda_1_is_plain_double_head() -> None:
    ext = model_zoo.get_config("COCO-Detection/double_head_ext_rcnn_R_50_FPN_1x.yaml")
    plain = model_zoo.get_config("COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml")
    assert ext != plain
    node = ext.MODEL.ROI_DOUBLE_HEAD
    node.CLS_HEAD.LAMBDA, node.REG_HEAD.LAMBDA, node.SCORE_FUSION = 1.0, 1.0, "cls_head"
    assert ext == plain
