"""Config and weights in, detections out, a batch of images at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.config import check_model, fall_back_to_cpu
from doublehead_d2.data.resize import build_test_resize


class Predictor:
    """`DefaultPredictor` for batches: resizes, runs the model once, scales the results back.

    Images of one call are padded to a common size, so a detection at the border of a smaller image
    may differ slightly from what the image alone gives.

    Attributes:
        cfg: a copy of the config.
        model: the model in evaluation mode, with MODEL.WEIGHTS loaded.
        metadata: metadata of the first test data set (`thing_classes` if known).
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: e.g. from `model_zoo.get_config`; INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST and
                INPUT.FORMAT and INPUT.RESIZE_RULE say how images reach the model; MODEL.WEIGHTS
                is a path, URL or name, of a published model's original file, too.

        Raises:
            ValueError: another INPUT.FORMAT, a config that no model can be built from, or weights
                that cannot be loaded.
        """
        self.cfg = cfg.clone()
        self.cfg.defrost()
        fall_back_to_cpu(self.cfg)
        if self.cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is '{self.cfg.INPUT.FORMAT}'; allowed: 'BGR', 'RGB'")
        check_model(self.cfg)
        self._resize = build_test_resize(self.cfg)
        self.model = build_model(self.cfg).eval()
        DoubleHeadCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS)
        test_sets = self.cfg.DATASETS.TEST
        self.metadata = MetadataCatalog.get(test_sets[0] if test_sets else "__unused")

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Detect objects.

        Args:
            images: BGR images, H x W x 3 uint8 0-255, as `cv2.imread` gives them; any sizes.

        Returns:
            one dict an image in detectron2's format; "instances" has `pred_boxes` (XYXY in pixels
            of the given image), `scores` and `pred_classes`.

        Raises:
            TypeError, ValueError: what is wrong with which image.
        """
        if isinstance(images, np.ndarray):
            raise TypeError("Predictor takes a list of images; for one image call it with [image]")
        inputs = [self._input(image, i) for i, image in enumerate(images)]
        return self.model(inputs) if inputs else []

    def _input(self, image: np.ndarray, index: int) -> dict[str, Any]:
        if not isinstance(image, np.ndarray):
            raise TypeError(f"image {index} is {type(image).__name__}; allowed: numpy.ndarray")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"image {index} has shape {image.shape} and type {image.dtype}; "
                "allowed: H x W x 3 (BGR), uint8"
            )
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        resized = self._resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}
