"""What a detector's heads have said of images, in memory that does not grow with their boxes.

Shape legend: R windows of an image; G groups of `difficulty.GROUPS`; B bins of IoU. Boxes are XYXY
in absolute coordinates of the network's input.

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Section 3; issue 22.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from doublehead_d2.analysis.asking import Answers
from doublehead_d2.analysis.difficulty import GROUPS
from doublehead_d2.analysis.head_maps import SpatialCorrelation
from doublehead_d2.analysis.streaming import Comoments, Histograms, Moments
from doublehead_d2.analysis.windows import BINS, iou_bins

WINDOWS, RPN, DETECTIONS = "windows", "rpn", "detections"
SOURCES = (WINDOWS, RPN, DETECTIONS)  # where the pairs of a correlation come from
CELLS = 20  # of histograms


class WindowsOfImage(NamedTuple):
    """The windows around all objects of an image."""

    boxes: Tensor  # R x 4
    ious: Tensor  # R, with their objects
    owners: Tensor  # R indices of their objects
    targets: Tensor  # R x 4, the boxes of their objects


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

    def add_windows(
        self, said: Mapping[str, Answers], around: WindowsOfImage, groups: Tensor
    ) -> None:
        """Count what is said of the windows around the objects of an image.

        Args:
            said: by mode, of `asking.ask_for_classes`, on the CPU.
            around: the windows.
            groups: R x G, which of `GROUPS` each window's object is in.
        """
        self.windows += len(around.ious)
        rows, places = groups.nonzero(as_tuple=True)
        bins = iou_bins(around.ious)
        for mode, (scores, boxes) in said.items():
            regressed = matched_pairwise_iou(Boxes(boxes), Boxes(around.targets))
            self.scores[mode].add(scores[rows], places * BINS + bins[rows])
            self.ious[mode].add(regressed[rows], places * BINS + bins[rows])
            self.score_histograms[mode].add(scores, bins)
            self.iou_histograms[mode].add(regressed, bins)
            pairs = Comoments(len(GROUPS))
            pairs.add(scores[rows], around.ious[rows], places)
            self.pairs[WINDOWS][mode].append(pairs)

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
