"""Whole detectors with imported weights against the code that the weights are from.

The arrays are described in golden/README.md. Run with `-s` to see the largest differences by stage.
"""

import numpy as np
import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from doublehead_d2.checkpoint import convert_checkpoint
from doublehead_d2.modeling.output_layers import DoubleHeadPredictions
from doublehead_d2.modeling.tsd import TSDPredictions
from foreign import GOLDEN, foreign_checkpoint, image, tiny_cfg

LEVELS = ["p2", "p3", "p4", "p5", "p6"]
IMAGES = {
    "mmdet": [(1, 160, 224), (2, 180, 150)],  # seed, height, width
    "official": [(1, 160, 224), (6, 192, 160)],
    # No corner of their proposals is within 3e-4 px of the half pixels where their pooling rounds.
    "tsd": [(1, 160, 224), (4, 180, 150)],
}
# A legacy box names its last pixel: detectron2's ends (0, 0, 1, 1) after it.
PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])
SHIFT = {"mmdet": 0.0, "official": PIXEL, "tsd": PIXEL}
# Largest differences allowed, where not 1e-4: pixels for anchors, proposals and boxes.
TOLERANCES = {
    # On some CPUs float32 rounds the proposals of image 1 to 1.07e-4.
    "mmdet": {"proposals": 2e-4, "scores": 1e-5},
    "official": {"anchors": 0.0, "proposals": 1e-3, "boxes": 1e-3, "scores": 1e-5},
    "tsd": {"anchors": 0.0, "proposals": 1e-4, "boxes": 1e-3, "scores": 1e-5},
}
MODES = {  # the authors' evaluation flags: score fusion, box source
    0: ("reg_head", "reg_head"),
    1: ("cls_head", "cls_head"),
    2: ("cls_head", "reg_head"),
    3: ("complementary", "reg_head"),
}


BACKGROUND_LAST = [1, 2, 3, 4, 5, 0]


class Detector:
    """A model with imported weights, and what it says of one image."""

    def __init__(self, source: str, number: int, *opts: object) -> None:
        cfg = tiny_cfg(source, *opts)
        self.model: GeneralizedRCNN = build_model(cfg).eval()
        self.model.load_state_dict(convert_checkpoint(foreign_checkpoint(source)), strict=True)
        picture = image(*IMAGES[source.removesuffix("_mask")][number])
        if cfg.INPUT.FORMAT == "RGB":
            picture = picture[:, :, ::-1]
        self.pixels = torch.as_tensor(picture.transpose(2, 0, 1).copy())
        self.images: ImageList = self.model.preprocess_image([{"image": self.pixels}])
        self.features = self.model.backbone(self.images.tensor)
        self.proposals = self.model.proposal_generator(self.images, self.features)[0][0]

    def heads(self) -> DoubleHeadPredictions | TSDPredictions:
        boxes = [self.proposals.proposal_boxes]
        return self.model.roi_heads.predict(self.features, boxes)

    def detections(self, mode: tuple | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes in the frame of the network's input."""
        if mode is None:
            result = self.model.inference([{"image": self.pixels}], do_postprocess=False)[0]
        else:
            heads = self.model.roi_heads
            result = heads.inference(self.heads(), [self.proposals], *mode)[0][0]
        return result.pred_boxes.tensor, result.scores, result.pred_classes


def golden(source: str, number: int) -> dict[str, Tensor]:
    arrays = np.load(GOLDEN / f"{source}_detector.npz")
    prefix = f"img{number}/"
    return {k.removeprefix(prefix): torch.as_tensor(arrays[k]) for k in arrays if prefix in k}


def largest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item() if ours.numel() else 0.0


def largest_of_first(ours: Tensor, theirs: Tensor) -> float:
    """As `largest`, of as many rows as the file has."""
    assert len(ours) >= len(theirs) >= 200
    return largest(ours[: len(theirs)], theirs)


def thinned(values: Tensor, level: str) -> Tensor:
    """What the files keep of the finest level: 1/16 of the cells, the first of the anchors."""
    if level != "p2":
        return values
    return values[:300] if values.dim() == 2 else values[:, ::4, ::4]


def compare_dense_stages(source: str, detector: Detector, theirs: dict) -> dict[str, float]:
    rpn = detector.model.proposal_generator
    maps = [detector.features[level] for level in LEVELS]
    objectness, deltas = rpn.rpn_head(maps)
    anchors = [boxes.tensor for boxes in rpn.anchor_generator(maps)]
    stages = {
        "FPN": (maps, "", 0.0),
        "objectness": (objectness, "objectness_", 0.0),
        "deltas": (deltas, "anchor_deltas_", 0.0),
        "anchors": ([x[None] for x in anchors], "anchors_", SHIFT[source]),
    }
    differences = {"input": largest(detector.images.tensor[0][:, ::4, ::4], theirs["input"])}
    for stage, (tensors, prefix, shift) in stages.items():
        differences[stage] = max(
            largest(thinned(ours[0], level), theirs[f"{prefix}{level}"] + shift)
            for ours, level in zip(tensors, LEVELS, strict=True)
        )
    return differences


def match(source: str, ours: tuple, theirs: tuple) -> tuple[float, float]:
    """Largest differences of boxes and scores of two sets of detections.

    Each of ours is paired with the nearest of theirs of the same class; all pairs must be distinct.
    """
    boxes, scores, classes = ours
    their_boxes, their_scores, their_classes = theirs
    their_boxes = their_boxes + SHIFT[source]
    assert len(boxes) == len(their_boxes) > 0
    distance = (boxes[:, None] - their_boxes).abs().amax(dim=2)
    distance = distance + (scores[:, None] - their_scores).abs()
    distance[classes[:, None] != their_classes] = float("inf")
    nearest = distance.argmin(dim=1)
    assert len(nearest.unique()) == len(nearest)
    return largest(boxes, their_boxes[nearest]), largest(scores, their_scores[nearest])


def assert_within(source: str, title: str, differences: dict[str, float]) -> None:
    print(f"\n{title}: largest difference by stage (allowed)")
    allowed = {stage: TOLERANCES[source].get(stage, 1e-4) for stage in differences}
    for stage, difference in differences.items():
        print(f"  {stage:13} {difference:.1e} ({allowed[stage]:.0e})")
    for stage, difference in differences.items():
        assert difference <= allowed[stage], f"{title}, {stage}: {difference}"


def compare_heads(source: str, ours: DoubleHeadPredictions | TSDPredictions, theirs: dict) -> float:
    if isinstance(ours, TSDPredictions):
        pairs = [
            (ours.delta_c.flatten(1), theirs["delta_c"]),
            (ours.delta_r, theirs["delta_r"]),
            (ours.tsd.scores, theirs["cls"][:, BACKGROUND_LAST]),
            (ours.tsd.deltas, theirs["reg"][:, 4:]),
        ]
    elif source == "mmdet":
        pairs = [(ours.cls_head.scores, theirs["cls"]), (ours.reg_head.deltas, theirs["reg"])]
    else:
        pairs = [
            (ours.cls_head.scores, theirs["cls_fc"][:, BACKGROUND_LAST]),
            (ours.reg_head.scores, theirs["cls_conv"][:, BACKGROUND_LAST]),
            (ours.cls_head.deltas, theirs["reg_fc"][:, 4:]),
            (ours.reg_head.deltas, theirs["reg_conv"][:, 4:]),
        ]
    return max(largest_of_first(*pair) for pair in pairs)


@pytest.mark.parametrize("source", IMAGES)
@torch.no_grad()
def test_dense_stages(source: str) -> None:
    differences = compare_dense_stages(source, Detector(source, 0), golden(source, 0))
    assert_within(source, f"{source}, image 0", differences)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("source", IMAGES)
@torch.no_grad()
def test_proposals_and_heads(source: str, number: int) -> None:
    detector, theirs = Detector(source, number), golden(source, number)
    boxes = detector.proposals.proposal_boxes.tensor
    logits = detector.proposals.objectness_logits
    differences = {
        "input": largest(detector.images.tensor[0][:, ::4, ::4], theirs["input"]),
        "proposals": largest(boxes, theirs["proposals"] + SHIFT[source]),
        "objectness": largest(logits.sigmoid(), theirs["objectness"]),
        "head outputs": compare_heads(source, detector.heads(), theirs),
    }
    assert_within(source, f"{source}, image {number}", differences)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("source", ["mmdet", "tsd"])
@torch.no_grad()
def test_detections(source: str, number: int) -> None:
    detector, theirs = Detector(source, number), golden(source, number)
    their_detections = (theirs["boxes"], theirs["scores"], theirs["labels"])
    boxes, scores = match(source, detector.detections(), their_detections)
    assert_within(source, f"{source}, image {number}", {"boxes": boxes, "scores": scores})


@torch.no_grad()
def test_tsd_masks() -> None:
    """Logits of the masks of their first detections, for the class that was detected."""
    detector, theirs = Detector("tsd_mask", 0), golden("tsd", 0)
    count = len(theirs["masks"])
    size = (IMAGES["tsd"][0][1], IMAGES["tsd"][0][2])
    classes = theirs["labels"][:count].long()
    detections = Instances(
        size, pred_boxes=Boxes(theirs["boxes"][:count] + PIXEL), pred_classes=classes
    )
    heads = detector.model.roi_heads
    found = heads.forward_with_given_boxes(detector.features, [detections])[0]
    assert_within(
        "tsd", "tsd, masks", {"masks": largest(found.pred_masks[:, 0].logit(), theirs["masks"])}
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_official_detections(number: int, mode: int) -> None:
    detector, theirs = Detector("official", number), golden("official", number)
    their_detections = (
        theirs[f"mode{mode}/boxes"],
        theirs[f"mode{mode}/scores"],
        theirs[f"mode{mode}/labels"] - 1,
    )
    boxes, scores = match("official", detector.detections(MODES[mode]), their_detections)
    title = f"official, image {number}, mode {mode}"
    assert_within("official", title, {"boxes": boxes, "scores": scores})
    if mode == 3:  # what the config asks for
        ours = detector.detections()
        torch.testing.assert_close(ours[0], detector.detections(MODES[3])[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("source", "opts", "stage"),
    [
        ("official", ["MODEL.ROI_DOUBLE_HEAD.LEGACY_BOXES", False], "head outputs"),
        ("official", ["MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"], "anchors"),
        ("tsd", ["MODEL.ROI_TSD.LEGACY_BOXES", False], "head outputs"),
        ("tsd", ["MODEL.ANCHOR_GENERATOR.NAME", "LegacyAnchorGenerator"], "anchors"),
        ("tsd", ["MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"], "anchors"),
    ],
)
@torch.no_grad()
def test_other_conventions_are_noticed(source: str, opts: list, stage: str) -> None:
    """What the legacy keys are for, and that the comparisons above would notice them."""
    detector, theirs = Detector(source, 0, *opts), golden(source, 0)
    if stage == "anchors":
        assert compare_dense_stages(source, detector, theirs)["anchors"] > 0.5
    else:
        assert compare_heads(source, detector.heads(), theirs) > 0.01
