"""The groups that objects are compared in: by size, and by how hard their class is.

Sizes are COCO's (Figure 2), difficulties thirds of the classes by the AP of a baseline (A.1).

Shape legend: K classes; M objects; R pairs of a score and an IoU; G = 7 groups.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SIZES = ("small", "medium", "large")
DIFFICULTIES = ("easy", "medium difficulty", "hard")
GROUPS = ("all", *SIZES, *DIFFICULTIES)
UNKNOWN = -1  # the size or difficulty of what belongs to no such group


def size_of(area: float) -> int:
    """Which of `SIZES` an object is, by its area in pixels of the original image.

    Small is below 32^2, large above 96^2. An object of exactly one of these areas is medium;
    pycocotools counts it in both groups.

    Args:
        area: as its annotation says (COCO's: that of the mask), or that of its box.
    """
    return 0 if area < 32**2 else 1 if area <= 96**2 else 2


def difficulties_of(aps: Sequence[float | None]) -> list[int]:
    """Which of `DIFFICULTIES` each class is: thirds by the AP of a baseline, the highest easy.

    Where the number of classes is not a multiple of 3, easy has one more, and medium too where two
    are left. Of equal APs the earlier class counts as the easier one. A class whose AP is None or
    NaN, that is without objects, is in no third: `UNKNOWN`; the others are divided without it.

    Args:
        aps: K, by class.
    """
    known = [i for i, ap in enumerate(aps) if ap is not None and not math.isnan(ap)]
    ranked = sorted(known, key=lambda i: -float(aps[i] or 0))
    difficulties = [UNKNOWN] * len(aps)
    third, more = divmod(len(ranked), 3)
    first, second = third + (more > 0), 2 * third + more
    for rank, i in enumerate(ranked):
        difficulties[i] = 0 if rank < first else 1 if rank < second else 2
    return difficulties


def memberships(sizes: Tensor, difficulties: Tensor) -> Tensor:
    """Which of `GROUPS` pairs count in.

    Args:
        sizes: R indices of `SIZES`, or `UNKNOWN`.
        difficulties: R indices of `DIFFICULTIES`, or `UNKNOWN`.

    Returns:
        R x G, true for each group: all, and up to one of each kind.
    """
    every = torch.ones_like(sizes, dtype=torch.bool)[:, None]
    kinds = torch.arange(3, device=sizes.device)
    return torch.cat([every, sizes[:, None] == kinds, difficulties[:, None] == kinds], dim=1)
