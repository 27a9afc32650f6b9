"""Config and weights in, detections out, a batch of images at a time."""

import contextlib
import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.config import check_model, fall_back_to_cpu
from doublehead_d2.config.shared import check_between, check_int, check_word
from doublehead_d2.data.resize import build_test_resize
from doublehead_d2.inference.batches import in_groups
from doublehead_d2.inference.display import display_threshold
from doublehead_d2.inference.images import Source, bgr_of, checked
from doublehead_d2.inference.results import Result
from doublehead_d2.inference.sources import ahead, expand

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Batches that a stream may hold, so that images of a rare size find company.
WINDOW = 4


class _Image(NamedTuple):
    """An image of a stream as it reaches the model, or why it does not."""

    source: Source
    size: tuple[int, int] = (0, 0)  # (height, width) before it is resized
    pixels: torch.Tensor | None = None  # 3 x H x W, uint8
    error: str = ""


class Predictor:
    """`DefaultPredictor` for batches: resizes, runs the model once, scales the results back.

    Only images that are padded to the same size share a batch, so that what is detected in an image
    depends on none of the others.

    Attributes:
        cfg: a copy of the config.
        model: the model in evaluation mode, with MODEL.WEIGHTS loaded.
        metadata: metadata of the first test data set; its `thing_classes` are the class names, if
            they are known.
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
        self.metadata = _metadata(self.cfg)

    @property
    def display_threshold(self) -> float:
        """The score from which detections are shown to people; evaluation takes lower ones."""
        return display_threshold(self.model)

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
        prepared = []
        for index, image in enumerate(images):
            if not isinstance(image, np.ndarray):
                raise TypeError(f"image {index} is {type(image).__name__}; allowed: numpy.ndarray")
            prepared.append(self._prepare(image, checked(image, f"image {index}")))
        all_of_a_size, number = len(prepared) + 1, len(prepared) + 1
        keyed = ((self._padded_size(image), image) for image in prepared)
        return list(in_groups(keyed, self._run, all_of_a_size, number))

    def stream(
        self,
        sources: Any,
        *,
        batch_size: int = 8,
        score_threshold: float | None = None,
        classes: Collection[str | int] | None = None,
        precision: str | None = None,
    ) -> Iterator[Result]:
        """Detect objects in as many images as there are: memory stays what a few batches take.

        Args:
            sources: one or an iterable of files, patterns, folders, arrays (BGR, H x W x 3 uint8)
                and images of Pillow, as `inference.sources.expand` takes them. A thread reads a
                batch ahead.
            batch_size: the most images that the model is given at a time.
            score_threshold: detections below it are left out; by default there are all that the
                model gives, as in evaluation.
            classes: names or numbers of the classes to keep; by default all.
            precision: "bfloat16" or "float16" to run the model under autocast; on a CPU float16 is
                many times slower than float32.

        Yields:
            one result an image, in the order given; of what cannot be read, too, with its `error`.

        Raises:
            ValueError: an option that is not allowed, before anything is read.
            TypeError: a source of another type, when it is its turn.
        """
        check_int("batch_size", batch_size, 1)
        if score_threshold is not None:
            check_between("score_threshold", score_threshold, 0, 1)
        if precision is not None:
            check_word("precision", precision, tuple(PRECISIONS))
        keep = None if classes is None else self._class_ids(classes)
        return self._stream(expand(sources), batch_size, score_threshold or 0.0, keep, precision)

    def _stream(
        self,
        sources: Iterable[Source],
        batch_size: int,
        threshold: float,
        keep: torch.Tensor | None,
        precision: str | None,
    ) -> Iterator[Result]:
        def run(images: list[_Image]) -> list[Result]:
            outputs = self._run(images, precision)
            return [
                Result(
                    image.source,
                    *image.size,
                    _selected(output["instances"], threshold, keep),
                    self.metadata,
                )
                for image, output in zip(images, outputs, strict=True)
            ]

        def keyed() -> Iterator[tuple[Any, Any]]:
            for image in ahead(self._read, sources, batch_size):
                if image.pixels is None:
                    yield None, Result.unreadable(image.source, image.error, self.metadata)
                else:
                    yield self._padded_size(image), image

        return in_groups(keyed(), run, batch_size, WINDOW * batch_size)

    def _read(self, source: Source) -> _Image:
        if isinstance(source, str) and os.path.isdir(source):  # what is left of it
            return _Image(source, error=f"{source}: a folder without images")
        try:
            return self._prepare(source, bgr_of(source))
        except ValueError as error:
            return _Image(source, error=str(error))

    def _prepare(self, source: Source, image: np.ndarray) -> _Image:
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        resized = self._resize.get_transform(image).apply_image(image)
        pixels = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return _Image(source, (height, width), pixels)

    def _padded_size(self, image: _Image) -> tuple[int, int]:
        """(height, width) to which `ImageList.from_tensors` pads an image alone."""
        assert image.pixels is not None
        backbone = getattr(self.model, "backbone", None)
        divisor = getattr(backbone, "size_divisibility", 0)
        # Newer detectron2 asks here, too.
        constraints = getattr(backbone, "padding_constraints", None) or {}
        divisor = max(constraints.get("size_divisibility", divisor), 1)
        height, width = image.pixels.shape[1:]
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def _run(self, images: Sequence[_Image], precision: str | None = None) -> list[dict[str, Any]]:
        inputs = [
            {"image": image.pixels.float(), "height": image.size[0], "width": image.size[1]}
            for image in images
            if image.pixels is not None
        ]
        device = torch.device(self.cfg.MODEL.DEVICE).type
        autocast: Any = contextlib.nullcontext()
        if precision is not None:
            autocast = torch.autocast(device, dtype=PRECISIONS[precision])
        with torch.no_grad(), autocast:
            return self.model(inputs)

    def _class_ids(self, classes: Collection[str | int]) -> torch.Tensor:
        names = list(self.metadata.get("thing_classes") or ())
        found = []
        for wanted in [classes] if isinstance(classes, str) else classes:
            if isinstance(wanted, str):
                if wanted not in names:
                    near = difflib.get_close_matches(wanted, names) or names[:20] or "numbers"
                    raise ValueError(f"classes has {wanted!r}; allowed: names such as {near}")
                found.append(names.index(wanted))
            else:
                check_int("classes", wanted, 0, len(names) - 1 if names else None)
                found.append(wanted)
        return torch.tensor(found, dtype=torch.int64)


def _metadata(cfg: CfgNode) -> Metadata:
    """Of the first test data set, or with the class names that the config carries."""
    test_sets = cfg.DATASETS.TEST
    metadata = MetadataCatalog.get(test_sets[0]) if test_sets else Metadata()
    if not metadata.get("thing_classes") and cfg.DATASETS.CLASS_NAMES:
        metadata = Metadata(thing_classes=list(cfg.DATASETS.CLASS_NAMES))
    return metadata


def _selected(instances: Instances, threshold: float, keep: torch.Tensor | None) -> Instances:
    """Detections on the CPU in float32, those of low scores and other classes left out."""
    instances = instances.to("cpu")
    # Under autocast they may be of half precision, which few tools take.
    instances.scores = instances.scores.float()
    instances.pred_boxes = Boxes(instances.pred_boxes.tensor.float())
    chosen = instances.scores >= threshold
    if keep is not None:
        chosen &= torch.isin(instances.pred_classes, keep)
    return instances[chosen]
