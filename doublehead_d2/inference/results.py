"""What a detector says of an image, as people and other tools take it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from PIL import Image

from doublehead_d2.inference.images import Source, bgr_of
from doublehead_d2.visualize import draw_predictions


@dataclass
class Result:
    """The detections of one image.

    Attributes:
        source: the file, array or image of Pillow that it is of.
        height, width: of the image; 0 where it could not be read.
        instances: on the CPU, with `pred_boxes` (XYXY in pixels of the image), `scores`,
            `pred_classes` and what other heads say; none where the image could not be read.
        metadata: of the data set whose classes they are.
        error: why the image could not be read; None if it was.
    """

    source: Source
    height: int
    width: int
    instances: Instances
    metadata: Metadata = field(repr=False)
    error: str | None = None

    @classmethod
    def unreadable(cls, source: Source, error: str, metadata: Metadata) -> "Result":
        """The result of what could not be read: no detections, and the reason."""
        nothing = Instances((0, 0))
        nothing.pred_boxes = Boxes(torch.zeros(0, 4))
        nothing.scores = torch.zeros(0)
        nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
        return cls(source, 0, 0, nothing, metadata, error)

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names by class; None where they are not known."""
        return self.metadata.get("thing_classes") or None

    def rows(self) -> list[dict[str, Any]]:
        """The detections as rows of a table, as `csv.DictWriter` and pandas take them.

        Returns:
            one dict a detection: "source" (the file, else ""), "class_id", "class", "score", and
            the corners "x0", "y0", "x1", "y1" in pixels.
        """
        source, names = self.source if isinstance(self.source, str) else "", self.class_names
        return [
            {
                "source": source,
                "class_id": class_id,
                "class": names[class_id] if names else str(class_id),
                "score": round(score, 4),
                **{name: round(x, 2) for name, x in zip(BOX, box, strict=True)},
            }
            for box, score, class_id in zip(
                self.instances.pred_boxes.tensor.tolist(),
                self.instances.scores.tolist(),
                self.instances.pred_classes.tolist(),
                strict=True,
            )
        ]

    def to_coco(self, image_id: Any) -> list[dict[str, Any]]:
        """The detections in COCO's format for results: XYWH, masks run-length encoded.

        Args:
            image_id: of the image in the annotations that they are to be compared with.

        Returns:
            one dict a detection; its "category_id" is that of the data set where `metadata` says
            it (`thing_dataset_id_to_contiguous_id`), else the number of the class, from 0.
        """
        instances = self.instances
        if instances.has("pred_keypoints"):  # detectron2 moves them in place
            instances = Instances(instances.image_size, **instances.get_fields())
            instances.pred_keypoints = instances.pred_keypoints.clone()
        results = instances_to_coco_json(instances, image_id)
        ids = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        known = {class_id: category_id for category_id, class_id in ids.items()}
        for result in results:
            class_id = result["category_id"]
            result["category_id"] = known.get(class_id, class_id)
        return results

    def to_supervision(self) -> Any:
        """The detections as `supervision.Detections`, class names in `data["class_name"]`.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            message = "to_supervision needs supervision: pip install supervision"
            raise ImportError(message) from error
        detections = Detections.from_detectron2({"instances": self.instances})
        names = [row["class"] for row in self.rows()]
        detections.data["class_name"] = np.array(names, dtype=str)
        return detections

    def draw(self, score_threshold: float = 0.0) -> np.ndarray:
        """The image, read once more, with its detections.

        Args:
            score_threshold: detections below it are left out.

        Returns:
            BGR picture, uint8; small images come back enlarged.

        Raises:
            ValueError: the image cannot be read.
        """
        image = bgr_of(self.source)
        return draw_predictions(image, self.instances, self.metadata, score_threshold)

    def show(self, score_threshold: float = 0.0) -> Image.Image:
        """What :meth:`draw` gives as an image of Pillow: notebooks show it, `.show()` opens it."""
        return Image.fromarray(np.ascontiguousarray(self.draw(score_threshold)[:, :, ::-1]))


BOX = ("x0", "y0", "x1", "y1")
