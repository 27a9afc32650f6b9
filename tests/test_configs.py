"""Every config of the zoo builds, and runs a training step and inference on random data."""

from importlib.util import find_spec

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from builders import model_of, narrow
from doublehead_d2 import model_zoo
from doublehead_d2.config import check_doublehead_config
from doublehead_d2.inference import Predictor

CONFIGS = model_zoo.list_configs()
DEFORMABLE = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]]


def build(name: str, *opts: object) -> nn.Module:
    """The model of a config on the CPU; the big ones at an eighth of their width."""
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(list(opts))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.TEST.DETECTIONS_PER_IMAGE = 5  # detectron2's keypoint decoding is slow
    if cfg.MODEL.FPN.OUT_CHANNELS == 256:
        # The 32 groups of GroupNorm divide no stem of 8 channels.
        narrow(cfg, backbone=2 if cfg.MODEL.RESNETS.NORM == "GN" else 8, heads=8)
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
        # With random weights and frozen BN activations grow until keypoint heatmaps overflow.
        cfg.MODEL.PIXEL_STD = [100.0, 100.0, 100.0]
    torch.manual_seed(0)
    return build_model(cfg)


def random_image(with_objects: bool = True) -> dict:
    """An image with two objects of class 0, which have masks and keypoints."""
    boxes = torch.tensor([[10.0, 10, 60, 70], [30, 40, 100, 90]])
    boxes = boxes[: 2 if with_objects else 0]
    instances = Instances((128, 160))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    outlines = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy().astype("float64")] for box in boxes]
    instances.gt_masks = PolygonMasks(outlines)
    points = boxes[:, None, :2] + torch.arange(17.0)[None, :, None]  # N x 17 x (x, y)
    visible = torch.full((len(boxes), 17, 1), 2.0)
    instances.gt_keypoints = Keypoints(torch.cat([points, visible], dim=2))
    image = torch.randint(0, 256, (3, 128, 160)).float()
    return {"image": image, "instances": instances, "height": 256, "width": 320}


def expected_losses(name: str, cfg: CfgNode) -> set[str]:
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    if "_ext_" in name:
        losses |= {"loss_cls_unfocused", "loss_box_reg_unfocused"}
    if cfg.MODEL.ROI_HEADS.NAME == "TSDROIHeads":
        node = cfg.MODEL.ROI_TSD
        if "no_sibling" not in name:
            losses |= {"loss_cls_sibling", "loss_box_reg_sibling"}
        losses |= {"loss_pc_cls"} if node.PC.CLS_WEIGHT else set()
        losses |= {"loss_pc_loc"} if node.PC.LOC_WEIGHT else set()
    if "mask_rcnn" in name:
        losses.add("loss_mask")
    if "keypoint_rcnn" in name:
        losses.add("loss_keypoint")
    return losses


LOSSES: dict[str, set[str]] = {}  # by model: configs of several schedules share one


def is_fast(name: str) -> bool:
    """Configs that between them have every system and every head."""
    return not (name.startswith(("Ablations/", "COCO-Keypoints/", "PascalVOC")) or "VGG" in name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if is_fast(name) else pytest.mark.slow)
        for name in CONFIGS
        if "dconv" not in name
    ],
)
def test_config_trains_a_step_and_detects(name: str) -> None:
    cfg = model_zoo.get_config(name)
    key = model_of(cfg)
    if key not in LOSSES:
        model = build(name)
        assert type(model.roi_heads).__name__ == cfg.MODEL.ROI_HEADS.NAME
        LOSSES[key] = losses_of_a_step(model)
    assert LOSSES[key] == expected_losses(name, cfg)


def losses_of_a_step(model: nn.Module) -> set[str]:
    """Names of the losses; every parameter must have a gradient, and the model detect."""
    model.train()
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
    return set(losses)


def test_deformable_convolution_is_refused_where_it_cannot_run() -> None:
    name = "COCO-Detection/double_head_ext_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml"
    message = (
        r"DEFORM_ON_PER_STAGE is \[False, True, True, True\].*a GPU, and MODEL.DEVICE is 'cpu'"
    )
    with pytest.raises(ValueError, match=message):
        model_zoo.get(name, device="cpu")
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(ValueError, match=message):
        Predictor(cfg)


@pytest.mark.skipif(find_spec("detectron2._C") is not None, reason="has compiled operators")
def test_deformable_convolution_needs_compiled_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cfg = model_zoo.get_config("COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cuda", *DEFORMABLE])
    with pytest.raises(ValueError, match="needs detectron2's compiled operators") as error:
        check_doublehead_config(cfg)
    assert "GPU" not in str(error.value)


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
    image["instances"].gt_keypoints.tensor = image["instances"].gt_keypoints.tensor[:, :2]
    with EventStorage():
        losses = model([image])
    assert {"loss_mask", "loss_keypoint"} < set(losses)
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in CONFIGS
        if n.startswith(("COCO-Detection/double_head_rcnn", "COCO-Detection/double_head_ext"))
        and "dconv" not in n
        and "1x" in n
    ],
)
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


def solver(name: str) -> dict:
    cfg = model_zoo.get_config(name)
    keys = ("IMS_PER_BATCH", "REFERENCE_IMS_PER_BATCH", "BASE_LR", "STEPS", "MAX_ITER")
    return {key: cfg.SOLVER[key] for key in keys}


@pytest.mark.parametrize(
    ("schedule", "images", "lr", "steps", "iterations"),
    [
        ("1x", 16, 0.02, (60000, 80000), 90000),
        ("3x", 16, 0.02, (210000, 250000), 270000),
        ("paper_1x", 8, 0.01, (120000, 160000), 180000),
        ("paper_2x", 8, 0.01, (240000, 320000), 360000),
    ],
)
@pytest.mark.parametrize("model", ["double_head", "double_head_ext"])
@pytest.mark.parametrize("depth", [50, 101])
def test_schedules(
    model: str, depth: int, schedule: str, images: int, lr: float, steps: tuple, iterations: int
) -> None:
    name = f"COCO-Detection/{model}_rcnn_R_{depth}_FPN_{schedule}.yaml"
    expected = (images, images, lr, steps, iterations)
    assert tuple(solver(name).values()) == expected
    cfg = model_zoo.get_config(name)
    assert depth == cfg.MODEL.RESNETS.DEPTH and f"R-{depth}.pkl" in cfg.MODEL.WEIGHTS
    sizes = (800,) if "paper" in schedule else (640, 672, 704, 736, 768, 800)
    assert sizes == cfg.INPUT.MIN_SIZE_TRAIN


def test_the_papers_recipe_on_voc() -> None:
    """Table 4; Section 5.1 gives one schedule for all models."""
    for model in ("faster", "double_head_ext"):
        name = f"{model}_rcnn_R_50_FPN_paper_1x.yaml"
        voc, coco = (f"{folder}-Detection/{name}" for folder in ("PascalVOC", "COCO"))
        assert solver(voc) == solver(coco)
        cfg = model_zoo.get_config(voc)
        assert cfg.SOLVER.WARMUP_ITERS == 1000 and cfg.INPUT.MIN_SIZE_TRAIN == (800,)
        assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (
            ("voc_2007_trainval",),
            ("voc_2007_test",),
        )


# Table 1: heads for classification and regression, their RoI scales and weights; the last four
# rows with ω = 2.0 (fc) and 2.5 (conv).
FC, CONV = ("FastRCNNConvFCHead", 1.0), ("DoubleHeadConvHead", 1.3)
TABLE_1 = {
    "double_fc": (FC, FC),
    "double_conv": (CONV, CONV),
    "double_head_reverse": (CONV, FC),
    "double_head": (FC, CONV),
}


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("row", TABLE_1)
def test_rows_of_table_1(row: str, tuned: bool) -> None:
    cfg = model_zoo.get_config(f"Ablations/{row}_{'tuned' if tuned else 'w1'}.yaml")
    node = cfg.MODEL.ROI_DOUBLE_HEAD
    found = (
        (cfg.MODEL.ROI_BOX_HEAD.NAME, node.CLS_HEAD.ROI_SCALE),
        (node.REG_HEAD.NAME, node.REG_HEAD.ROI_SCALE),
    )
    assert found == TABLE_1[row]
    weights = {FC: 2.0, CONV: 2.5} if tuned else {FC: 1.0, CONV: 1.0}
    assert tuple(map(weights.get, found)) == (node.CLS_HEAD.LOSS_WEIGHT, node.REG_HEAD.LOSS_WEIGHT)
    assert (node.CLS_HEAD.LAMBDA, node.REG_HEAD.LAMBDA) == (1.0, 1.0)
    assert list(node.CONV_HEAD.BLOCKS) == ["residual"] + ["bottleneck"] * 4  # K = 5
    assert cfg.SOLVER.MAX_ITER == 180000 and cfg.SOLVER.IMS_PER_BATCH == 8


def test_baselines_differ_from_the_papers_model_in_the_heads_alone() -> None:
    for depth in (50, 101):
        baseline = model_zoo.get_config(f"COCO-Detection/faster_rcnn_R_{depth}_FPN_paper_1x.yaml")
        ours = model_zoo.get_config(f"COCO-Detection/double_head_rcnn_R_{depth}_FPN_paper_1x.yaml")
        assert baseline != ours
        ours.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        assert baseline == ours


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_recipe_of_the_authors_of_tsd(depth: int) -> None:
    """32 images, lr 0.00125 each, 14 epochs of 3,665 iterations, a tenth of it at 9 and 12."""
    name = f"COCO-Detection/tsd_rcnn_R_{depth}_FPN_paper.yaml"
    expected = (32, 32, 0.04, (9 * 3665, 12 * 3665), 14 * 3665)
    assert tuple(solver(name).values()) == expected
    cfg = model_zoo.get_config(name)
    assert depth == cfg.MODEL.RESNETS.DEPTH and cfg.INPUT.MIN_SIZE_TRAIN == (800,)
    assert (cfg.MODEL.ROI_TSD.PC.CLS_MARGIN, cfg.MODEL.ROI_TSD.PC.LOC_MARGIN) == (0.3, 0.3)


# Sibling head, M_cls, M_loc
TSD_ROWS = {
    "no_sibling": (0, 0, 0),
    "no_pc": (1, 0, 0),
    "pc_cls": (1, 1, 0),
    "pc_loc": (1, 0, 1),
    "pc": (1, 1, 1),
}


@pytest.mark.parametrize("row", TSD_ROWS)
def test_rows_of_tsds_ablation(row: str) -> None:
    cfg = model_zoo.get_config(f"Ablations/tsd_{row}.yaml")
    node = cfg.MODEL.ROI_TSD
    found = (node.SIBLING_LOSS_WEIGHT, node.PC.CLS_WEIGHT, node.PC.LOC_WEIGHT)
    assert found == TSD_ROWS[row]
    assert (node.PC.CLS_MARGIN, node.PC.LOC_MARGIN) == (0.2, 0.2)
    assert cfg.SOLVER.MAX_ITER == 180000 and cfg.SOLVER.IMS_PER_BATCH == 8


# Strides and contexts of the branches for classes and for boxes, and the dilation
GRCN_ROWS = {
    "separate": (16, "none", 16, "none", 2),
    "separate_stride": (32, "none", 16, "none", 2),
    "separate_context": (16, "concat", 16, "none", 2),
    "swapped_strides": (16, "none", 32, "none", 2),
    "context_add": (32, "add", 16, "none", 2),
    "context_reg": (32, "concat", 16, "concat", 2),
    "undilated": (32, "concat", 16, "none", 1),
}


@pytest.mark.parametrize("row", GRCN_ROWS)
def test_rows_of_grcns_ablation(row: str) -> None:
    cfg = model_zoo.get_config(f"Ablations/grcn_{row}.yaml")
    node, ours = cfg.MODEL.ROI_GRCN, GRCN_ROWS[row]
    found = (node.CLS_HEAD.STRIDE, node.CLS_HEAD.CONTEXT)
    assert (*found, node.REG_HEAD.STRIDE, node.REG_HEAD.CONTEXT, node.DILATION) == ours
    # Nothing else differs from G-RCN itself.
    grcn = model_zoo.get_config("COCO-Detection/grcn_R_50_C5_1x.yaml")
    cfg.MODEL.ROI_GRCN = grcn.MODEL.ROI_GRCN
    assert cfg == grcn


WITHOUT_FPN = [
    *(
        f"{model}_{backbone}"
        for backbone in ("R_50_C5", "R_101_C5", "VGG_16")
        for model in ("grcn", "faster_rcnn")
    ),
    *("faster_rcnn_R_50_C4", "faster_rcnn_R_101_C4"),
]


@pytest.mark.parametrize("name", WITHOUT_FPN)
def test_models_without_fpn_on_both_data_sets(name: str) -> None:
    coco, voc = f"COCO-Detection/{name}_1x.yaml", f"PascalVOC-Detection/{name}_0712.yaml"
    assert tuple(solver(coco).values()) == (16, 16, 0.02, (60000, 80000), 90000)
    assert tuple(solver(voc).values()) == (16, 16, 0.02, (12000, 16000), 18000)
    on_coco, on_voc = model_zoo.get_config(coco), model_zoo.get_config(voc)
    assert (on_coco.MODEL.ROI_HEADS.NUM_CLASSES, on_voc.MODEL.ROI_HEADS.NUM_CLASSES) == (80, 20)
    assert on_voc.DATASETS.TRAIN == ("voc_2007_trainval", "voc_2012_trainval")
    assert on_voc.DATASETS.TEST == ("voc_2007_test",) and on_voc.SOLVER.WARMUP_ITERS == 100
    on_voc.MODEL.ROI_HEADS.NUM_CLASSES = 80
    assert on_coco.MODEL == on_voc.MODEL
    depth = 101 if "101" in name else 50
    assert depth == on_coco.MODEL.RESNETS.DEPTH
    weights = "vgg16-397923af.pth" if "VGG" in name else f"MSRA/R-{depth}.pkl"
    assert on_coco.MODEL.WEIGHTS.endswith(weights)


@pytest.mark.parametrize(
    ("backbone", "section"), [("R_50_C5", "RESNETS"), ("R_101_C5", "RESNETS"), ("VGG_16", "VGG")]
)
def test_baselines_of_grcn_have_one_conv5(backbone: str, section: str) -> None:
    baseline = model_zoo.get_config(f"COCO-Detection/faster_rcnn_{backbone}_1x.yaml")
    grcn = model_zoo.get_config(f"COCO-Detection/grcn_{backbone}_1x.yaml")
    *kept, copy = grcn.MODEL[section].OUT_FEATURES
    assert copy.endswith("_reg") and list(baseline.MODEL[section].OUT_FEATURES) == kept
    assert (baseline.MODEL.ROI_GRCN.CLS_HEAD.STRIDE, baseline.MODEL.ROI_HEADS.NAME) == (
        16,
        "StandardROIHeads",
    )
    for node in ("ROI_HEADS", "ROI_GRCN", section):
        baseline.MODEL[node] = grcn.MODEL[node]
    assert baseline == grcn


def test_tiny_models_without_fpn_start_from_one_resnet() -> None:
    start = model_zoo.get_config("Shapes-Detection/faster_rcnn_dc5_tiny.yaml")
    assert start.MODEL.WEIGHTS == ""
    for name in ("grcn", "faster_rcnn_c5", "faster_rcnn_c4"):
        cfg = model_zoo.get_config(f"Shapes-Detection/{name}_tiny.yaml")
        assert f"{start.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
        assert cfg.MODEL.RESNETS.DEPTH == 50 and 4 * cfg.MODEL.RESNETS.WIDTH_PER_GROUP <= 64
        # The fc-head's predictor must not be taken for that of the mean.
        assert 8 * cfg.MODEL.RESNETS.RES2_OUT_CHANNELS != start.MODEL.ROI_BOX_HEAD.FC_DIM
        outputs = cfg.MODEL.RESNETS.OUT_FEATURES
        cfg.MODEL.RESNETS.OUT_FEATURES = start.MODEL.RESNETS.OUT_FEATURES
        assert start.MODEL.RESNETS == cfg.MODEL.RESNETS and outputs[0] == "res4"
        assert (start.INPUT, start.MODEL.RPN) == (cfg.INPUT, cfg.MODEL.RPN)
