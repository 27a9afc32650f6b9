"""TSD's RoI heads: what they pool, learn and detect, and what is refused."""

import math
from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import doublehead_d2
from builders import (
    IMAGE_SIZE,
    STRIDES,
    image_list,
    random_boxes,
    random_features,
    sampled_proposals,
    small_cfg,
    small_heads,
)
from doublehead_d2 import DoubleHeadConvHead, TSDROIHeads, model_zoo
from doublehead_d2.config import check_config
from doublehead_d2.modeling.output_layers import HeadPredictions, ZeroPredictor
from doublehead_d2.modeling.pooling import Mmdet1ROIAlign
from doublehead_d2.modeling.tsd import OffsetHead, TSDPredictions

TSD = ("MODEL.ROI_HEADS.NAME", "TSDROIHeads")
NODE = "MODEL.ROI_TSD"
NO_PC = (f"{NODE}.PC.CLS_WEIGHT", 0.0, f"{NODE}.PC.LOC_WEIGHT", 0.0)
NO_SIBLING = (f"{NODE}.SIBLING_LOSS_WEIGHT", 0.0, *NO_PC)
AGNOSTIC = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
LEGACY = (f"{NODE}.LEGACY_BOXES", True, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign")
DOUBLE_HEAD = (f"{NODE}.REG_HEAD.NAME", "DoubleHeadConvHead")
LOSSES = ["loss_cls", "loss_box_reg"]
SIBLING_LOSSES = ["loss_cls_sibling", "loss_box_reg_sibling"]
PC_LOSSES = ["loss_pc_cls", "loss_pc_loc"]


def tsd_heads(*opts: object, seed: int = 0) -> TSDROIHeads:
    heads = small_heads(*TSD, *opts, seed=seed)
    assert type(heads) is TSDROIHeads
    return heads


def learn(heads: TSDROIHeads, proposals: list[Instances], seed: int = 0) -> dict[str, Tensor]:
    features = {name: x.requires_grad_() for name, x in random_features(2, seed=seed).items()}
    predictions = heads.train().predict(features, [x.proposal_boxes for x in proposals])
    with EventStorage():
        return heads.losses(predictions, proposals)


@pytest.fixture
def storage() -> Iterator[EventStorage]:
    with EventStorage() as storage:
        yield storage


def test_is_public() -> None:
    assert doublehead_d2.TSDROIHeads is TSDROIHeads and "TSDROIHeads" in doublehead_d2.__all__


def test_names_of_parameters() -> None:
    names = {name.rpartition(".")[0] for name, _ in tsd_heads().named_parameters()}
    heads = {f"{head}.fc{i}" for head in ("box_head", "reg_head", "sibling_head") for i in (1, 2)}
    offsets = {"fc", "delta_c.0", "delta_c.2", "delta_r.0", "delta_r.2"}
    predictors = {"box_predictor.cls_score", "reg_predictor.bbox_pred"}
    predictors |= {"sibling_predictor.cls_score", "sibling_predictor.bbox_pred"}
    assert names == heads | {f"offset_head.{name}" for name in offsets} | predictors
    without = {name for name, _ in tsd_heads(*NO_SIBLING).named_parameters()}
    assert not any("sibling" in name for name in without)


@pytest.mark.parametrize(("opts", "count"), [((), 45_877_894), (NO_SIBLING, 31_571_189)])
def test_parameters_at_the_size_of_coco(opts: tuple, count: int) -> None:
    cfg = model_zoo.get_config("COCO-Detection/tsd_rcnn_R_50_FPN_1x.yaml")
    cfg.merge_from_list(list(opts))
    shapes = {name: ShapeSpec(channels=256, stride=s) for name, s in STRIDES.items()}
    with torch.device("meta"):
        heads = TSDROIHeads(cfg, shapes)
    assert sum(x.numel() for x in heads.parameters()) == count


def test_offset_networks_start_as_the_authors() -> None:
    """N(0, 1 / fan-in), biases 0: there are offsets from the first step."""
    torch.manual_seed(0)
    head = OffsetHead(ShapeSpec(channels=64, height=7, width=7), dim=256)
    for layer in (m for m in head.modules() if isinstance(m, nn.Linear)):
        assert not layer.bias.any()
        expected = 1 / math.sqrt(layer.in_features)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_offset_networks_by_hand() -> None:
    """One channel, one bin: relu(2x) = 6, then relu(1 * 6) and the last layers."""
    head = OffsetHead(ShapeSpec(channels=1, height=1, width=2), dim=1)
    weights = {"fc": [[2.0, 0.0]], "delta_c.0": [[1.0]], "delta_c.2": [[1.0], [2], [3], [4]]}
    weights |= {"delta_r.0": [[-1.0]], "delta_r.2": [[5.0], [6]]}
    for name, weight in weights.items():
        head.get_submodule(name).weight.data = torch.tensor(weight)
    head.get_submodule("delta_r.2").bias.data = torch.tensor([0.5, 0.25])
    delta_c, delta_r = head(torch.tensor([[[[3.0, 9.0]]]]))
    # x offsets of both bins, then y offsets
    assert delta_c.tolist() == [[[[6.0, 12.0]], [[18.0, 24.0]]]]
    assert delta_r.tolist() == [[0.5, 0.25]]


@torch.no_grad()
def test_what_is_predicted() -> None:
    heads = tsd_heads()
    features, boxes = random_features(2), [random_boxes(6), random_boxes(3)]
    in_training = heads.train().predict(features, boxes)
    assert isinstance(in_training, TSDPredictions)
    assert in_training.tsd.scores.shape == (9, 6) and in_training.tsd.deltas.shape == (9, 20)
    assert in_training.delta_c.shape == (9, 2, 7, 7) and in_training.delta_r.shape == (9, 2)
    assert in_training.sibling is not None and in_training.sibling.deltas.shape == (9, 20)
    in_inference = heads.eval().predict(features, boxes)
    assert in_inference.sibling is None
    assert torch.equal(in_inference.tsd.scores, in_training.tsd.scores)
    assert heads.rois_shown == {"offset_head": 18, "box_head": 18, "reg_head": 18}


@torch.no_grad()
@pytest.mark.parametrize("task", ["cls", "reg"])
def test_each_task_looks_where_its_offsets_say(task: str) -> None:
    """With offsets of half a RoI (γ Δ = 0.5) a task sees what the RoI moved by that would show."""
    heads = tsd_heads("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 4).eval()
    for network in (heads.offset_head.delta_c, heads.offset_head.delta_r):
        nn.init.zeros_(network[2].weight)
    features, boxes = random_features(1), random_boxes(8)
    size = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
    shift = 0.5 * size * torch.tensor([1.0, -1.0])
    moved = Boxes(boxes.tensor + torch.cat([shift, shift], dim=1))
    bias = torch.tensor([5.0, -5.0])  # 0.5 / γ, x first
    maps = [features[name] for name in STRIDES]
    pooled = heads.box_pooler(maps, [moved])
    if task == "cls":
        heads.offset_head.delta_c[2].bias.data = bias.repeat_interleave(49)
        found = heads.predict(features, [boxes]).tsd.scores
        expected = heads.box_predictor(heads.box_head(pooled)).scores
    else:
        heads.offset_head.delta_r[2].bias.data = bias
        found = heads.predict(features, [boxes]).tsd.deltas
        expected = heads.reg_predictor(heads.reg_head(pooled)).deltas
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def moved_proposals(proposals: list[Instances], delta_r: Tensor, scale: float) -> list[Instances]:
    """P_r: proposals translated by γ Δr of their width and height."""
    moved = []
    for x, deltas in zip(proposals, delta_r.split([len(p) for p in proposals]), strict=True):
        boxes = x.proposal_boxes.tensor
        shift = scale * deltas * (boxes[:, 2:] - boxes[:, :2])
        moved.append(
            Instances(
                x.image_size,
                proposal_boxes=Boxes(boxes + torch.cat([shift, shift], dim=1)),
                gt_classes=x.gt_classes,
                gt_boxes=x.gt_boxes,
            )
        )
    return moved


@pytest.mark.parametrize("opts", [(), AGNOSTIC], ids=["by class", "agnostic"])
@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (2.0, 4.0, 1.0, 3.0)])
def test_boxes_and_losses_are_those_from_the_moved_proposals(weights: tuple, opts: tuple) -> None:
    """Section 3 of the derivation: deltas d from P_r are d + (γ w_x Δr_x, γ w_y Δr_y, 0, 0) from P.

    detectron2 decodes and compares from P_r itself.
    """
    heads = tsd_heads("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", weights, *opts)
    proposals = sampled_proposals()
    predictions = heads.train().predict(random_features(2), [x.proposal_boxes for x in proposals])
    delta_r = predictions.delta_r.detach() * 3
    predictions = predictions._replace(delta_r=delta_r)
    moved = moved_proposals(proposals, delta_r, heads.offset_scale)
    with EventStorage():
        losses = heads.losses(predictions, proposals)
        expected = heads.reg_predictor.losses(predictions.tsd, moved)
    torch.testing.assert_close(losses["loss_box_reg"], expected["loss_box_reg"])
    layers, tsd = heads.box_source_of(predictions)
    boxes = torch.cat(layers.predict_boxes(tsd, proposals))
    torch.testing.assert_close(boxes, torch.cat(layers.predict_boxes(predictions.tsd, moved)))
    assert (boxes - torch.cat(layers.predict_boxes(predictions.tsd, proposals))).abs().max() > 0.1


def test_offsets_learn_from_the_boxes_as_a_part_of_the_deltas() -> None:
    """γ w = 0.1 * 10 = 1: d + Δr. So both have one gradient, Δr's summed over classes."""
    heads = tsd_heads()
    proposals = sampled_proposals()
    predictions = heads.train().predict(random_features(2), [x.proposal_boxes for x in proposals])
    deltas = predictions.tsd.deltas.detach().requires_grad_()
    delta_r = predictions.delta_r.detach().requires_grad_()
    tsd = HeadPredictions(predictions.tsd.scores, deltas)
    with EventStorage():
        losses = heads.losses(predictions._replace(tsd=tsd, delta_r=delta_r), proposals)
    losses["loss_box_reg"].backward()
    assert delta_r.grad.any()
    torch.testing.assert_close(delta_r.grad, deltas.grad.view(-1, 5, 4)[..., :2].sum(dim=1))


def test_without_offsets_it_is_two_heads_on_one_proposal() -> None:
    """Δ = 0: P_r is P, and the targets are the sibling head's."""
    heads = tsd_heads("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 4)
    for network in (heads.offset_head.delta_c, heads.offset_head.delta_r):
        nn.init.zeros_(network[2].weight)
    for part in (heads.box_head, heads.reg_head):
        part.load_state_dict(heads.sibling_head.state_dict())
    predictor = heads.sibling_predictor
    heads.box_predictor.cls_score.load_state_dict(predictor.cls_score.state_dict())
    heads.reg_predictor.bbox_pred.load_state_dict(predictor.bbox_pred.state_dict())
    losses = learn(heads, sampled_proposals())
    for name in LOSSES:
        torch.testing.assert_close(losses[name], losses[f"{name}_sibling"], atol=1e-5, rtol=1e-5)
    # Both heads say the same, so that the margins of 0.2 are missing unless less is left to 1.
    assert 0.1 < losses["loss_pc_cls"].item() <= 0.2 + 1e-5


# What each loss teaches (facts of the authors' code): nothing is detached between F and the
# networks of the offsets, and the sibling head learns from its own losses alone.
OFFSETS_C = {"offset_head.fc", "offset_head.delta_c", "features"}
OFFSETS_R = {"offset_head.fc", "offset_head.delta_r", "features"}
SIBLING = {"sibling_head", "features"}
TEACHES = {
    "loss_cls": {"box_head", "box_predictor.cls_score"} | OFFSETS_C,
    "loss_box_reg": {"reg_head", "reg_predictor.bbox_pred"} | OFFSETS_R,
    "loss_cls_sibling": {"sibling_predictor.cls_score"} | SIBLING,
    "loss_box_reg_sibling": {"sibling_predictor.bbox_pred"} | SIBLING,
    "loss_pc_cls": {"box_head", "box_predictor.cls_score"} | OFFSETS_C,
    "loss_pc_loc": {"reg_head", "reg_predictor.bbox_pred"} | OFFSETS_R,
}


@pytest.mark.parametrize("loss", TEACHES)
def test_which_loss_teaches_what(loss: str) -> None:
    heads = tsd_heads(f"{NODE}.PC.LOC_MARGIN", 1.0, f"{NODE}.PC.CLS_MARGIN", 1.0)
    features = {name: x.requires_grad_() for name, x in random_features(2).items()}
    proposals = sampled_proposals()
    predictions = heads.train().predict(features, [x.proposal_boxes for x in proposals])
    with EventStorage():
        losses = heads.losses(predictions, proposals)
    assert list(losses) == list(TEACHES)
    losses[loss].backward()
    parts = {
        *("offset_head.fc", "offset_head.delta_c", "offset_head.delta_r", "box_head", "reg_head"),
        *("sibling_head", "box_predictor.cls_score", "reg_predictor.bbox_pred"),
        *("sibling_predictor.cls_score", "sibling_predictor.bbox_pred"),
    }
    taught = {
        name
        for name in parts
        if any(p.grad is not None and p.grad.any() for p in heads.get_submodule(name).parameters())
    }
    if any(x.grad is not None and x.grad.any() for x in features.values()):
        taught.add("features")
    assert taught == TEACHES[loss]


@pytest.mark.parametrize(
    ("key", "loss"),
    [
        ("CLS_HEAD.LOSS_WEIGHT", "loss_cls"),
        ("REG_HEAD.LOSS_WEIGHT", "loss_box_reg"),
        ("PC.CLS_WEIGHT", "loss_pc_cls"),
        ("PC.LOC_WEIGHT", "loss_pc_loc"),
        ("SIBLING_LOSS_WEIGHT", "_sibling"),
    ],
)
def test_weights_weigh_their_losses_alone(key: str, loss: str) -> None:
    proposals = sampled_proposals()
    once = learn(tsd_heads(), proposals)
    thrice = learn(tsd_heads(f"{NODE}.{key}", 3.0), proposals)
    assert any(name.endswith(loss) for name in once)
    for name, value in once.items():
        factor = 3 if name.endswith(loss) else 1
        torch.testing.assert_close(thrice[name], factor * value)
        assert value > 0


@pytest.mark.parametrize(
    ("opts", "names"),
    [
        ((), LOSSES + SIBLING_LOSSES + PC_LOSSES),
        (NO_PC, LOSSES + SIBLING_LOSSES),
        (NO_PC[:2], LOSSES + SIBLING_LOSSES + PC_LOSSES[1:]),
        (NO_PC[2:], LOSSES + SIBLING_LOSSES + PC_LOSSES[:1]),
        (NO_SIBLING, LOSSES),
    ],
)
def test_losses_are_there_where_they_are_on(opts: tuple, names: list[str]) -> None:
    assert list(learn(tsd_heads(*opts), sampled_proposals())) == names


@pytest.mark.parametrize("foreground", [2, 0])
@pytest.mark.parametrize("counts", [(6, 4), (6, 0), (0, 0)])
@pytest.mark.parametrize("opts", [(), NO_SIBLING, AGNOSTIC, LEGACY])
def test_every_parameter_has_a_gradient(opts: tuple, counts: tuple, foreground: int) -> None:
    proposals = sampled_proposals(counts, num_foreground=foreground)
    if not foreground:
        for x in proposals:  # as detectron2 gives the RoIs of an image without objects
            x.remove("gt_boxes")
    heads = tsd_heads(*opts)
    losses = learn(heads, proposals)
    assert len(losses) == (2 if opts == NO_SIBLING else 6)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_accuracies_are_logged_by_head(storage: EventStorage) -> None:
    heads, proposals = tsd_heads().train(), sampled_proposals()
    heads.losses(
        heads.predict(random_features(2), [x.proposal_boxes for x in proposals]), proposals
    )
    logged = {name.split("/")[0] for name in storage.latest()}
    assert logged == {"cls_head", "sibling_head"}


@torch.no_grad()
def test_inference_never_asks_the_sibling_head() -> None:
    heads = tsd_heads("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    features = random_features(2)
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(n)) for n in (6, 3)]
    before, kept = heads.detect(features, proposals)
    for module in (heads.sibling_head, heads.sibling_predictor):
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    after, kept_after = heads.detect(features, proposals)
    assert sum(map(len, before)) > 9
    for x, y, i, j in zip(before, after, kept, kept_after, strict=True):
        assert torch.equal(x.pred_boxes.tensor, y.pred_boxes.tensor)
        assert torch.equal(x.scores, y.scores) and torch.equal(i, j)


@torch.no_grad()
@pytest.mark.parametrize("opts", [(), AGNOSTIC, DOUBLE_HEAD, LEGACY])
@pytest.mark.parametrize(("survivors", "expected"), [(None, 42), (0.5, 21), (0.0, 0)])
def test_lazy_detections_are_those_of_all_rois(
    opts: tuple, survivors: float | None, expected: int
) -> None:
    heads = tsd_heads(*opts).eval()
    heads.box_predictor.cls_score.weight *= 100
    features = random_features(2)
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(n)) for n in (30, 12)]
    scores = heads.cls_logits(features, [x.proposal_boxes for x in proposals])
    best = scores.softmax(dim=1)[:, :-1].amax(dim=1)
    threshold = -1.0 if survivors is None else best.quantile(1 - survivors).item()
    heads.box_predictor.test_score_thresh = threshold
    lazy, kept = heads.detect(features, proposals)
    assert heads.rois_shown["reg_head"] == expected
    heads.lazy_reg_head = False
    whole, kept_of_all = heads.detect(features, proposals)
    assert heads.rois_shown["reg_head"] == expected + 42
    for x, y, i, j in zip(lazy, whole, kept, kept_of_all, strict=True):
        assert torch.equal(i, j) and torch.equal(x.scores, y.scores)
        torch.testing.assert_close(x.pred_boxes.tensor, y.pred_boxes.tensor, atol=1e-4, rtol=0)


@torch.no_grad()
def test_no_proposals_at_all() -> None:
    heads = tsd_heads().eval()
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(0)) for _ in range(2)]
    detections, kept = heads.detect(random_features(2), proposals)
    assert [len(x) for x in detections] == [len(x) for x in kept] == [0, 0]


def test_scored_in_one_way_alone() -> None:
    heads = tsd_heads().eval()
    assert not hasattr(heads, "scoring_modes")
    cfg = model_zoo.get_config("Shapes-Detection/tsd_rcnn_tiny.yaml")
    cfg.MODEL.DEVICE, cfg.TEST.DOUBLE_HEAD_MODES = "cpu", True
    with pytest.raises(ValueError, match=r"'TSDROIHeads', which can be scored in one way alone"):
        check_config(cfg)


@torch.no_grad()
def test_traced_heads_detect_the_same_on_other_input() -> None:
    heads = tsd_heads().eval().requires_grad_(False)

    def scores_and_deltas(p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, boxes: Tensor) -> tuple:
        maps = dict(zip(STRIDES, (p2, p3, p4, p5), strict=True))
        predictions = heads.predict(maps, [Boxes(boxes)])
        return heads.box_source_of(predictions)[1]

    maps = tuple(random_features(1).values())
    traced = torch.jit.trace(scores_and_deltas, (*maps, random_boxes(7).tensor), check_trace=False)
    others = (*random_features(1, seed=1).values(), random_boxes(19, seed=2).tensor)
    for x, y in zip(traced(*others), scores_and_deltas(*others), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("opts", [(), DOUBLE_HEAD])
def test_mixed_precision_trains(opts: tuple) -> None:
    heads, proposals = tsd_heads(*opts).train(), sampled_proposals()
    with torch.autocast("cpu", torch.bfloat16), EventStorage():
        predictions = heads.predict(random_features(2), [x.proposal_boxes for x in proposals])
        losses = heads.losses(predictions, proposals)
    expected = learn(tsd_heads(*opts), proposals)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], atol=0.05, rtol=0.1)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters())


@pytest.mark.parametrize("on_pred_boxes", [False, True])
def test_what_the_mask_head_sees_in_training(on_pred_boxes: bool, storage: EventStorage) -> None:
    """P itself, not P_r, or, with TRAIN_ON_PRED_BOXES, the boxes of the regression head."""
    opts = ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", on_pred_boxes)
    heads, proposals = tsd_heads(*opts).train(), sampled_proposals()
    given = [x.proposal_boxes.tensor.clone() for x in proposals]
    heads._forward_box(random_features(2), proposals)
    for x, boxes in zip(proposals, given, strict=True):
        assert torch.equal(x.proposal_boxes.tensor, boxes) != on_pred_boxes


def test_double_head_tsd_is_a_conv_head_on_the_moved_proposal() -> None:
    heads = tsd_heads(*DOUBLE_HEAD)
    assert isinstance(heads.reg_head, DoubleHeadConvHead)
    assert isinstance(heads.reg_predictor.cls_score, ZeroPredictor)
    assert isinstance(heads.box_predictor.bbox_pred, ZeroPredictor)


def test_legacy_pools_as_mmdet1_everywhere() -> None:
    heads = tsd_heads(*LEGACY, "MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign")
    poolers = [m for m in heads.modules() if isinstance(m, ROIPooler)]
    assert len(poolers) == 2
    assert {type(x) for pooler in poolers for x in pooler.level_poolers} == {Mmdet1ROIAlign}


def test_legacy_clamps_sizes_on_both_sides_when_it_decodes() -> None:
    heads = tsd_heads(*LEGACY)
    clamp = math.log(1000 / 16)
    deltas = torch.zeros(1, 20)
    deltas[0, 2], deltas[0, 3] = -100.0, 100.0  # w_w = w_h = 5
    predictions = TSDPredictions(
        HeadPredictions(torch.zeros(1, 6), deltas), None, torch.zeros(1, 2, 7, 7), torch.zeros(1, 2)
    )
    decodable = heads.box_source_of(predictions)[1].deltas
    torch.testing.assert_close(decodable[0, :4], torch.tensor([0.0, 0.0, -5 * clamp, 100.0]))
    # The loss sees what was predicted.
    assert torch.equal(heads._from_proposals(predictions).deltas, deltas)


def test_legacy_counts_a_pixel_of_union_at_least() -> None:
    proposals = sampled_proposals()
    for x in proposals:
        x.proposal_boxes.tensor[:, 2:] = x.proposal_boxes.tensor[:, :2] + 0.5
        x.gt_boxes = x.proposal_boxes.clone()
    tiny = [f"{NODE}.PC.LOC_MARGIN", 0.0]
    modern = learn(tsd_heads(*tiny), proposals)["loss_pc_loc"]
    heads = tsd_heads(*tiny, *LEGACY)
    legacy = learn(heads, proposals)["loss_pc_loc"]
    assert legacy < modern / 2


def cfg_with(*opts: object) -> CfgNode:
    return small_cfg(*TSD, *opts)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("OFFSET_DIM", 0), r"OFFSET_DIM is 0; allowed: a number above 0"),
        (("OFFSET_SCALE", 0.0), r"OFFSET_SCALE is 0.0; allowed: a number above 0"),
        (("OFFSET_SCALE", float("nan")), r"OFFSET_SCALE is nan; allowed: a number above 0"),
        (("SAMPLES", 0), r"SAMPLES is 0; allowed: a number above 0"),
        (("CLS_HEAD.LOSS_WEIGHT", 0.0), r"CLS_HEAD.LOSS_WEIGHT is 0.0; allowed: a number above 0"),
        (("REG_HEAD.LOSS_WEIGHT", -1.0), r"REG_HEAD.LOSS_WEIGHT is -1.0; allowed: a number above"),
        (("SIBLING_LOSS_WEIGHT", -1.0), r"SIBLING_LOSS_WEIGHT is -1.0; allowed: 0 or more"),
        (("SIBLING_LOSS_WEIGHT", float("inf")), r"SIBLING_LOSS_WEIGHT is inf; allowed: 0 or more"),
        (("PC.CLS_WEIGHT", -0.1), r"PC.CLS_WEIGHT is -0.1; allowed: 0 or more"),
        (("PC.LOC_WEIGHT", float("nan")), r"PC.LOC_WEIGHT is nan; allowed: 0 or more"),
        (("PC.CLS_MARGIN", 1.5), r"PC.CLS_MARGIN is 1.5; allowed: 0 to 1"),
        (("PC.LOC_MARGIN", -0.5), r"PC.LOC_MARGIN is -0.5; allowed: 0 to 1"),
        (
            ("SIBLING_LOSS_WEIGHT", 0.0),
            r"PC.CLS_WEIGHT is 1.0 and MODEL.ROI_TSD.SIBLING_LOSS_WEIGHT is 0: there is no sibling "
            r"head to be better than; allowed: 0",
        ),
        (("REG_HEAD.NAME", "Conv"), r"REG_HEAD.NAME is 'Conv'; allowed: .*'FastRCNNConvFCHead'"),
        (
            ("LEGACY_BOXES", True),
            r"POOLER_TYPE is 'ROIAlignV2'; with MODEL.ROI_TSD.LEGACY_BOXES True allowed: "
            r"'ROIAlign'",
        ),
    ],
)
def test_bad_settings_are_refused(opts: tuple, message: str) -> None:
    key, value = opts
    cfg = cfg_with(f"{NODE}.{key}", value)
    with pytest.raises(ValueError, match=message):
        check_config(cfg)
    with pytest.raises(ValueError, match=message):
        tsd_heads(f"{NODE}.{key}", value)
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"  # other models are left alone
    check_config(cfg)


def test_an_unknown_classification_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL.ROI_BOX_HEAD.NAME is 'Conv'; allowed: "):
        check_config(cfg_with("MODEL.ROI_BOX_HEAD.NAME", "Conv"))


def test_images_are_not_looked_at() -> None:
    """The whole way of detectron2: proposals in, losses or detections out."""
    heads = tsd_heads("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    proposals = [
        Instances(IMAGE_SIZE, proposal_boxes=random_boxes(20), objectness_logits=torch.zeros(20))
        for _ in range(2)
    ]
    objects = Instances(IMAGE_SIZE, gt_boxes=random_boxes(2), gt_classes=torch.tensor([0, 1]))
    nothing = Instances(
        IMAGE_SIZE, gt_boxes=random_boxes(0), gt_classes=torch.zeros(0, dtype=torch.int64)
    )
    with EventStorage():
        _, losses = heads.train()(image_list(), random_features(2), proposals, [objects, nothing])
    assert list(losses) == LOSSES + SIBLING_LOSSES + PC_LOSSES
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        detections, _ = heads.eval()(image_list(), random_features(2), proposals)
    assert all(len(x) for x in detections)
