"""Ways to run the conv-head in inference, side by side: what each saves, and what it changes."""

import copy
import logging
import statistics
from collections.abc import Callable, Sequence

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from doublehead_d2 import model_zoo
from doublehead_d2.benchmark.timing import seconds_in_turn
from doublehead_d2.modeling import DoubleHeadConvHead
from doublehead_d2.modeling.blocks import NonLocalBlock
from doublehead_d2.modeling.folding import fold_batch_norms

logger = logging.getLogger(__name__)

LAYOUTS = {
    "authors": "COCO-Detection/double_head_rcnn_R_50_FPN_paper_1x.yaml",
    "mmdet": "Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml",
}
REFERENCE = "whole"
WAYS = (
    REFERENCE,  # all RoIs at once
    "chunks of 16",
    "chunks of 32",  # as shipped, on a CPU; those below work in them, too
    "chunks of 64",
    "folded",  # batch norms into convolutions
    "channels last",
    "folded, channels last",  # CONV_HEAD.FOLD_BN
    "bfloat16",  # autocast
    "float16",
    "compiled",  # torch.compile, all RoIs at once
)


def build_conv_head(layout: str) -> DoubleHeadConvHead:
    """The conv-head of a layout, in evaluation mode, with random weights and statistics."""
    cfg = model_zoo.read_config(model_zoo.get_config_file(LAYOUTS[layout]))
    torch.manual_seed(0)
    head = DoubleHeadConvHead(cfg, ShapeSpec(channels=256, height=7, width=7)).eval()
    for name, buffer in head.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    for module in head.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.normal_(module.out.weight, std=0.01)  # it starts at 0
    return head


def time_ways(
    head: DoubleHeadConvHead, x: Tensor, ways: Sequence[str], repetitions: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each way, all of them in turn, after a round of warm-up.

    Args:
        head: in evaluation mode, on the device of `x`.
        x: RoI features R x C x H x W.
        ways: some of `WAYS`.
        repetitions: timed rounds.

    Returns:
        by way: "seconds", "ratio" to those of `REFERENCE`, and "difference", the largest from its
        output, relative to the largest value there. "compiled" is left out, with a warning, where
        torch cannot compile: without a compiler.
    """
    runs = {way: _way(way, head) for way in dict.fromkeys([REFERENCE, *ways])}
    with torch.no_grad():
        outputs = {}
        for way in list(runs):
            try:
                outputs[way] = runs[way](x).float()
            except Exception as error:
                if way != "compiled":
                    raise
                logger.warning("torch.compile: %s", str(error).splitlines()[0])
                del runs[way]
        seconds = seconds_in_turn(lambda way, _: runs[way](x), runs, repetitions, x.device)
    expected = outputs[REFERENCE]
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        way: {
            "seconds": medians[way],
            "ratio": medians[way] / medians[REFERENCE],
            "difference": ((output - expected).abs().max() / expected.abs().max()).item(),
        }
        for way, output in outputs.items()
    }


def _way(way: str, head: DoubleHeadConvHead) -> Callable[[Tensor], Tensor]:
    head = copy.deepcopy(head)
    if way in (REFERENCE, "compiled"):
        head.cpu_chunk = 1 << 30
    elif way.startswith("chunks of"):
        head.cpu_chunk = int(way.split()[-1])
    elif way == "folded":
        head.blocks = fold_batch_norms(head.blocks)
    elif way == "channels last":
        head = head.to(memory_format=torch.channels_last)
    elif way == "folded, channels last":
        head.fold_bn = True
    else:
        assert way in ("bfloat16", "float16"), f"unknown way '{way}'"
        device, dtype = next(head.parameters()).device.type, getattr(torch, way)

        def under_autocast(x: Tensor) -> Tensor:
            with torch.autocast(device, dtype):
                return head(x)

        return under_autocast
    return torch.compile(head) if way == "compiled" else head
