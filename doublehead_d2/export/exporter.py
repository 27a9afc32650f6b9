"""A config, its weights and a format in, a file that agrees with the model out."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

import doublehead_d2
from doublehead_d2.data.resize import build_test_resize
from doublehead_d2.data.shapes.easy import draw_image
from doublehead_d2.export.checks import check_export
from doublehead_d2.export.detector import adapt, output_names
from doublehead_d2.export.formats import FORMATS, Run
from doublehead_d2.export.parity import Parity
from doublehead_d2.files import whole_file
from doublehead_d2.inference import Predictor

# Height and width of the drawn pictures, each another shape once it is padded
_DRAWN = ((128, 96), (80, 128), (128, 128), (60, 128))


class Exporter:
    """Writes a detector as one file, and leaves it only if it detects what the model detects.

    Attributes:
        predictor: the model in PyTorch.
        info: what the file carries as JSON: `class_names` in the order of classes, `short_edge`,
            `max_size` and `resize_rule` of the resize (INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST,
            INPUT.RESIZE_RULE), `score_threshold` below which nothing is detected, `outputs` by
            name and the versions that wrote it.
    """

    def __init__(self, cfg: CfgNode, file_format: str) -> None:
        """
        Args:
            cfg: as of `Predictor`. ONNX is made on the CPU and runs anywhere, TorchScript on
                MODEL.DEVICE and runs there.
            file_format: one of `FORMATS`.

        Raises:
            ValueError: as `Predictor` and :func:`check_export`.
        """
        cfg = cfg.clone()
        cfg.defrost()
        if file_format == "onnx":
            cfg.MODEL.DEVICE = "cpu"
        check_export(cfg, file_format)
        self.predictor = Predictor(cfg)
        self.info: dict[str, Any] = {
            "class_names": self._class_names(),
            "short_edge": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "resize_rule": cfg.INPUT.RESIZE_RULE,
            "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "outputs": output_names(cfg),
            "written_by": f"doublehead_d2 {doublehead_d2.__version__}, torch {torch.__version__}",
        }
        self._format = FORMATS[file_format]
        self._resize = build_test_resize(cfg)

    def export(self, path: str, pictures: Iterable[tuple[str, np.ndarray]] = ()) -> Parity:
        """Write the file, whole or not at all.

        Args:
            path: a file that is there is replaced.
            pictures: names and BGR images, H x W x 3 uint8, that it is compared with the model on,
                beside :func:`drawn_pictures`.

        Returns:
            how far the two differ.

        Raises:
            ValueError: the model cannot be exported, or the file does not agree with it; nothing is
                left then, and what was there before stays.
        """
        with whole_file(path) as temporary:
            adapter = adapt(self.predictor.model, self.predictor.cfg.INPUT.FORMAT)
            try:
                info = json.dumps(self.info)
                self._format.write(adapter, self.info["outputs"], info, temporary)
            except OSError:
                raise
            except Exception as error:  # of tracers and exporters, whatever it is
                raise ValueError(f"the model cannot be exported: {_first_line(error)}") from error
            return self._verify(self._format.load(temporary), pictures)

    def _verify(self, run: Run, pictures: Iterable[tuple[str, np.ndarray]]) -> Parity:
        parity = Parity()
        for name, image in (*drawn_pictures(), *pictures):
            try:
                parity.compare(*self._both(run, image))
            except Exception as error:  # the file does not even run
                raise ValueError(
                    f"the exported model does not agree on {name}: {_first_line(error)}"
                ) from error
        return parity

    def _both(self, run: Run, image: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
        """What the model and the file detect in a BGR image."""
        resized = self._resize.get_transform(image).apply_image(image)[:, :, ::-1]
        outputs = run(np.ascontiguousarray(resized), np.array(image.shape[:2]))
        instances = self.predictor([image])[0]["instances"].to("cpu")
        return instances, dict(zip(self.info["outputs"], outputs, strict=True))

    def _class_names(self) -> list[str]:
        """Those of the model's data; numbers where they are not known."""
        number = self.predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        names = self.predictor.metadata.get("thing_classes")
        return list(names) if names and len(names) == number else [str(i) for i in range(number)]


def drawn_pictures() -> Iterator[tuple[str, np.ndarray]]:
    """Four pictures of shapes that differ in size, and one of noise, each with its name.

    None is flat: equal scores, of which rounding says who is first, are no disagreement.
    """
    for seed, (height, width) in enumerate(_DRAWN):
        image, _ = draw_image(np.random.default_rng(seed))
        yield f"the drawn picture {height}x{width}", image[:height, :width]
    noise = np.random.default_rng(len(_DRAWN)).integers(0, 256, (100, 90, 3), dtype=np.uint8)
    yield "the drawn picture of noise", noise


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
