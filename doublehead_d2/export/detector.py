"""A detector as a function of tensors, which can be traced.

Shape legend: H x W the picture as it reaches the model, resized but not padded; R detections.
"""

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.modeling.postprocessing import detector_postprocess
from torch import Tensor, nn

INPUTS = ("image", "size")
# An example of a size that no padding is a multiple of, so that none is taken for granted.
_EXAMPLE = (97, 131)


def output_names(cfg: CfgNode) -> list[str]:
    """What :func:`detect` returns, in order."""
    names = ["boxes", "scores", "classes"]
    return names + ["masks"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON


def detect(model: Any, image: Tensor, size: Tensor, *, image_format: str) -> tuple[Tensor, ...]:
    """Detections in one picture.

    Args:
        model: a `GeneralizedRCNN` in evaluation.
        image: H x W x 3, RGB, uint8.
        size: height and width that boxes are to refer to, those of the picture before it was
            resized; int64.
        image_format: INPUT.FORMAT, the order of channels that the model was trained on.

    Returns:
        boxes R x 4 (XYXY in pixels of a picture of that size), scores R, classes R (int64); with a
        mask head masks R x M x M, probabilities in cells of the box; with a keypoint head keypoints
        R x K x 3 (x, y, score).
    """
    channels = image.permute(2, 0, 1)
    if image_format == "BGR":
        channels = channels.flip(0)
    results = model.inference([{"image": channels}], do_postprocess=False)[0]
    if results.has("pred_masks"):  # pasted into the picture they would be R x height x width
        results.mask_probs = results.pred_masks[:, 0]
        results.remove("pred_masks")
    results = detector_postprocess(results, size[0], size[1])
    outputs = (results.pred_boxes.tensor, results.scores, results.pred_classes)
    others = ("mask_probs", "pred_keypoints")
    return outputs + tuple(results.get(name) for name in others if results.has(name))


def adapt(model: nn.Module, image_format: str) -> TracingAdapter:
    """detectron2's adapter around :func:`detect`, with an example to trace."""
    image = torch.randint(256, (*_EXAMPLE, 3), generator=torch.Generator().manual_seed(0))
    inputs = (image.to(torch.uint8), torch.tensor(_EXAMPLE))
    return TracingAdapter(model, inputs, partial(detect, image_format=image_format)).eval()


def trace(adapter: TracingAdapter) -> torch.jit.ScriptModule:
    """The trace of an adapter, which runs without Python's part of it."""
    with torch.no_grad(), quiet():
        # What a second run would check is compared on pictures of other sizes.
        return torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says of tracing: of constants, and that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
