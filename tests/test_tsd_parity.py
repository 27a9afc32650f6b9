"""TSD's heads against the authors' own: pooling, offsets, outputs, targets and losses.

The arrays are described in golden/README.md. Everything runs through `TSDROIHeads.predict` and
`losses`, with the feature maps and boxes of the reference, and weights renamed as those of its
checkpoints.
"""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from builders import STRIDES, small_cfg
from doublehead_d2.checkpoint.sources import tsd
from doublehead_d2.modeling.tsd import TSDPredictions, TSDROIHeads
from foreign import GOLDEN

K = 3
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # their boxes name the last pixel
ARRAYS = {k: torch.as_tensor(v) for k, v in np.load(GOLDEN / "tsd_head.npz").items()}
LOSSES = {
    "loss_cls": "loss_TSD_cls",
    "loss_box_reg": "loss_TSD_bbox",
    "loss_cls_sibling": "loss_cls",
    "loss_box_reg_sibling": "loss_bbox",
    "loss_pc_cls": "loss_pc_cls",
    "loss_pc_loc": "loss_pc_loc",
}


def converted_weights() -> dict[str, Tensor]:
    """The reference's weights by our names in RoI heads, each used once."""
    theirs = {f"{tsd.HEAD}.{k.removeprefix('sd/')}": k for k in ARRAYS if k.startswith("sd/")}
    table = [rename for rename in tsd.renames(50) if rename.theirs.startswith(f"{tsd.HEAD}.")]
    assert sorted(rename.theirs for rename in table) == sorted(theirs)
    state = {}
    for rename in table:
        value = ARRAYS[theirs[rename.theirs]]
        assert rename.ours is not None
        ours = rename.ours.removeprefix("roi_heads.")
        state[ours] = rename.change(value) if rename.change else value
    return state


def reference_heads(*opts: object) -> TSDROIHeads:
    cfg = small_cfg(
        *("MODEL.ROI_HEADS.NAME", "TSDROIHeads"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", K),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
        *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2),
        *("MODEL.ROI_TSD.LEGACY_BOXES", True),
        *("MODEL.ROI_TSD.PC.CLS_MARGIN", 0.3),
        *("MODEL.ROI_TSD.PC.LOC_MARGIN", 0.3),
        *opts,
    )
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in STRIDES.items()}
    heads: TSDROIHeads = build_roi_heads(cfg, shapes).train()
    heads.load_state_dict(converted_weights(), strict=True)
    return heads


def sampled() -> list[Instances]:
    """The sampled RoIs of both images; the second has no objects."""
    rois, labels = ARRAYS["train/rois"], ARRAYS["train/labels"].long()
    objects = list(ARRAYS["train/pos_gt_boxes"].split(ARRAYS["train/num_pos"].tolist()))
    proposals = []
    for i, objects_of_image in enumerate(objects):
        mask = rois[:, 0] == i
        boxes, classes = rois[mask, 1:] + PIXEL, labels[mask]
        gt_boxes = boxes.clone()  # of background nobody looks at them
        gt_boxes[: len(objects_of_image)] = objects_of_image + PIXEL
        fields = {
            "proposal_boxes": Boxes(boxes),
            "gt_classes": torch.where(classes == 0, K, classes - 1),
        }
        if len(objects_of_image):
            fields["gt_boxes"] = Boxes(gt_boxes)
        size = tuple(ARRAYS[f"in/image_hw{i}"].tolist())
        proposals.append(Instances(size, **fields))
    return proposals


def predict(heads: TSDROIHeads) -> TSDPredictions:
    features = {name: ARRAYS[f"in/{name.upper()}"] for name in STRIDES}
    return heads.predict(features, [x.proposal_boxes for x in sampled()])


def background_last(scores: Tensor) -> Tensor:
    return torch.cat([scores[:, 1:], scores[:, :1]], dim=1)


def test_arrays_are_what_the_tests_rely_on() -> None:
    proposals = sampled()
    assert [x.has("gt_boxes") for x in proposals] == [True, False]
    for proposal in proposals:  # foreground comes first
        foreground = proposal.gt_classes < K
        assert torch.equal(foreground.int().sort(descending=True)[0], foreground.int())


@torch.no_grad()
def test_outputs() -> None:
    predictions = predict(reference_heads())
    close = {
        "delta_c": (predictions.delta_c.flatten(1), ARRAYS["train/delta_c"]),
        "delta_r": (predictions.delta_r, ARRAYS["train/delta_r"]),
        "scores": (predictions.tsd.scores, background_last(ARRAYS["train/TSD_cls_score"])),
        "deltas": (predictions.tsd.deltas, ARRAYS["train/TSD_bbox_pred"][:, 4:]),
    }
    assert predictions.sibling is not None
    scores, deltas = predictions.sibling
    close["sibling's scores"] = (scores, background_last(ARRAYS["train/cls_score"]))
    close["sibling's deltas"] = (deltas, ARRAYS["train/bbox_pred"][:, 4:])
    for name, (ours, theirs) in close.items():
        torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_losses() -> None:
    heads = reference_heads()
    with EventStorage():
        losses = heads.losses(predict(heads), sampled())
    assert set(losses) == set(LOSSES)
    for ours, theirs in LOSSES.items():
        expected = ARRAYS[f"train/m0.3_0.3/{theirs}"]
        torch.testing.assert_close(losses[ours], expected.reshape(()), **CLOSE)


@torch.no_grad()
def test_inference_says_the_same_without_the_sibling_head() -> None:
    heads = reference_heads()
    trained, tested = predict(heads), predict(heads.eval())
    assert tested.sibling is None
    torch.testing.assert_close(tested.tsd, trained.tsd, **CLOSE)


@pytest.mark.parametrize(
    ("opts", "least"),
    [
        (["MODEL.ROI_TSD.LEGACY_BOXES", False], 0.1),
        (["MODEL.ROI_TSD.SAMPLES", 2], 0.1),
        (["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0], 0.1),
        (["MODEL.ROI_TSD.OFFSET_SCALE", 0.11], 0.01),
    ],
)
@torch.no_grad()
def test_other_conventions_are_noticed(opts: list, least: float) -> None:
    theirs = background_last(ARRAYS["train/TSD_cls_score"])
    ours = predict(reference_heads(*opts)).tsd.scores
    assert (ours - theirs).abs().max() > least


@pytest.mark.parametrize("part", ["CLS", "LOC"])
def test_other_margins_are_noticed(part: str) -> None:
    heads = reference_heads(f"MODEL.ROI_TSD.PC.{part}_MARGIN", 0.29)
    with EventStorage():
        losses = heads.losses(predict(heads), sampled())
    name = f"loss_pc_{part.lower()}"
    assert (losses[name] - ARRAYS[f"train/m0.3_0.3/{name}"]).abs() > 1e-3
