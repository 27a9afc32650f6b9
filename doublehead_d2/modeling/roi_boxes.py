"""Boxes as the heads' poolers see them.

Shape legend: R RoIs. Boxes are XYXY in absolute coordinates of the (padded) network input.
"""

import torch
from detectron2.structures import Boxes
from torch import Tensor


class EnlargedBoxes(Boxes):
    """Boxes enlarged about their centres that keep the area of the originals, unclipped.

    `ROIPooler` chooses a box's FPN level from `area()` and pools at its coordinates. Both published
    implementations choose the level of the original box and pool the enlarged one; giving the
    pooler plain enlarged boxes would move log2(1.3) = 38 % of the RoIs one level up.
    """

    def __init__(self, boxes: Boxes, scale: float, *, legacy: bool = False) -> None:
        """
        Args:
            boxes: the original boxes.
            scale: factor on width and height, > 0.
            legacy: pool, as the authors' code does, at corners that name the first and the last
                pixel: (0, 0, 1, 1) is taken off after the enlarging.
        """
        centers = boxes.get_centers()
        half_sizes = (boxes.tensor[:, 2:] - boxes.tensor[:, :2]) * (scale / 2)
        upper = centers + half_sizes - 1 if legacy else centers + half_sizes
        super().__init__(torch.cat([centers - half_sizes, upper], dim=1))
        self._original_area = boxes.area()

    def area(self) -> Tensor:
        """Areas of the original boxes, shape R."""
        return self._original_area
