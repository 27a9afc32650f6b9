"""A predictor for SAHI's sliced inference (https://github.com/obss/sahi), which is optional.

SAHI cuts a large picture into slices that overlap, and joins what is detected in them. It brings a
class for detectron2's models; what differs here is that a `Predictor` runs them: slices in batches,
resized as in the evaluation, with any weights that MODEL.WEIGHTS takes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from doublehead_d2.inference.display import display_threshold
from doublehead_d2.inference.predictor import Predictor

try:
    from sahi.models.detectron2 import Detectron2DetectionModel
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
except ImportError as error:
    raise ImportError(f"sliced inference needs SAHI ({error}): pip install sahi") from error


class SahiDetectionModel(Detectron2DetectionModel):
    """SAHI's model of detectron2, run by a `Predictor`; for `sahi.predict`."""

    def __init__(self, predictor: Predictor, *, confidence_threshold: float | None = None) -> None:
        """
        Args:
            predictor: what detects, in slices and in whole pictures.
            confidence_threshold: detections below it are left out; None: those that pictures do
                not show either, see :func:`display_threshold`.
        """
        if confidence_threshold is None:
            confidence_threshold = display_threshold(predictor.model)
        names = predictor.metadata.get("thing_classes")
        if names is None:
            names = [str(index) for index in range(predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        super().__init__(
            model=predictor,
            device=predictor.cfg.MODEL.DEVICE,
            confidence_threshold=confidence_threshold,
            category_mapping={str(index): name for index, name in enumerate(names)},
        )

    def set_model(self, model: Predictor, **kwargs: Any) -> None:
        """Have a predictor detect; SAHI calls it."""
        self.model = model

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect in an image, H x W x 3 RGB uint8."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Detect in images, H x W x 3 RGB uint8, at once."""
        self._original_predictions = self.model([image[:, :, ::-1] for image in images])

    def _create_object_prediction_list_from_original_predictions(
        self,
        shift_amount_list: Any = None,
        full_shape_list: Any = None,
    ) -> None:
        """As SAHI's, which knows one image at a time.

        Args:
            shift_amount_list: x and y of each slice's corner in the picture, or of the only one.
            full_shape_list: height and width of the picture, for each slice or for the only one.
        """
        outputs = self._original_predictions
        shifts = fix_shift_amount_list(shift_amount_list or [0, 0])
        shapes: Sequence[Any] = fix_full_shape_list(full_shape_list) or [None] * len(outputs)
        found: list[Any] = []
        for output, shift, shape in zip(outputs, shifts, shapes, strict=True):
            self._original_predictions = output
            super()._create_object_prediction_list_from_original_predictions(
                [shift], None if shape is None else [shape]
            )
            found += self._object_prediction_list_per_image or []
        self._original_predictions, self._object_prediction_list_per_image = outputs, found
