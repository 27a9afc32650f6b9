"""Ask detectors, image by image, what their heads miss and detect twice.

Shape legend: R proposals of one image; K foreground classes. Boxes are XYXY in pixels of the
original image, unless they are of the network's input.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import BoxMode, Instances
from torch import Tensor

from doublehead_d2.analysis import asking
from doublehead_d2.analysis.case_book import BOTH, CaseBook
from doublehead_d2.analysis.cases import Said
from doublehead_d2.analysis.error_runs import CONFIGURED
from doublehead_d2.analysis.matching import Detections, Limits, Objects
from doublehead_d2.config.checks import heads_with_modes
from doublehead_d2.modeling.output_layers import fuse_scores

Record = dict[str, Any]

ALONE = ("reg_head", "cls_head")
# What heads are called by their kind, and by their role where they are of one kind
TITLES = {"conv": "conv-head", "fc": "fc-head"}
ROLES = ("regression head", "classification head")


class Side(NamedTuple):
    """A way to score a detector."""

    title: str  # as pictures call it
    model: Any  # a `GeneralizedRCNN` in evaluation mode
    mapper: Callable[[Record], Record]  # `data.resize.build_mapper(cfg, is_train=False)` of it
    mode: str = CONFIGURED  # of `asking.modes_of`


def sides_of(model: Any, mapper: Callable[[Record], Record]) -> list[Side]:
    """The two heads of a detector, each alone, and both together.

    Args:
        model: a `GeneralizedRCNN` in evaluation mode.
        mapper: `data.resize.build_mapper(cfg, is_train=False)` of its config.

    Returns:
        the regression head, called "conv-head" if it is one, the classification head, and both.

    Raises:
        ValueError: its heads do not detect alone.
    """
    modes = asking.modes_of(model)
    if missing := [mode for mode in ALONE if mode not in modes]:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{type(model.roi_heads).__name__}', which is scored as "
            f"{', '.join(modes)} here, not as {', '.join(missing)}; allowed: {heads_with_modes()} "
            "whose heads learned both tasks (λ below 1, as Double-Head-Ext), or another model "
            "beside it"
        )
    kinds = [modes[mode].kind for mode in ALONE]
    titles = [TITLES[kind] for kind in kinds] if set(kinds) == set(TITLES) else list(ROLES)
    return [
        *(Side(title, model, mapper, mode) for title, mode in zip(titles, ALONE, strict=True)),
        Side(BOTH, model, mapper, "fused"),
    ]


def open_book(
    sides: Sequence[Side],
    class_names: Sequence[str],
    *,
    score: float = 0.5,
    iou: float = 0.5,
    low_iou: float = 0.1,
    keep: int = 4,
) -> CaseBook:
    """An empty book for what some sides say.

    Args:
        sides: of :func:`sides_of`; or two, each of a model of its own.
        class_names: of the classes of their models.
        score: the lowest that is shown of one head. Of both together it is what their fusion makes
            of two such scores, see `inference.display.display_threshold`.
        iou: from which a detection finds an object.
        low_iou: from which another detection of its class is a duplicate.
        keep: cases of each kind that are kept.

    Raises:
        ValueError: another number of sides, thresholds that are not allowed, or that the models'
            own stand against.
    """
    if not 2 <= len(sides) <= 3:
        raise ValueError(f"{len(sides)} sides are given; allowed: 2, and a third of both heads")
    layers = [side.model.roi_heads.box_predictor for side in sides]
    if len({x.test_nms_thresh for x in layers}) > 1:
        values = ", ".join(f"{x.test_nms_thresh:g}" for x in layers)
        raise ValueError(
            f"MODEL.ROI_HEADS.NMS_THRESH_TEST is {values}; allowed: one value for all models"
        )
    if (lowest := max(x.test_score_thresh for x in layers)) >= score:
        raise ValueError(
            f"MODEL.ROI_HEADS.SCORE_THRESH_TEST is {lowest:g}; allowed: below the lowest score "
            f"that is shown, {score:g}"
        )
    both_score = None
    if len(sides) == 3:
        fusion, _ = asking.modes_of(sides[2].model)[sides[2].mode].scoring
        one_head = torch.tensor(score, dtype=torch.float64)
        both_score = float(fuse_scores(one_head, one_head, fusion))
    return CaseBook(
        [side.title for side in sides[:2]],
        class_names=class_names,
        limits=Limits(score, iou, low_iou, layers[0].test_nms_thresh),
        both_score=both_score,
        keep=keep,
        shared=sides[0].model is sides[1].model,
    )


def find_cases(sides: Sequence[Side], records: Iterable[Record], book: CaseBook) -> None:
    """Look for cases in images, one after the other, and note them in a book.

    Args:
        sides: that the book was opened for. A model that several of them have runs once an image.
        records: detectron2's, with "file_name" and "annotations". Objects with "iscrowd" or
            "ignore" are ignored; detectron2's records of VOC do not tell difficult ones.
        book: of :func:`open_book`, or one that goes on from its state.
    """
    titles = [side.title for side in sides]
    assert titles == book.names, f"the book is of {book.names}, not of {titles}"
    for record in records:
        book.add(record, objects_of(record), hear(sides, record))


def objects_of(record: Record) -> Objects:
    """The objects of a record in detectron2's standard format."""
    annotations = record["annotations"]
    boxes = [
        BoxMode.convert([float(v) for v in x["bbox"]], x["bbox_mode"], BoxMode.XYXY_ABS)
        for x in annotations
    ]
    ignored = [bool(x.get("iscrowd", 0) or x.get("ignore", 0)) for x in annotations]
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([x["category_id"] for x in annotations], dtype=torch.int64),
        torch.tensor(ignored, dtype=torch.bool),
    )


def hear(sides: Sequence[Side], record: Record) -> list[Said]:
    """What each side says about an image; every model runs once.

    Args:
        sides: whose models are asked.
        record: detectron2's, with "file_name".
    """
    found: dict[int, dict[str, Said]] = {}
    for model, mapper in {id(x.model): (x.model, x.mapper) for x in sides}.values():
        known = asking.modes_of(model)
        modes = {x.mode: known[x.mode] for x in sides if x.model is model}
        given = mapper(record)
        seen = asking.see(model, [given])
        (proposals,) = seen.proposals
        height, width = proposals.image_size
        scale = torch.tensor([given["width"] / width, given["height"] / height] * 2)
        answers = asking.ask(
            model, modes, seen.features, [proposals.proposal_boxes], seen.image_sizes
        )
        found[id(model)] = {
            mode: _said(answer, proposals, model.roi_heads.box_predictor, scale)
            for mode, answer in answers.items()
        }
    return [found[id(side.model)][side.mode] for side in sides]


def _said(answer: asking.Answers, proposals: Instances, layers: Any, scale: Tensor) -> Said:
    """All that a head says, in pixels of the original image, on the CPU.

    Args:
        answer: in the network's input.
        proposals: with `proposal_boxes`.
        layers: output layers, which know the thresholds of the test.
        scale: 4, from sides of the network's input to those of the original image.
    """
    # Rows that are not finite are no detections. detectron2 leaves them out, and counts the others.
    finite = torch.cat([answer.boxes, answer.scores], dim=1).isfinite().all(dim=1, keepdim=True)
    boxes, scores = (x.where(finite, x.new_zeros(())) for x in (answer.boxes, answer.scores))
    (found,), (kept,) = fast_rcnn_inference(
        [boxes],
        [scores],
        [proposals.image_size],
        layers.test_score_thresh,
        layers.test_nms_thresh,
        layers.test_topk_per_image,
    )
    return Said(
        Detections(
            found.pred_boxes.tensor.cpu() * scale,
            found.scores.cpu(),
            found.pred_classes.cpu(),
            kept.cpu(),
        ),
        proposals.proposal_boxes.tensor.cpu() * scale,
        boxes.unflatten(1, (-1, 4)).cpu() * scale,
        scores[:, :-1].cpu(),
    )
