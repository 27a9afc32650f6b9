"""One pass of a detector over images for the figures of the paper's argument.

Windows around objects (Section 3.1), proposals of the RPN and detections (3.2) are asked for in the
same pass, since the backbone has to run but once. What is kept of an image does not grow with the
number of its boxes.

Shape legend: M objects of an image, without crowds; R boxes that heads are asked about; G groups of
`difficulty.GROUPS`; B bins of IoU. Boxes are XYXY in absolute coordinates of the network's input.

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Section 3 and Appendix A; issue 22.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, BoxMode, PolygonMasks
from torch import Tensor

from doublehead_d2.analysis.asking import (
    Answers,
    Mode,
    Seen,
    ask,
    ask_for_classes,
    detections,
    modes_of,
    see,
)
from doublehead_d2.analysis.correlation import (
    add_pairs,
    detection_pairs,
    proposal_pairs,
)
from doublehead_d2.analysis.difficulty import GROUPS, memberships, size_of
from doublehead_d2.analysis.streaming import Comoments
from doublehead_d2.analysis.tally import DETECTIONS, RPN, Tally, WindowsOfImage
from doublehead_d2.analysis.windows import stratified_subset, windows_around
from doublehead_d2.data.seeding import generator

FIGURES = ("windows", "correlations", "spatial")  # that this pass counts for

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class Request(NamedTuple):
    """What is asked for."""

    figures: tuple[str, ...] = FIGURES
    proposals_per_object: int = 0  # a stratified subset of the windows; 0: all
    seed: int = 0  # of the subset

    @property
    def asks_for_windows(self) -> bool:
        """Whether heads are asked about windows."""
        return bool({"windows", "correlations"} & {*self.figures})


class ImageObjects(NamedTuple):
    """The objects of an image in the network's input."""

    boxes: Tensor  # M x 4
    classes: Tensor  # M
    sizes: Tensor  # M indices of `difficulty.SIZES`
    numbers: list[int]  # M, which of the image's annotations each is


class _Asked(NamedTuple):
    """A detector and the image that it is asked about."""

    model: GeneralizedRCNN
    modes: Mapping[str, Mode]
    seen: Seen
    objects: ImageObjects
    difficulties: Tensor  # K


def examine(
    model: GeneralizedRCNN,
    images: Iterable[tuple[int, dict[str, Any]]],
    mapper: Mapper,
    request: Request,
    difficulties: Sequence[int],
) -> Tally:
    """Ask a detector's heads about images.

    Args:
        model: in evaluation mode.
        images: place in the data set, and record in detectron2's format, of each image. The subset
            of windows follows from the place, not from what else is asked.
        mapper: as for evaluation: gives "image", C x H x W, of a record.
        request: what to ask.
        difficulties: of the K classes, indices of `difficulty.DIFFICULTIES`.
    """
    modes = modes_of(model)
    tally = Tally({name: mode.kind for name, mode in modes.items()})
    hardness = torch.tensor(difficulties)
    for place, record in images:
        seen = see(model, [mapper(dict(record))])
        objects = objects_of(record, seen.image_sizes[0])
        tally.images += 1
        tally.objects += len(objects.classes)
        asked = _Asked(model, modes, seen, objects, hardness)
        if request.asks_for_windows:
            around = _windows_of(objects, seen.image_sizes[0], request, place)
            _ask_about_windows(tally, asked, around)
        if "correlations" in request.figures:
            _ask_about_proposals(tally, asked)
        if "spatial" in request.figures and len(objects.boxes):
            boxes = [Boxes(objects.boxes.to(model.device))]
            tally.spatial.add(model, seen.features, boxes, seen.image_sizes)
    return tally


def objects_of(record: Mapping[str, Any], image_size: tuple[int, int]) -> ImageObjects:
    """The objects of a record, without crowds and without boxes that have no area in the image.

    Their size group is that of the mask's area where there is a polygon, as in COCO, else that of
    the box's, in pixels of the image as annotated.

    Args:
        record: in detectron2's format, with "height", "width" and "annotations".
        image_size: height, width that the image has in the network.
    """
    found = []
    for number, annotation in enumerate(record["annotations"]):
        if not annotation.get("iscrowd", 0):
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            area = _area(annotation, box)
            found.append((box, annotation["category_id"], size_of(area), number))
    boxes = Boxes(torch.tensor([x[0] for x in found], dtype=torch.float32).view(-1, 4))
    boxes.scale(image_size[1] / record["width"], image_size[0] / record["height"])
    boxes.clip(image_size)
    kept = boxes.nonempty().tolist()
    rows = [x for x, keep in zip(found, kept, strict=True) if keep]
    return ImageObjects(
        boxes.tensor[boxes.nonempty()],
        torch.tensor([x[1] for x in rows], dtype=torch.int64),
        torch.tensor([x[2] for x in rows], dtype=torch.int64),
        [x[3] for x in rows],
    )


def _area(annotation: Mapping[str, Any], box: Sequence[float]) -> float:
    outline = annotation.get("segmentation")
    if isinstance(outline, list) and outline:
        return float(PolygonMasks([outline]).area()[0])
    return (box[2] - box[0]) * (box[3] - box[1])


def _windows_of(
    objects: ImageObjects, image_size: tuple[int, int], request: Request, place: int
) -> WindowsOfImage:
    """The windows around all objects of an image, or the subset that is asked for."""
    none = torch.zeros(0, 4)  # so that there is something where there is no object
    found = [WindowsOfImage(none, none[:, 0], none[:, 0].long(), none)]
    for index, (box, number) in enumerate(zip(objects.boxes, objects.numbers, strict=True)):
        windows = windows_around(box, image_size)
        count = request.proposals_per_object or len(windows.ious)
        chosen = stratified_subset(windows.ious, count, generator(request.seed, place, number))
        owners = torch.full_like(chosen, index)
        boxes, ious = windows.boxes[chosen], windows.ious[chosen]
        found.append(WindowsOfImage(boxes, ious, owners, objects.boxes[owners]))
    return WindowsOfImage(*(torch.cat(x) for x in zip(*found, strict=True)))


def _ask_about_windows(tally: Tally, asked: _Asked, around: WindowsOfImage) -> None:
    """Count what is said of the windows around all objects of an image."""
    model, objects, seen = asked.model, asked.objects, asked.seen
    boxes, classes = [Boxes(around.boxes.to(model.device))], objects.classes[around.owners]
    start = time.perf_counter()
    said = ask_for_classes(model, asked.modes, seen.features, boxes, seen.image_sizes, classes)
    said = {mode: Answers(x.scores.cpu(), x.boxes.cpu()) for mode, x in said.items()}
    tally.seconds += time.perf_counter() - start
    sizes, difficulties = objects.sizes[around.owners], asked.difficulties[classes]
    tally.add_windows(said, around, memberships(sizes, difficulties))


def _ask_about_proposals(tally: Tally, asked: _Asked) -> None:
    """Count what is said of the RPN's proposals, and what is detected, in an image."""
    objects, seen = asked.objects, asked.seen
    boxes, proposals = Boxes(objects.boxes), seen.proposals[0].proposal_boxes
    said = ask(asked.model, asked.modes, seen.features, [proposals], seen.image_sizes)
    found = detections(asked.model, asked.modes, seen)
    for mode in asked.modes:
        (detected,) = found[mode]
        scores = said[mode].scores.cpu()
        pairs = {
            RPN: proposal_pairs(scores, proposals.to("cpu"), boxes, objects.classes),
            DETECTIONS: detection_pairs(detected.to("cpu"), boxes, objects.classes),
        }
        for source, image_pairs in pairs.items():
            comoments = Comoments(len(GROUPS))
            add_pairs(comoments, image_pairs, objects.sizes, asked.difficulties)
            tally.pairs[source][mode].append(comoments)
