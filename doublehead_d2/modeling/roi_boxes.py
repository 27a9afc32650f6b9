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


def clip_to_pixels(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip boxes so that each covers a pixel of the image, as code does that names the last pixel.

    Args:
        boxes: XYXY, shape R x 4 or, one box a class, R x 4K.
        image_size: (height, width).

    Returns:
        new boxes of the same shape: the upper left corner lies at most at the beginning of the last
        pixel, the lower right one at least at the end of the first.
    """
    height, width = image_size
    x1, y1, x2, y2 = (boxes[:, i::4] for i in range(4))
    clipped = (
        x1.clamp(min=0, max=width - 1),
        y1.clamp(min=0, max=height - 1),
        x2.clamp(min=1, max=width),
        y2.clamp(min=1, max=height),
    )
    return torch.stack(clipped, dim=2).flatten(1)
