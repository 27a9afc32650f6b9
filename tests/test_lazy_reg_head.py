"""The regression head sees no more RoIs than can be detected, and the detections stay the same."""

import collections
import random
from functools import partial

import pytest
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from builders import (
    EXT,
    IMAGE_SIZE,
    image_list,
    random_boxes,
    random_features,
    small_cfg,
    small_heads,
)
from doublehead_d2.modeling import DoubleHeadROIHeads

NODE = "MODEL.ROI_DOUBLE_HEAD"
THRESHOLD = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
NUM_MODELS = 300
BLOCKS = [
    ["residual"],
    ["residual", "bottleneck", "bottleneck"],
    ["residual", "nonlocal", "bottleneck"],
]
VARIANTS = {
    "plain": [],
    "agnostic": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
    "one scale": [f"{NODE}.REG_HEAD.ROI_SCALE", 1.0],
    "ext by the fc-head": [*EXT, f"{NODE}.SCORE_FUSION", "cls_head"],
    "boxes of the fc-head": [*EXT, f"{NODE}.SCORE_FUSION", "cls_head"]
    + [f"{NODE}.BOX_SOURCE", "cls_head"],
    "legacy": [f"{NODE}.LEGACY_BOXES", True, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"],
}


def diverse_heads(*opts: object, seed: int = 0) -> DoubleHeadROIHeads:
    """Heads whose class scores differ from RoI to RoI, as those of a trained model."""
    return diversify(small_heads(*opts, seed=seed).eval(), seed)


def diversify(heads: DoubleHeadROIHeads, seed: int = 0) -> DoubleHeadROIHeads:
    generator = torch.Generator().manual_seed(seed)
    for layers, spread in (
        (heads.box_predictor.cls_score, 2.0),
        (heads.reg_predictor.bbox_pred, 1.0),
    ):
        weight = torch.randn(layers.weight.shape, generator=generator)
        layers.weight.data = spread * weight
    return heads


def proposals_of(counts: tuple, seed: int) -> list[Instances]:
    return [
        Instances(
            IMAGE_SIZE,
            proposal_boxes=random_boxes(count, seed=10 * seed + i),
            objectness_logits=torch.zeros(count),
        )
        for i, count in enumerate(counts)
    ]


def full(heads: DoubleHeadROIHeads, features: dict, proposals: list) -> tuple:
    return heads.inference(
        heads.predict(features, [x.proposal_boxes for x in proposals]), proposals
    )


def count_rois(heads: DoubleHeadROIHeads) -> list[int]:
    """Filled, call by call, with the number of RoIs that the regression head sees."""
    seen: list[int] = []
    heads.reg_head.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def assert_same(ours: tuple, theirs: tuple) -> None:
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(one.scores, other.scores)  # bitwise
        assert torch.equal(one.pred_classes, other.pred_classes)
        torch.testing.assert_close(
            one.pred_boxes.tensor, other.pred_boxes.tensor, rtol=0, atol=1e-4
        )
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_lazy_detections_are_those_of_all_rois(variant: str, threshold: float) -> None:
    for seed in range(4):
        counts = [(40, 25), (30,), (0, 33), (50, 1, 7)][seed]
        heads = diverse_heads(*VARIANTS[variant], THRESHOLD, threshold, seed=seed)
        features = random_features(len(counts), seed=seed)
        proposals = proposals_of(counts, seed)
        seen = count_rois(heads)
        theirs, ours = full(heads, features, proposals), heads.detect(features, proposals)
        assert_same(ours, theirs)
        survivors = sum(
            int((p[:, :-1] > threshold).any(dim=1).sum())
            for p in heads.box_predictor.predict_probs(
                heads.predict(features, [x.proposal_boxes for x in proposals]).cls_head, proposals
            )
        )
        # Of the fc-head's boxes and scores the conv-head has no part.
        assert seen[:2] == [sum(counts), 0 if variant == "boxes of the fc-head" else survivors]


@pytest.mark.slow
@torch.no_grad()
def test_lazy_detections_are_those_of_all_rois_in_random_models() -> None:
    """Everything that changes what is scored, boxed or kept is drawn at random."""
    choose = random.Random(0)
    counted = collections.Counter()
    for seed in range(NUM_MODELS):
        threshold = choose.choice([0.0, 0.05, choose.random(), 0.999])
        opts = [*choose.choice(list(VARIANTS.values())), THRESHOLD, threshold]
        opts += ["MODEL.ROI_HEADS.NMS_THRESH_TEST", choose.choice([0.3, 0.5, 1.0])]
        opts += ["MODEL.ROI_HEADS.NUM_CLASSES", choose.choice([1, 3, 20])]
        opts += ["TEST.DETECTIONS_PER_IMAGE", choose.choice([5, 100])]
        opts += [f"{NODE}.CONV_HEAD.NORM", choose.choice(["BN", "FrozenBN", "naiveSyncBN"])]
        opts += [f"{NODE}.CONV_HEAD.FOLD_BN", choose.random() < 0.3]
        opts += [f"{NODE}.CONV_HEAD.BLOCKS", choose.choice(BLOCKS)]
        counts = tuple(
            choose.choice([0, 1, choose.randrange(60)]) for _ in range(choose.choice([1, 2, 3]))
        )
        heads = diverse_heads(*opts, seed=seed)
        features, proposals = random_features(len(counts), seed=seed), proposals_of(counts, seed)
        seen = count_rois(heads)
        theirs, ours = full(heads, features, proposals), heads.detect(features, proposals)
        assert_same(ours, theirs)
        for detections, kept, of_image in zip(*ours, proposals, strict=True):
            assert len(kept) == len(detections) and (kept < len(of_image)).all()
        counted.update(models=1, images=len(counts), rois=seen[0], shown=seen[1])
        counted.update(detections=sum(map(len, ours[0])), without_survivor=seen[1] == 0 < seen[0])
    print(dict(counted))
    assert counted["models"] == NUM_MODELS and counted["without_survivor"] > NUM_MODELS / 20
    assert 0.1 < counted["shown"] / counted["rois"] < 0.9
    assert counted["detections"] > 10 * NUM_MODELS


def test_thresholds_above_leave_some_rois_out() -> None:
    """The property above would hold, too, for a head that is shown everything."""
    heads = diverse_heads(THRESHOLD, 0.6)
    seen = count_rois(heads)
    with torch.no_grad():
        heads.detect(random_features(1), proposals_of((100,), 0))
    assert 0 < seen[0] < 100


@torch.no_grad()
def test_no_survivor_and_no_proposal() -> None:
    heads = diverse_heads(THRESHOLD, 1.0)
    for counts in ((20, 10), (0, 0)):
        detections, kept = heads.detect(random_features(2), proposals_of(counts, 0))
        assert [len(x) for x in detections] == [len(x) for x in kept] == [0, 0]
        assert detections[0].pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("lazy", [True, False])
def test_the_key_decides_in_inference_alone(lazy: bool) -> None:
    heads = diverse_heads(THRESHOLD, 0.6, f"{NODE}.LAZY_REG_HEAD", lazy)
    seen, features = count_rois(heads), random_features(1)
    proposals = proposals_of((30,), 0)
    with torch.no_grad():
        detections = heads._forward_box(features, proposals)[0]
        assert (seen[0] < 30) == lazy
        assert_same(([detections], []), (full(heads, features, proposals)[0], []))


def test_masks_are_of_the_same_detections() -> None:
    opts = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8, THRESHOLD, 0.3]
    heads = diverse_heads(*opts)
    masks: list[Tensor] = []
    for lazy in (True, False):
        heads.lazy_reg_head = lazy
        with torch.no_grad():
            result, _ = heads(image_list(1), random_features(1), proposals_of((30,), 0))
        masks.append(result[0].pred_masks)
    assert len(masks[0]) > 0
    torch.testing.assert_close(*masks)


def test_keypoints_are_of_the_same_detections() -> None:
    opts = ["MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8], THRESHOLD, 0.3]
    heads = diverse_heads(*opts, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3)
    keypoints: list[Tensor] = []
    for lazy in (True, False):
        heads.lazy_reg_head = lazy
        seen = count_rois(heads)
        with torch.no_grad():
            result, _ = heads(image_list(1), random_features(1), proposals_of((30,), 0))
        assert (seen[0] < 30) == lazy
        keypoints.append(result[0].pred_keypoints)
    assert keypoints[0].shape[1:] == (3, 3) and len(keypoints[0]) > 0
    torch.testing.assert_close(*keypoints, rtol=0, atol=1e-3)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", ["DoubleHeadROIHeads", "TSDROIHeads"])
@torch.no_grad()
def test_augmented_detections_are_the_same(name: str, masks: bool) -> None:
    cfg = small_cfg(THRESHOLD, 0.1, "TEST.AUG.MIN_SIZES", [64, 96], "MODEL.MASK_ON", masks)
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.RPN.POST_NMS_TOPK_TEST", 50])
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]  # without trained statistics boxes would overflow
    torch.manual_seed(2)
    model = build_model(cfg).eval()
    diversify(model.roi_heads)
    image = torch.randint(0, 256, (3, 80, 64), generator=torch.Generator().manual_seed(0))
    results, seen = [], []
    model.roi_heads.reg_head.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    for lazy in (True, False):
        model.roi_heads.lazy_reg_head = lazy
        with_tta = GeneralizedRCNNWithTTA(cfg, model)
        (output,) = with_tta([{"image": image.byte(), "height": 80, "width": 64}])
        results.append(output["instances"])
    assert len(seen) % 2 == 0 and sum(seen[: len(seen) // 2]) < sum(seen[len(seen) // 2 :])
    ours, theirs = results
    assert_same(([ours], []), ([theirs], []))
    assert len(ours) > 0
    if masks:
        torch.testing.assert_close(ours.pred_masks, theirs.pred_masks)


@pytest.mark.parametrize("fusion", ["complementary", "average", "max"])
@torch.no_grad()
def test_floor_leaves_out_what_the_fc_head_does_not_believe_in(fusion: str) -> None:
    opts = [*EXT, f"{NODE}.SCORE_FUSION", fusion, THRESHOLD, 0.6, f"{NODE}.SCORE_FLOOR", 0.6]
    heads = diverse_heads(*opts)
    features, proposals = random_features(2), proposals_of((60, 40), 0)
    predictions = heads.predict(features, [x.proposal_boxes for x in proposals])
    probs = heads.box_predictor.predict_probs(predictions.cls_head, proposals)
    chosen = [(p[:, :-1] >= 0.6).any(dim=1) for p in probs]
    count = sum(int(mask.sum()) for mask in chosen)
    assert 0 < count < 100
    seen = count_rois(heads)
    detections = heads._forward_box(features, proposals)
    assert seen == [count]
    left = [x[mask] for x, mask in zip(proposals, chosen, strict=True)]
    for ours, theirs in zip(detections, full(heads, features, left)[0], strict=True):
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        torch.testing.assert_close(ours.scores, theirs.scores)
        boxes = (ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_roi_at_the_floor_stays() -> None:
    heads = diverse_heads(*EXT, THRESHOLD, 0.9)
    features, proposals = random_features(1), proposals_of((40,), 0)
    predictions = heads.predict(features, [proposals[0].proposal_boxes])
    (probs,) = heads.box_predictor.predict_probs(predictions.cls_head, proposals)
    best = probs[:, :-1].amax(dim=1).sort(descending=True)[0]
    heads.score_floor = best[9].item()
    seen = count_rois(heads)
    heads.detect(features, proposals)
    assert seen == [10]


@pytest.mark.parametrize("lazy", [True, False])
@torch.no_grad()
def test_kept_are_the_proposals_where_some_boxes_are_not_finite(lazy: bool) -> None:
    heads = diverse_heads(THRESHOLD, 0.3)
    features, proposals = random_features(1), proposals_of((40,), 0)
    predictions = heads.predict(features, [proposals[0].proposal_boxes])
    (probs,) = heads.box_predictor.predict_probs(predictions.cls_head, proposals)
    broken = (probs[:, :-1] > 0.3).any(dim=1).nonzero()[:3, 0]

    def break_boxes(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        # What cannot be detected is not shown: the three are the first that the head sees then.
        output[slice(3) if lazy else broken] = float("nan")
        return output

    heads.reg_head.register_forward_hook(break_boxes)
    detect = heads.detect if lazy else partial(full, heads)
    (detections,), (kept,) = detect(features, proposals)
    assert len(kept) and not set(kept.tolist()) & set(broken.tolist())
    assert torch.equal(probs[kept, detections.pred_classes], detections.scores)


@torch.no_grad()
def test_what_is_not_shown_is_not_detected_at_any_threshold() -> None:
    """-1 shows all detections, but none of a RoI whose class scores are not finite."""
    heads = diverse_heads(THRESHOLD, -1.0)
    features, proposals = random_features(1), proposals_of((12,), 0)

    def break_scores(module: nn.Module, args: tuple, output: tuple) -> tuple:
        output.scores[:3] = float("nan")
        return output

    heads.box_predictor.register_forward_hook(break_scores)
    _, (kept,) = heads.detect(features, proposals)
    assert len(kept) and kept.min() >= 3
    assert_same(heads.detect(features, proposals), full(heads, features, proposals))


@torch.no_grad()
def test_predictions_made_for_one_scoring_are_not_scored_otherwise() -> None:
    heads = diverse_heads(*VARIANTS["boxes of the fc-head"])
    proposals = proposals_of((12,), 0)
    predictions = heads._predict_shown(random_features(1), proposals)
    heads.inference(predictions, proposals)
    with pytest.raises(AssertionError, match="the regression head was shown what .* asks for"):
        heads.inference(predictions, proposals, "complementary", "reg_head")


@torch.no_grad()
def test_what_a_floor_loses_is_bounded() -> None:
    """A lost detection had less than the floor from the classification head."""
    heads = diverse_heads(*EXT, THRESHOLD, 0.3)
    features, proposals = random_features(1), proposals_of((80,), 0)
    (detections,), (kept,) = full(heads, features, proposals)
    predictions = heads.predict(features, [proposals[0].proposal_boxes])
    probs = heads.box_predictor.predict_probs(predictions.cls_head, proposals)[0]
    heads.score_floor = 0.3
    heads.box_predictor.test_nms_thresh = 1.0  # nothing hides behind what is lost
    (all_boxes,), (all_kept,) = full(heads, features, proposals)
    (floored,), (floored_kept,) = heads.detect(features, proposals)
    lost = sorted({*all_kept.tolist()} - {*floored_kept.tolist()})
    assert lost and (probs[lost, :-1] < 0.3).all()
    assert len(floored) < len(all_boxes) and len(detections) == len(kept)


@torch.no_grad()
def test_fused_scores_need_all_rois() -> None:
    heads = diverse_heads(*EXT, THRESHOLD, 0.9)
    seen = count_rois(heads)
    heads._forward_box(random_features(1), proposals_of((30,), 0))
    assert seen == [30]


def test_no_floor_allows_every_threshold() -> None:
    assert small_heads(*EXT, THRESHOLD, -1.0).score_floor == 0


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([*EXT, f"{NODE}.SCORE_FLOOR", 0.1], "SCORE_FLOOR is 0.1; allowed: 0 to .*, which is 0.05"),
        ([*EXT, f"{NODE}.SCORE_FLOOR", -0.1], "SCORE_FLOOR is -0.1; allowed: 0 to"),
        ([f"{NODE}.SCORE_FLOOR", 0.05], "a floor is for fused scores .*'max'.* allowed: 0"),
    ],
)
def test_impossible_floors_are_refused(opts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_heads(*opts)
