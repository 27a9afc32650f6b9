"""Whether an exported file says what the model says.

Shape legend: R detections of the model, of a picture height x width; M x M cells of a mask.
"""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances
from torch import Tensor

MAX_BOX = 1e-3  # pixels of the picture, of keypoints, too
MAX_SCORE = 1e-4
# Pixels of a mask, one and a part of all, whose probability is about the threshold
MAX_MASK = 1e-3


@dataclass
class Parity:
    """How far a file differs from the model at most, over all pictures compared."""

    pictures: int = 0
    detections: int = 0
    boxes: float = 0.0
    scores: float = 0.0

    def compare(self, instances: Instances, found: dict[str, np.ndarray]) -> None:
        """Compare what a model and a file detect in one picture.

        Detections whose scores differ by less than is allowed may stand in another order.

        Args:
            instances: of the model, on the CPU.
            found: outputs of the file by name, see `detector.detect`.

        Raises:
            ValueError: they differ by more than is allowed; says in what.
        """
        outputs = {name: torch.tensor(value) for name, value in found.items()}
        number = len(outputs["scores"])
        if number != len(instances):
            raise ValueError(f"{number} detections, of PyTorch's model {len(instances)}")
        order = _counterparts(instances, outputs)
        outputs = {name: value[order] for name, value in outputs.items()}
        wrong = int((outputs["classes"] != instances.pred_classes).sum())
        if wrong:
            raise ValueError(f"{wrong} of {number} detections have another class")
        boxes = _largest(outputs["boxes"] - instances.pred_boxes.tensor)
        scores = _largest(outputs["scores"] - instances.scores)
        if "keypoints" in outputs:
            keypoints = outputs["keypoints"] - instances.pred_keypoints
            boxes = max(boxes, _largest(keypoints[..., :2]))
            scores = max(scores, _largest(keypoints[..., 2]))
        # `not <=` so that NaN is refused, too
        for what, value, limit in (("boxes", boxes, MAX_BOX), ("scores", scores, MAX_SCORE)):
            if not value <= limit:
                raise ValueError(f"{what} differ by {value:.2g}; allowed: {limit:g}")
        if "masks" in outputs:
            _compare_masks(outputs["masks"], instances)
        self.pictures += 1
        self.detections += number
        self.boxes, self.scores = max(self.boxes, boxes), max(self.scores, scores)


def _counterparts(instances: Instances, outputs: dict[str, Tensor]) -> Tensor:
    """For each of R detections of the model, which of the file's is nearest to it.

    Of those of its class and score, each is taken once; where there is none the one that is left.
    """
    other = outputs["classes"] != instances.pred_classes[:, None]
    other |= ~((outputs["scores"] - instances.scores[:, None]).abs() <= MAX_SCORE)
    distances = outputs["boxes"].double() - instances.pred_boxes.tensor[:, None]  # R x R x 4
    distances = distances.abs().amax(dim=2).nan_to_num(1e9, posinf=1e9) + 1e6 * other
    order: list[int] = []
    for row in distances:
        row[order] = torch.inf
        order.append(int(row.argmin()))
    return torch.tensor(order, dtype=torch.int64)


def _largest(differences: Tensor) -> float:
    return float(differences.abs().max()) if differences.numel() else 0.0


def _compare_masks(probabilities: Tensor, instances: Instances) -> None:
    """Compare masks as they are in the picture, those of the file R x M x M."""
    size = tuple(instances.image_size)
    masks = paste_masks_in_image(probabilities, instances.pred_boxes, size)
    differ = (masks != instances.pred_masks).flatten(1).sum(dim=1)
    worst = differ > 1 + MAX_MASK * instances.pred_masks.flatten(1).sum(dim=1)
    if worst.any():
        raise ValueError(f"a mask differs in {int(differ.max())} pixels; allowed: 1 and 1 in 1,000")
