"""The predefined proposals around an object, by which heads are compared (Section 3.1).

The paper takes about 14,000 sliding windows of different sizes around each object, whose IoUs with
it change gradually from 0 to 1; it gives no rule. Ours has 14,401, as many in each of its 20 bins:

- 80 IoUs q = 1/160, 3/160, ..., 159/160, four in each bin and none at the edge of one;
- for each 5 sizes, areas of q^σ of the object's with σ = 2/3, 1/3, 0, -1/3 and -2/3: from parts
  of the object to its surroundings;
- for each 3 ratios of width to height, q^ρ of the object's with ρ = -1/3, 0 and 1/3;
- for each 12 directions, 30 degrees apart in units of the way at which both only touch (half of
  both widths, half of both heights): the window slides from the object's centre into this
  direction as far as its IoU is q;
- the object's box itself, whose IoU is exactly 1.

σ and ρ are small enough that a window still covers more than q of the object before it slides. Far
windows differ much in size and ratio, close ones little. The IoU of two boxes does not change where
both are stretched: the rule is worked out once, for a box of side 1.

Windows are clipped to the image, as detectron2 clips proposals, and IoUs are those after it. All
overlap the object, so that none is empty then. Those that have become equal to one before them are
left out: an object at the edge has fewer windows, and not as many in each bin.

Shape legend: R windows. Boxes are XYXY in absolute coordinates of the network's input.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from doublehead_d2.analysis.streaming import uniform_bins

BINS = 20  # of IoUs, uniform (Section 3.1)
SIZES = (2 / 3, 1 / 3, 0.0, -1 / 3, -2 / 3)
RATIOS = (-1 / 3, 0.0, 1 / 3)
DIRECTIONS = 12
IOUS = 80
WINDOWS = IOUS * len(SIZES) * len(RATIOS) * DIRECTIONS + 1  # around an object far from all edges


class Windows(NamedTuple):
    """Windows around one object, its own box first."""

    boxes: Tensor  # R x 4, float32
    ious: Tensor  # R, with the object's box


def windows_around(box: Tensor, image_size: tuple[int, int]) -> Windows:
    """The windows around an object by the rule above, always the same and in the same order.

    Args:
        box: of the object, 4 numbers; it is not empty and lies in the image.
        image_size: height, width without padding.

    Returns:
        at most `WINDOWS`, on the device of `box`.
    """
    height, width = image_size
    x0, y0, x1, y1 = box.tolist()
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height, (
        f"box {box.tolist()} in an image of {height} x {width} (height x width)"
    )
    own = box.to("cpu", torch.float64)
    boxes = Boxes((own + _relative_windows() * (own[2:] - own[:2]).repeat(2)).float())
    inside = ((boxes.tensor[:, :2] >= 0) & (boxes.tensor[:, 2:] <= own.new([width, height]))).all()
    if not inside:
        boxes.clip(image_size)
        boxes = Boxes(_first_of_equals(boxes.tensor))
    ious = pairwise_iou(boxes, Boxes(own.float()[None]))[:, 0]
    return Windows(boxes.tensor.to(box.device), ious.to(box.device))


def iou_bins(ious: Tensor) -> Tensor:
    """Which of the 20 bins IoUs are in, R of 0 to 19; edges as :func:`streaming.uniform_bins`.

    Args:
        ious: R of 0 to 1.
    """
    return uniform_bins(ious, BINS)


def stratified_subset(ious: Tensor, count: int, generator: np.random.Generator) -> Tensor:
    """Choose windows, as many of each bin of IoUs as far as it has so many.

    What a bin lacks is shared by the others. What cannot be shared equally, fewer windows than
    bins that still have some, goes to the bins of the highest IoUs, one each. Within a bin windows
    are drawn without replacement.

    Args:
        ious: R, of one object.
        count: of windows to choose; all, if there are no more.
        generator: one that follows from the object alone, as of `data.seeding.generator`, so that
            a subset does not depend on what else is looked at.

    Returns:
        their indices in rising order, on the device of `ious`.
    """
    if count >= len(ious):
        return torch.arange(len(ious), device=ious.device)
    bins = iou_bins(ious).cpu()
    sizes = torch.bincount(bins, minlength=BINS)
    shares = _equal_shares(sizes, count)
    shuffled = torch.from_numpy(generator.permutation(len(ious)))
    shuffled = shuffled[bins[shuffled].argsort(stable=True)]  # bin after bin
    places = torch.arange(len(ious)) - (sizes.cumsum(0) - sizes)[bins[shuffled]]
    chosen = shuffled[places < shares[bins[shuffled]]]
    return chosen.sort().values.to(ious.device)


def _equal_shares(sizes: Tensor, count: int) -> Tensor:
    """How many of `count` each bin gives; `sizes` are those of the bins, not fewer together."""
    shares = torch.zeros_like(sizes)
    while count:
        unspent = shares < sizes
        share = count // int(unspent.sum())
        if share == 0:
            shares[unspent.nonzero()[-count:]] += 1
            break
        more = torch.minimum(sizes - shares, torch.tensor(share))
        shares += more
        count -= int(more.sum())
    return shares


@cache
def _relative_windows() -> Tensor:
    """How far each window's sides are from those of a box of side 1, `WINDOWS` x 4 in float64."""
    ious = (torch.arange(IOUS, dtype=torch.float64) + 0.5) / IOUS
    sizes, ratios = (torch.tensor(x, dtype=torch.float64) for x in (SIZES, RATIOS))
    angles = torch.arange(DIRECTIONS, dtype=torch.float64) * (2 * math.pi / DIRECTIONS)
    q, size, ratio, angle = (
        x.flatten() for x in torch.meshgrid(ious, sizes, ratios, angles, indexing="ij")
    )
    sides = torch.stack([q ** ((size + ratio) / 2), q ** ((size - ratio) / 2)], dim=1)
    ways = torch.stack([angle.cos(), angle.sin()], dim=1)
    low, high = torch.zeros_like(q), 1 / ways.abs().amax(dim=1)  # where both touch
    for _ in range(60):  # halve what is left, below the last bit of float64
        middle = (low + high) / 2
        too_close = _iou_at(middle[:, None] * ways, sides) > q
        low, high = torch.where(too_close, middle, low), torch.where(too_close, high, middle)
    centers = high[:, None] * ways * (1 + sides) / 2
    growth = (sides - 1) / 2
    windows = torch.cat([centers - growth, centers + growth], dim=1)
    return torch.cat([torch.zeros(1, 4, dtype=torch.float64), windows])


def _iou_at(offsets: Tensor, sides: Tensor) -> Tensor:
    """IoUs of windows with a box of side 1.

    Args:
        offsets: R x 2 between both centres; 1: they touch.
        sides: R x 2.
    """
    overlaps = ((1 - offsets.abs()) * (1 + sides) / 2).clamp(min=0)
    shared = torch.minimum(overlaps, sides.clamp(max=1)).prod(dim=1)
    return shared / (1 + sides.prod(dim=1) - shared)


def _first_of_equals(rows: Tensor) -> Tensor:
    """Rows that no row before them is equal to, R x C, in their order."""
    unique, places = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(rows))
    first = first.scatter_reduce(0, places, torch.arange(len(rows)), "amin")
    return rows[first.sort().values]
