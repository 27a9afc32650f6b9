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
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from doublehead_d2.analysis.asking import (
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
from doublehead_d2.analysis.head_maps import SpatialCorrelation
from doublehead_d2.analysis.streaming import Comoments, Histograms, Moments
from doublehead_d2.analysis.windows import BINS, iou_bins, stratified_subset, windows_around
from doublehead_d2.data.seeding import generator

WINDOWS, RPN, DETECTIONS = "windows", "rpn", "detections"
SOURCES = (WINDOWS, RPN, DETECTIONS)  # where the pairs of a correlation come from
FIGURES = ("windows", "correlations", "spatial")  # that this pass counts for
CELLS = 20  # of histograms

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


class Tally:
    """What a detector's heads have said of the images so far; tallies of parts can be merged."""

    def __init__(self, modes: Mapping[str, str]) -> None:
        """
        Args:
            modes: kind of head by mode, see `asking.modes_of`.
        """
        self.modes = dict(modes)
        self.images = self.objects = self.windows = 0
        self.seconds = 0.0  # in which heads said something of the windows
        bins = len(GROUPS) * BINS
        self.scores = {mode: Moments(bins) for mode in modes}
        self.ious = {mode: Moments(bins) for mode in modes}
        self.score_histograms = {mode: Histograms(BINS, CELLS) for mode in modes}
        self.iou_histograms = {mode: Histograms(BINS, CELLS) for mode in modes}
        # One an image: what a bootstrap over images draws from
        self.pairs: dict[str, dict[str, list[Comoments]]] = {
            source: {mode: [] for mode in modes} for source in SOURCES
        }
        self.spatial = SpatialCorrelation()

    def merge(self, other: "Tally") -> None:
        """Take in what another part, of images that come later, has counted.

        Raises:
            ValueError: it is of another detector.
        """
        if other.modes != self.modes:
            raise ValueError(f"parts of detectors with {self.modes} and {other.modes}")
        self.images += other.images
        self.objects += other.objects
        self.windows += other.windows
        self.seconds += other.seconds
        for mode in self.modes:
            self.scores[mode].merge(other.scores[mode])
            self.ious[mode].merge(other.ious[mode])
            self.score_histograms[mode].merge(other.score_histograms[mode])
            self.iou_histograms[mode].merge(other.iou_histograms[mode])
            for source in SOURCES:
                self.pairs[source][mode] += other.pairs[source][mode]
        self.spatial.merge(other.spatial)

    def state(self) -> dict[str, Any]:
        """All that is counted, as JSON takes it, without a loss."""
        return {
            "modes": self.modes,
            **{name: getattr(self, name) for name in _NUMBERS},
            **{name: _states(getattr(self, name)) for name in _BY_MODE},
            "pairs": {
                source: {mode: [x.state() for x in images] for mode, images in by_mode.items()}
                for source, by_mode in self.pairs.items()
            },
            "spatial": self.spatial.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Tally":
        """What :meth:`state` was taken of."""
        tally = cls(state["modes"])
        for name in _NUMBERS:
            setattr(tally, name, state[name])
        for name, kind in _BY_MODE.items():
            setattr(tally, name, {m: kind.from_state(x) for m, x in state[name].items()})
        tally.pairs = {
            source: {mode: [Comoments.from_state(x) for x in images] for mode, images in by.items()}
            for source, by in state["pairs"].items()
        }
        tally.spatial = SpatialCorrelation.from_state(state["spatial"])
        return tally


_NUMBERS = ("images", "objects", "windows", "seconds")
_BY_MODE: dict[str, Any] = {
    "scores": Moments,
    "ious": Moments,
    "score_histograms": Histograms,
    "iou_histograms": Histograms,
}


def _states(by_name: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.state() for name, x in by_name.items()}


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
        if request.asks_for_windows:
            _ask_about_windows(tally, model, modes, seen, objects, hardness, request, place)
        if "correlations" in request.figures:
            _ask_about_proposals(tally, model, modes, seen, objects, hardness)
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


def _ask_about_windows(
    tally: Tally,
    model: GeneralizedRCNN,
    modes: Mapping[str, Mode],
    seen: Seen,
    objects: ImageObjects,
    difficulties: Tensor,
    request: Request,
    place: int,
) -> None:
    """Count what is said of the windows around all objects of an image."""
    (size,) = seen.image_sizes
    boxes, ious, owners = [], [], []
    for index, (box, number) in enumerate(zip(objects.boxes, objects.numbers, strict=True)):
        windows = windows_around(box, size)
        count = request.proposals_per_object or len(windows.ious)
        chosen = stratified_subset(windows.ious, count, generator(request.seed, place, number))
        boxes.append(windows.boxes[chosen])
        ious.append(windows.ious[chosen])
        owners.append(torch.full_like(ious[-1], index, dtype=torch.int64))
    all_boxes = torch.cat([*boxes, torch.zeros(0, 4)])
    proposal_ious = torch.cat([*ious, torch.zeros(0)])
    owner = torch.cat([*owners, torch.zeros(0, dtype=torch.int64)])
    classes = objects.classes[owner]
    start = time.perf_counter()
    said = ask_for_classes(
        model, modes, seen.features, [Boxes(all_boxes.to(model.device))], [size], classes
    )
    said = {mode: type(x)(*(value.cpu() for value in x)) for mode, x in said.items()}
    tally.seconds += time.perf_counter() - start
    tally.windows += len(owner)
    rows, groups = memberships(objects.sizes[owner], difficulties[classes]).nonzero(as_tuple=True)
    bins = iou_bins(proposal_ious)
    targets = Boxes(objects.boxes[owner])
    for mode, (scores, found) in said.items():
        regressed = matched_pairwise_iou(Boxes(found), targets)
        places = groups * BINS + bins[rows]
        tally.scores[mode].add(scores[rows], places)
        tally.ious[mode].add(regressed[rows], places)
        tally.score_histograms[mode].add(scores, bins)
        tally.iou_histograms[mode].add(regressed, bins)
        pairs = Comoments(len(GROUPS))
        pairs.add(scores[rows], proposal_ious[rows], groups)
        tally.pairs[WINDOWS][mode].append(pairs)


def _ask_about_proposals(
    tally: Tally,
    model: GeneralizedRCNN,
    modes: Mapping[str, Mode],
    seen: Seen,
    objects: ImageObjects,
    difficulties: Tensor,
) -> None:
    """Count what is said of the RPN's proposals, and what is detected, in an image."""
    boxes = Boxes(objects.boxes)
    proposals = seen.proposals[0].proposal_boxes
    said = ask(model, modes, seen.features, [proposals], seen.image_sizes)
    found = detections(model, modes, seen)
    for mode in modes:
        (detected,) = found[mode]
        pairs = {
            RPN: proposal_pairs(
                said[mode].scores.cpu(), proposals.to("cpu"), boxes, objects.classes
            ),
            DETECTIONS: detection_pairs(detected.to("cpu"), boxes, objects.classes),
        }
        for source, image_pairs in pairs.items():
            comoments = Comoments(len(GROUPS))
            add_pairs(comoments, image_pairs, objects.sizes, difficulties)
            tally.pairs[source][mode].append(comoments)
