"""How scores and IoUs are correlated: Pearson's coefficient, and bootstrap intervals over images.

Figures 3 and A.2 of the paper. It does not say which score and which IoU belong to a proposal of
the RPN or to a detection; what we take is said at :func:`proposal_pairs` and
:func:`detection_pairs`.

Pairs of one image are not independent, least of all the windows around one object. So images are
what is drawn again, with all their pairs.

Shape legend: I images; R pairs of a score and an IoU; M objects of an image, without crowds; K
foreground classes; G groups of `difficulty.GROUPS`. Boxes are XYXY in absolute coordinates of the
network's input.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from doublehead_d2.analysis.difficulty import UNKNOWN, memberships
from doublehead_d2.analysis.streaming import Comoments, pearson

NONE = -1  # the object of what overlaps none
# Spread, relative to that around the mean of all images, that rounding alone can leave.
ROUNDING = 1e-12
DRAWN_AT_ONCE = 2**22  # images, 32 MB


class Pairs(NamedTuple):
    """Scores and IoUs, and what they are of."""

    scores: Tensor  # R
    ious: Tensor  # R
    objects: Tensor  # R indices, 0 to M - 1, or `NONE`
    classes: Tensor  # R indices, 0 to K - 1


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient and its interval; None: not defined."""

    pearson: float | None
    low: float | None
    high: float | None
    count: int  # of pairs
    images: int  # that have any


def window_pairs(scores: Tensor, ious: Tensor, index: int, object_class: int) -> Pairs:
    """The pairs of the predefined proposals around one object.

    Args:
        scores: R, for the class of the object.
        ious: R, of the proposals, not of the boxes regressed from them (Section 3.2).
        index: of the object in its image.
        object_class: its class.
    """
    objects = torch.full_like(scores, index, dtype=torch.int64)
    return Pairs(scores, ious, objects, torch.full_like(objects, object_class))


def proposal_pairs(scores: Tensor, proposals: Boxes, objects: Boxes, classes: Tensor) -> Pairs:
    """The pairs of an image's proposals by the RPN.

    The IoU is that of the proposal with the object that it overlaps best, the score that for the
    class of this object. A proposal that overlaps no object is left out: there is no class that
    its score could be for. Of objects that it overlaps equally the first counts.

    Args:
        scores: Q x (K+1), of Q proposals.
        proposals: Q.
        objects: M.
        classes: M indices of their classes.

    Returns:
        R <= Q.
    """
    ious, best = _best_overlaps(pairwise_iou(proposals, objects))
    kept = best != NONE
    ious, best, scores = ious[kept], best[kept], scores[kept]
    own = classes[best]
    return Pairs(scores.gather(1, own[:, None])[:, 0], ious, best, own)


def detection_pairs(detections: Instances, objects: Boxes, classes: Tensor) -> Pairs:
    """The pairs of an image's detections after NMS.

    The IoU is that of the detected box with the object of the detected class that it overlaps best,
    whether or not a better detection has it already; 0 where it overlaps none.

    Args:
        detections: R with `pred_boxes`, `scores` and `pred_classes`.
        objects: M.
        classes: M indices of their classes.
    """
    ious = pairwise_iou(detections.pred_boxes, objects)
    ious = ious * (detections.pred_classes[:, None] == classes)
    return Pairs(detections.scores, *_best_overlaps(ious), detections.pred_classes)


def add_pairs(comoments: Comoments, pairs: Pairs, sizes: Tensor, difficulties: Tensor) -> None:
    """Count pairs in the groups of their object's size and of their class's difficulty.

    A detection that overlaps no object of its class has no size; it counts with all and with the
    difficulty of its class.

    Args:
        comoments: of G groups; x is the score, y the IoU.
        pairs: of an image, on any device.
        sizes: M indices of `difficulty.SIZES`, of the image's objects; on the CPU.
        difficulties: K indices of `difficulty.DIFFICULTIES`, or `difficulty.UNKNOWN`; on the CPU.
    """
    pairs = Pairs(*(x.cpu() for x in pairs))
    # One more at the end, where `NONE` looks.
    sizes = torch.cat([sizes, sizes.new_tensor([UNKNOWN])])
    members = memberships(sizes[pairs.objects], difficulties[pairs.classes])
    rows, groups = members.nonzero(as_tuple=True)
    comoments.add(pairs.scores[rows], pairs.ious[rows], groups)


def correlate(
    images: Sequence[Comoments],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Correlation]:
    """Correlations over all images, with percentile intervals of a bootstrap over images.

    A resample draws I of the I images with replacement and merges their numbers; its correlation
    is that of all their pairs. The draws follow from the seed and I alone: all modes and models on
    the same images are drawn alike. Resamples whose correlation is not defined are left out. There
    is no interval where fewer than two images have pairs.

    Args:
        images: I >= 1, each of G groups, also those without pairs.
        resamples: number of draws.
        confidence: share of the resamples that lies within the interval.
        seed: of the draws.

    Returns:
        G correlations.

    Raises:
        ValueError: `resamples` or `confidence` is out of range.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"resamples {resamples}, confidence {confidence}; allowed: 1 or more resamples, a "
            "confidence between 0 and 1"
        )
    sums = _sums(images)
    whole = _correlations(torch.ones(1, len(images), dtype=torch.float64), sums)[0]
    drawn = torch.cat([_correlations(w, sums) for w in _draws(len(images), resamples, seed)])
    tail = (1 - confidence) / 2
    ends = torch.stack([drawn.nanquantile(q, dim=0) for q in (tail, 1 - tail)])
    counts = torch.stack([x.count for x in images])
    filled = (counts > 0).sum(dim=0)
    ends = ends.masked_fill((filled < 2) | whole.isnan(), torch.nan)
    columns = (whole, *ends, counts.sum(dim=0), filled)
    return [
        Correlation(_or_none(value), _or_none(low), _or_none(high), int(count), int(with_pairs))
        for value, low, high, count, with_pairs in zip(*(x.tolist() for x in columns), strict=True)
    ]


def _best_overlaps(ious: Tensor) -> tuple[Tensor, Tensor]:
    """The highest IoU of each row of R x M, and its column; 0 and `NONE` where all are 0."""
    if not ious.shape[1]:
        return ious.new_zeros(len(ious)), ious.new_full((len(ious),), NONE, dtype=torch.int64)
    best, places = ious.max(dim=1)
    return best, torch.where(best > 0, places, NONE)


def _sums(images: Sequence[Comoments]) -> Tensor:
    """Sums over each image's pairs, I x G x 7: 1; x and y; xx, xy, yx and yy.

    x and y are distances from their means over all images. So what a resample later takes off its
    sums of squares is as small as the distance of its own mean from that of all: nothing is lost to
    rounding, and sums, unlike moments, are merged by matrix products. By Chan's formula, for any
    center c, Σ (x - c)^2 = S + n (m - c)^2.
    """
    counts = torch.stack([x.count for x in images]).double()[..., None]  # I x G x 1
    means = torch.stack([x.means_from(torch.zeros(2)) for x in images])
    centers = (counts * means).sum(dim=0) / counts.sum(dim=0).clamp(min=1)
    offsets = torch.stack([x.means_from(centers) for x in images])  # I x G x 2
    squares = (offsets[..., :, None] * offsets[..., None, :]).flatten(2)
    products = torch.stack([x.products for x in images]).flatten(2)
    return torch.cat([counts, counts * offsets, products + counts * squares], dim=2)


def _correlations(weights: Tensor, sums: Tensor) -> Tensor:
    """Correlations over images that are counted more than once or not at all.

    Args:
        weights: B x I, how often each image is counted.
        sums: of :func:`_sums`.

    Returns:
        B x G, NaN where not defined.
    """
    totals = torch.einsum("bi,igs->bgs", weights, sums)
    counts, firsts, seconds = totals[..., :1], totals[..., 1:3], totals[..., 3:]
    shared = (firsts[..., :, None] * firsts[..., None, :]).flatten(2) / counts.clamp(min=1)
    products = seconds - shared
    products = products.masked_fill(products.abs() <= ROUNDING * seconds.abs(), 0.0)
    found = pearson(products.unflatten(2, (2, 2)))
    return found.masked_fill(counts[..., 0] < 2, torch.nan)


def _draws(images: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each resample has each image, some rows of `resamples` x I at a time."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, DRAWN_AT_ONCE // images)
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), images)
        drawn = torch.randint(images, shape, generator=generator)
        ones = torch.ones(shape, dtype=torch.float64)
        yield torch.zeros(shape, dtype=torch.float64).scatter_add_(1, drawn, ones)


def _or_none(number: float) -> float | None:
    return None if number != number else number
