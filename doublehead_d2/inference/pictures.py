"""Pictures of what a detector says: predictions, each head alone, ground truth beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from torch import nn

from doublehead_d2.config.checks import heads_with_modes
from doublehead_d2.evaluation.modes import find_heads, score_modes
from doublehead_d2.inference.display import ONE_HEAD_THRESHOLD, Displayed, select_for_display
from doublehead_d2.inference.predictor import Predictor
from doublehead_d2.visualize import draw_ground_truth, draw_predictions, side_by_side

# Ways to score in which one head is heard, as `scoring_modes` names them, and their titles
ALONE = {"reg_head": "regression head alone", "cls_head": "classification head alone"}
BOTH = "both heads"


class Painter:
    """Selects what people are shown of an image's detections, and draws it."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        heads: bool = False,
    ) -> None:
        """
        Args:
            predictor: whose detections they are.
            score_threshold: the lowest score to show; by default what suits the model, and a head
                alone 0.5.
            nms_threshold: as `select_for_display`.
            heads: draw what each head alone and both say, from left to right (Figures A.4 and A.5
                of the Double-Head paper).

        Raises:
            ValueError: `heads` for a model none of whose heads detects alone.
        """
        self._model = predictor.model
        self._metadata: Metadata = predictor.metadata
        self._given = score_threshold
        self._nms_threshold = nms_threshold
        self.threshold = predictor.display_threshold if score_threshold is None else score_threshold
        self._modes = heads_alone(self._model) if heads else {}
        scoring = find_heads(self._model).scoring if heads else None
        self._configured = next((i for i, m in enumerate(self._modes.values()) if m == scoring), 0)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Within the context, the model says what is drawn."""
        if not self._modes:
            yield
            return
        with score_modes(self._model, self._modes):
            yield

    def configured(self, instances: Instances) -> Instances:
        """Of detections made within :meth:`scoring` those that the model is configured to give."""
        return _of_mode(instances, self._configured) if self._modes else instances

    def select(self, instances: Instances) -> Displayed:
        """Which of :meth:`configured` are shown."""
        return select_for_display(instances, self.threshold, self._nms_threshold)

    def paint(
        self, image: np.ndarray, instances: Instances, record: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Draw the detections, beside the ground truth where it is known.

        Args:
            image: BGR, H x W x 3 uint8.
            instances: all that the model gave within :meth:`scoring`.
            record: detectron2's; with "annotations" they are drawn on the left.

        Returns:
            BGR picture, uint8.
        """
        columns = {}
        if record and "annotations" in record:
            columns["ground truth"] = draw_ground_truth(
                image, _as_drawn(record, instances), self._metadata
            )
        if not self._modes:
            columns["predictions"] = self._draw(image, instances, self.threshold)
        for index, title in enumerate(self._modes):
            threshold = self.threshold
            if self._given is None and title != BOTH:
                threshold = ONE_HEAD_THRESHOLD
            columns[title] = self._draw(image, _of_mode(instances, index), threshold)
        if len(columns) == 1:
            return columns["predictions"]
        return side_by_side(list(columns.values()), list(columns))

    def _draw(self, image: np.ndarray, instances: Instances, threshold: float) -> np.ndarray:
        shown = select_for_display(instances, threshold, self._nms_threshold).instances
        return draw_predictions(image, shown, self._metadata, score_threshold=0.0)


def heads_alone(model: nn.Module) -> dict[str, Any]:
    """The ways to score in which one head is heard, and the one in which both are, by title.

    Raises:
        ValueError: no head of the model detects alone.
    """
    heads: Any = getattr(model, "roi_heads", None)
    if not hasattr(heads, "scoring_modes"):
        raise ValueError(
            f"--heads: MODEL.ROI_HEADS.NAME is '{type(heads).__name__}', whose heads do not detect "
            f"alone; allowed: {heads_with_modes()}"
        )
    known = heads.scoring_modes()
    modes = {title: known[name] for name, title in ALONE.items() if name in known}
    if not modes:
        raise ValueError(
            "--heads: each head of this model learned one task alone (λ is 1); allowed: models "
            "with a head that learned both, as Double-Head-Ext"
        )
    both = heads.scoring
    if both in modes.values():
        both = known.get("fused", known.get("unfused"))
    return modes if both is None else {**modes, BOTH: both}


def _of_mode(instances: Instances, index: int) -> Instances:
    chosen = instances[instances.modes == index]
    chosen.remove("modes")
    return chosen


def _as_drawn(record: dict[str, Any], instances: Instances) -> dict[str, Any]:
    """A record without outlines where the detections have none: they would only hide boxes."""
    if instances.has("pred_masks"):
        return record
    boxes = [{k: v for k, v in a.items() if k != "segmentation"} for a in record["annotations"]]
    return {**record, "annotations": boxes}
