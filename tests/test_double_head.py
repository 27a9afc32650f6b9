"""The two heads together: what they pool, learn and detect."""

import copy

import pytest
import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import giou_loss

from builders import (
    EXT,
    IMAGE_SIZE,
    STRIDES,
    image_list,
    random_boxes,
    random_features,
    sampled_proposals,
    small_heads,
)
from doublehead_d2.modeling import DoubleHeadROIHeads
from doublehead_d2.modeling.roi_boxes import EnlargedBoxes

NODE = "MODEL.ROI_DOUBLE_HEAD"
LEGACY = [f"{NODE}.LEGACY_BOXES", True, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"]
VARIANTS = {
    "plain": [],
    "ext": EXT,
    "cls lambda 0": [f"{NODE}.CLS_HEAD.LAMBDA", 0.0, f"{NODE}.REG_HEAD.LAMBDA", 0.5]
    + [f"{NODE}.SCORE_FUSION", "reg_head"],
    "reg lambda 0": [f"{NODE}.CLS_HEAD.LAMBDA", 0.5, f"{NODE}.REG_HEAD.LAMBDA", 0.0]
    + [f"{NODE}.BOX_SOURCE", "cls_head"],
    "reverse": [f"{NODE}.REG_HEAD.NAME", "FastRCNNConvFCHead"]
    + ["MODEL.ROI_BOX_HEAD.NAME", "DoubleHeadConvHead"],
    "legacy": [*EXT, *LEGACY],
    "agnostic": [*EXT, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
}


def training_losses(heads: DoubleHeadROIHeads, proposals: list, seed: int = 0) -> dict:
    with EventStorage():
        return heads.train()._forward_box(random_features(len(proposals), seed=seed), proposals)


# ------------------------------------------------------------------------------------- pooling


def test_enlarged_boxes_by_hand() -> None:
    # A 10 x 20 box about (15, 30), 1.3 times as large: 13 x 26. It leaves the image unclipped.
    boxes = EnlargedBoxes(Boxes(torch.tensor([[10.0, 20, 20, 40], [0, 0, 10, 10]])), 1.3)
    expected = torch.tensor([[8.5, 17, 21.5, 43], [-1.5, -1.5, 11.5, 11.5]])
    torch.testing.assert_close(boxes.tensor, expected)
    torch.testing.assert_close(boxes.area(), torch.tensor([200.0, 100.0]))
    assert EnlargedBoxes(Boxes(torch.zeros(0, 4)), 1.3).tensor.shape == (0, 4)


def test_legacy_boxes_name_the_last_pixel() -> None:
    # As above, less (0, 0, 1, 1); the area stays that of the given box.
    boxes = EnlargedBoxes(Boxes(torch.tensor([[10.0, 20, 20, 40]])), 1.3, legacy=True)
    torch.testing.assert_close(boxes.tensor, torch.tensor([[8.5, 17, 20.5, 42]]))
    assert boxes.area().tolist() == [200.0]
    assert EnlargedBoxes(Boxes(torch.zeros(0, 4)), 1.0, legacy=True).tensor.shape == (0, 4)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_legacy_boxes_are_pooled_at_their_pixels(scale: float) -> None:
    # Features are their own column, so the mean over a RoI is its centre in cells. For the box
    # from 20 to 48 the last pixel is 47: (20 + 47) / 2 / 4 cells, half a cell and half a pixel
    # other than RoIAlignV2's (20 + 48) / 2 / 4 - 1/2.
    columns = torch.arange(32.0).expand(1, 8, 32, 32)
    maps = [columns[..., :size, :size] for size in (32, 16, 8, 4)]
    boxes = [Boxes(torch.tensor([[20.0, 20, 48, 48]]))]
    for heads, center in ((small_heads(*LEGACY), 33.5 / 4), (small_heads(), 34 / 4 - 0.5)):
        assert heads._pool(maps, boxes, scale).mean().item() == pytest.approx(center, abs=1e-5)


@pytest.mark.parametrize("side", [100, 112, 150, 190, 223.9, 224, 300, 448])
def test_level_is_that_of_the_original_box(side: float) -> None:
    box = Boxes(torch.tensor([[50.0, 50, 50 + side, 50 + side]]))
    levels = [assign_boxes_to_levels([b], 2, 5, 224, 4) for b in (box, EnlargedBoxes(box, 1.3))]
    torch.testing.assert_close(*levels)


def test_pools_the_enlarged_box_on_the_level_of_the_original() -> None:
    # Each level is filled with its own stride, so that pooled values tell the level.
    heads = small_heads()
    features = {name: torch.full((1, 8, 512 // s, 512 // s), s) for name, s in STRIDES.items()}
    boxes = [Boxes(torch.tensor([[100.0, 100, 290, 290], [100, 100, 330, 330]]))]
    maps = [features[f].float() for f in heads.box_in_features]
    for scale in (1.0, 1.3):
        pooled = heads._pool(maps, boxes, scale)
        assert pooled[0].unique().tolist() == [8.0]  # 190 pixels, below 224; 190 x 1.3 = 247
        assert pooled[1].unique().tolist() == [16.0]


def test_pooled_values_are_those_of_the_enlarged_box() -> None:
    heads = small_heads()
    maps = list(random_features(1).values())
    box = torch.tensor([[20.0, 20, 40, 40]])
    enlarged = torch.tensor([[17.0, 17, 43, 43]])  # the same FPN level by its own size
    pooled = heads._pool(maps, [Boxes(box)], 1.3)
    torch.testing.assert_close(pooled, heads._pool(maps, [Boxes(enlarged)], 1.0))
    assert not torch.allclose(pooled, heads._pool(maps, [Boxes(box)], 1.0))


def test_each_head_pools_at_its_own_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, seen = small_heads(), []
    pool = heads._pool
    monkeypatch.setattr(heads, "_pool", lambda m, b, s: seen.append(s) or pool(m, b, s))
    monkeypatch.setattr(
        heads.box_head, "forward", lambda x: seen.append("cls") or x.flatten(1)[:, :32]
    )
    monkeypatch.setattr(
        heads.reg_head, "forward", lambda x: seen.append("reg") or x.flatten(1)[:, :32]
    )
    heads.predict(random_features(1), [random_boxes(3)])
    assert seen == [1.0, "cls", 1.3, "reg"]


@pytest.mark.parametrize("variant", ["plain", "reverse", "legacy"])
def test_pooled_boxes_are_what_the_heads_are_shown(variant: str) -> None:
    heads = small_heads(*VARIANTS[variant]).eval()
    features, boxes = random_features(2), [random_boxes(3), random_boxes(2, seed=1)]
    pooled = heads.pool_boxes(features, boxes, [])
    said = heads.predict(features, boxes)
    assert list(pooled) == ["box_head", "reg_head"]
    scores, _ = heads.box_predictor(heads.box_head(pooled["box_head"]))
    torch.testing.assert_close(scores, said.cls_head.scores, rtol=0, atol=0)
    _, deltas = heads.reg_predictor(heads.reg_head(pooled["reg_head"]))
    torch.testing.assert_close(deltas, said.reg_head.deltas, rtol=0, atol=0)


def test_pooling_is_done_once_where_the_scales_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, seen = small_heads(f"{NODE}.REG_HEAD.ROI_SCALE", 1.0), []
    pool = heads._pool
    monkeypatch.setattr(heads, "_pool", lambda m, b, s: seen.append(s) or pool(m, b, s))
    heads.predict(random_features(1), [random_boxes(3)])
    assert seen == [1.0]


def test_features_in_half_precision_are_pooled_in_single() -> None:
    heads = small_heads().eval()
    features = {k: v.bfloat16() for k, v in random_features(1).items()}
    in_single = {k: v.float() for k, v in features.items()}
    torch.testing.assert_close(
        heads.predict(features, [random_boxes(5)]), heads.predict(in_single, [random_boxes(5)])
    )


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("plain", {"loss_cls", "loss_box_reg"}),
        ("ext", {"loss_cls", "loss_box_reg", "loss_cls_unfocused", "loss_box_reg_unfocused"}),
        ("cls lambda 0", {"loss_box_reg", "loss_cls_unfocused", "loss_box_reg_unfocused"}),
        ("reg lambda 0", {"loss_cls", "loss_cls_unfocused", "loss_box_reg_unfocused"}),
    ],
)
def test_loss_names(variant: str, names: set) -> None:
    assert set(training_losses(small_heads(*VARIANTS[variant]), sampled_proposals())) == names


def test_losses_of_uniform_predictions_by_hand() -> None:
    # Zero weights: each class has probability 1/6, so each cross entropy is ln 6; all deltas are 0.
    # Two RoIs, one foreground, its box shifted by (2, 0) pixels at a size of 20 x 20: target
    # dx = 10 · 2 / 20 = 1, Smooth-L1 with β = 1 gives 0.5 at |1|; divided by both RoIs 0.25.
    heads = small_heads(*EXT)
    for layers in (heads.box_predictor, heads.reg_predictor):
        for parameter in layers.parameters():
            torch.nn.init.zeros_(parameter)
    boxes = torch.tensor([[10.0, 10, 30, 30], [5, 5, 25, 25]])
    proposals = Instances(
        IMAGE_SIZE,
        proposal_boxes=Boxes(boxes),
        gt_boxes=Boxes(boxes + torch.tensor([2.0, 0, 2, 0])),
        gt_classes=torch.tensor([3, 5]),
    )
    ln6 = 1.791759469
    expected = {
        "loss_cls": 2.0 * 0.7 * ln6,
        "loss_box_reg": 2.5 * 0.8 * 0.25,
        "loss_cls_unfocused": 2.5 * 0.2 * ln6,
        "loss_box_reg_unfocused": 2.0 * 0.3 * 0.25,
    }
    losses = {name: loss.item() for name, loss in training_losses(heads, [proposals]).items()}
    assert losses == pytest.approx(expected, rel=1e-5)


def test_golden_losses() -> None:
    losses = training_losses(small_heads(*EXT), sampled_proposals())
    got = {name: round(loss.item(), 6) for name, loss in losses.items()}
    golden = {
        "loss_cls": 2.512436,
        "loss_box_reg": 0.895342,
        "loss_cls_unfocused": 0.915399,
        "loss_box_reg_unfocused": 0.269594,
    }
    assert got == pytest.approx(golden, abs=2e-5), f"new values: {got}"


def test_ext_focused_losses_over_lambda_are_those_of_plain() -> None:
    ext, plain = small_heads(*EXT), small_heads()
    plain.load_state_dict(ext.state_dict(), strict=False)
    ext_losses = training_losses(ext, sampled_proposals())
    plain_losses = training_losses(plain, sampled_proposals())
    torch.testing.assert_close(ext_losses["loss_cls"] / 0.7, plain_losses["loss_cls"])
    torch.testing.assert_close(ext_losses["loss_box_reg"] / 0.8, plain_losses["loss_box_reg"])


@pytest.mark.parametrize("part", ["mask", "keypoint"])
def test_all_heads_pool_in_single_precision(part: str) -> None:
    opts = [f"MODEL.{part.upper()}_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
    opts += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]]
    heads = small_heads(*EXT, *opts).eval()
    types = []
    pooler = getattr(heads, f"{part}_pooler")
    pooler.register_forward_pre_hook(lambda _, inputs: types.extend(x.dtype for x in inputs[0]))
    features = {k: v.bfloat16() for k, v in random_features(1).items()}
    detections = Instances(IMAGE_SIZE, pred_boxes=random_boxes(3))
    detections.pred_classes = torch.zeros(3, dtype=torch.int64)
    heads.forward_with_given_boxes(features, [detections])
    assert set(types) == {torch.float32}
    assert detections.has(f"pred_{part}s")


def test_reverse_is_double_head_with_its_heads_exchanged() -> None:
    half = [f"{NODE}.CLS_HEAD.LAMBDA", 0.5, f"{NODE}.REG_HEAD.LAMBDA", 0.5]
    types = [f"{NODE}.REG_HEAD.NAME", "FastRCNNConvFCHead"]
    types += ["MODEL.ROI_BOX_HEAD.NAME", "DoubleHeadConvHead"]
    scales = [f"{NODE}.CLS_HEAD.ROI_SCALE", 1.3, f"{NODE}.REG_HEAD.ROI_SCALE", 1.0]
    straight = small_heads(*half).eval()
    reverse = small_heads(*half, *types, *scales).eval()
    exchanged = {"box_head": "reg_head", "box_predictor": "reg_predictor"}
    exchanged |= {new: old for old, new in exchanged.items()}
    weights = {}
    for name, value in straight.state_dict().items():
        module, _, rest = name.partition(".")
        weights[f"{exchanged[module]}.{rest}"] = value
    reverse.load_state_dict(weights)
    features, boxes = random_features(1), [random_boxes(6)]
    predictions, reversed_predictions = (h.predict(features, boxes) for h in (straight, reverse))
    torch.testing.assert_close(predictions.cls_head, reversed_predictions.reg_head)
    torch.testing.assert_close(predictions.reg_head, reversed_predictions.cls_head)


LOSS_TYPES = {"smooth_l1": None, "giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_box_losses_of_all_types(loss_type: str, agnostic: bool) -> None:
    opts = ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", loss_type]
    opts += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic]
    heads, proposals = small_heads(*EXT, *opts).train(), sampled_proposals()
    predictions = heads.predict(random_features(2), [x.proposal_boxes for x in proposals])
    with EventStorage():
        losses = heads.losses(predictions, proposals)
    if LOSS_TYPES[loss_type]:
        # The same from decoded boxes: ω λ, summed over foreground, divided by all ten RoIs.
        for name, weight, layers, head in (
            ("loss_box_reg", 2.0, heads.reg_predictor, predictions.reg_head),
            ("loss_box_reg_unfocused", 0.6, heads.box_predictor, predictions.cls_head),
        ):
            boxes = layers.predict_boxes_for_gt_classes(head, proposals)
            pairs = [
                (b[x.gt_classes < 5], x.gt_boxes.tensor[x.gt_classes < 5])
                for b, x in zip(boxes, proposals, strict=True)
            ]
            predicted, wanted = (torch.cat(column) for column in zip(*pairs, strict=True))
            expected = LOSS_TYPES[loss_type](predicted, wanted, reduction="sum") * weight / 10
            torch.testing.assert_close(losses[name], expected)
    assert_finite_gradients(heads, losses)


def test_class_agnostic_boxes_are_shared_by_the_classes() -> None:
    opts = [
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        True,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        0.0,
    ]
    heads = small_heads(*EXT, *opts).eval()
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(6))]
    predictions = heads.predict(random_features(1), [proposals[0].proposal_boxes])
    assert predictions.reg_head.deltas.shape == predictions.cls_head.deltas.shape == (6, 4)
    detections, kept = heads.inference(predictions, proposals)
    boxes = Boxes(heads.reg_predictor.predict_boxes(predictions.reg_head, proposals)[0][kept[0]])
    boxes.clip(IMAGE_SIZE)
    assert len(detections[0].pred_classes.unique()) > 1
    torch.testing.assert_close(detections[0].pred_boxes.tensor, boxes.tensor)


def test_accuracies_of_the_heads_are_logged_apart() -> None:
    heads = small_heads(*EXT).train()
    with EventStorage() as storage:
        heads._forward_box(random_features(2), sampled_proposals())
        names = {n for n in storage.latest() if n.endswith("/cls_accuracy")}
    assert names == {"cls_head/fast_rcnn/cls_accuracy", "reg_head/fast_rcnn/cls_accuracy"}
    with EventStorage() as storage:
        small_heads().train()._forward_box(random_features(2), sampled_proposals())
        names = {n for n in storage.latest() if n.endswith("/cls_accuracy")}
    assert names == {"cls_head/fast_rcnn/cls_accuracy"}


def assert_finite_gradients(heads: DoubleHeadROIHeads, losses: dict) -> None:
    sum(losses.values()).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("counts", [(0, 0), (0, 4), (1,), (6, 4)])
def test_any_number_of_proposals_trains(variant: str, counts: tuple, norm: str) -> None:
    opts = [f"{NODE}.CONV_HEAD.NORM", norm, f"{NODE}.CONV_HEAD.BOTTLENECK_DIM", 32]
    heads = small_heads(*VARIANTS[variant], *opts, channels=32).train()
    proposals = sampled_proposals(counts)
    with EventStorage():
        losses = heads._forward_box(random_features(len(counts), channels=32), proposals)
    if not sum(counts):
        assert not any(losses.values()), losses
    assert_finite_gradients(heads, losses)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_foreground_has_no_box_loss(variant: str) -> None:
    heads = small_heads(*VARIANTS[variant])
    losses = training_losses(heads, sampled_proposals(num_foreground=0))
    for name, loss in losses.items():
        assert (loss == 0) == name.startswith("loss_box_reg"), name
    assert_finite_gradients(heads, losses)


@pytest.mark.parametrize("source", ["reg_head", "cls_head"])
def test_train_on_pred_boxes_uses_the_box_source(source: str) -> None:
    heads = small_heads(
        *EXT, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, f"{NODE}.BOX_SOURCE", source
    )
    proposals, frozen = sampled_proposals(), copy.deepcopy(heads).train()
    features = random_features(2)
    predictions = frozen.predict(features, [p.proposal_boxes for p in proposals])
    layers = {"reg_head": frozen.reg_predictor, "cls_head": frozen.box_predictor}[source]
    expected = layers.predict_boxes_for_gt_classes(getattr(predictions, source), proposals)
    training_losses(heads, proposals)
    for proposals_per_image, boxes in zip(proposals, expected, strict=True):
        torch.testing.assert_close(proposals_per_image.proposal_boxes.tensor, boxes)


# ------------------------------------------------------------------------------------- inference


def test_detections_have_fused_scores_and_boxes_of_the_source() -> None:
    heads = small_heads(*EXT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    for module in heads.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.1)
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(6))]
    predictions = heads.predict(random_features(1), [proposals[0].proposal_boxes])
    detections, kept = heads.inference(predictions, proposals)
    p_cls, p_reg = (head.scores.softmax(dim=1) for head in predictions[:2])
    fused = 1 - (1 - p_cls) * (1 - p_reg)
    classes = detections[0].pred_classes
    torch.testing.assert_close(detections[0].scores, fused[kept[0], classes])
    boxes = heads.reg_predictor.predict_boxes(predictions.reg_head, proposals)[0]
    boxes = Boxes(boxes.reshape(6, 5, 4)[kept[0], classes])
    boxes.clip(IMAGE_SIZE)
    torch.testing.assert_close(detections[0].pred_boxes.tensor, boxes.tensor)


@pytest.mark.parametrize("variant", VARIANTS)
def test_inference_without_proposals(variant: str) -> None:
    heads = small_heads(*VARIANTS[variant]).eval()
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(0)) for _ in range(2)]
    detections, _ = heads(image_list(2), random_features(2), proposals)
    assert [len(d) for d in detections] == [0, 0]


@pytest.mark.parametrize("variant", ["plain", "ext"])
def test_traced_heads_detect_the_same_on_other_input(variant: str) -> None:
    heads = small_heads(*VARIANTS[variant], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, maps: list[torch.Tensor], boxes: torch.Tensor) -> tuple:
            features = dict(zip(STRIDES, maps, strict=True))
            proposals = [Instances(IMAGE_SIZE, proposal_boxes=Boxes(boxes))]
            detections = self.heads._forward_box(features, proposals)[0]
            return detections.pred_boxes.tensor, detections.scores, detections.pred_classes

    def inputs(seed: int, count: int) -> tuple:
        return list(random_features(1, seed=seed).values()), random_boxes(count, seed).tensor

    with torch.no_grad(), patch_builtin_len():
        traced = torch.jit.trace(Detector(), inputs(0, 8), check_trace=False)
        torch.testing.assert_close(traced(*inputs(1, 5)), Detector()(*inputs(1, 5)))
    assert all(type(count) is int for count in heads.rois_shown.values())  # no tensor of the trace


@pytest.mark.parametrize("variant", ["plain", "ext"])
def test_mask_and_keypoint_heads_still_work(variant: str) -> None:
    heads = small_heads(
        *VARIANTS[variant],
        "MODEL.MASK_ON",
        True,
        "MODEL.KEYPOINT_ON",
        True,
        "MODEL.ROI_MASK_HEAD.CONV_DIM",
        8,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS",
        [8],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        0.0,
    ).eval()
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(4))]
    detections, _ = heads(image_list(1), random_features(1), proposals)
    assert detections[0].pred_masks.shape[1:] == (1, 28, 28)
    assert detections[0].pred_keypoints.shape[1:] == (17, 3)
