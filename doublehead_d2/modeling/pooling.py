"""RoIAlign on all cores of a CPU."""

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor

# Parts a thread takes in turn: some RoIs are larger than others, and take longer.
_PARTS_A_THREAD = 4
# Values to pool from which threads pay: 80 RoIs of 256 x 7 x 7. Fewer are pooled before OpenMP's
# threads, awake for some milliseconds after a convolution, leave the cores.
WORTH = 1 << 20


class ParallelROIAlign(ROIAlign):
    """detectron2's `ROIAlign`, bitwise, in inference on a CPU with all of torch's threads.

    torchvision's operator takes one RoI after the other on a CPU: 0.5 s of the 3 that a detector
    takes for 1,000 RoIs on two cores.
    """

    parallel = True

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Map features N x C x H x W and RoIs R x 5 (image, XYXY) to R x C x h x w."""
        captured = torch.jit.is_tracing() or torch.compiler.is_compiling()
        other = input.device.type != "cpu" or torch.is_grad_enabled()
        if not self.parallel or captured or other:
            return super().forward(input, rois)
        shape = (len(rois), input.shape[1], *self.output_size)
        num_threads = torch.get_num_threads()
        if num_threads == 1 or math.prod(shape) < WORTH:
            return super().forward(input, rois)
        out = input.new_empty(shape)
        parts = num_threads * _PARTS_A_THREAD

        @torch.inference_mode()  # every thread has its own mode
        def pool(part: Tensor, rows: Tensor) -> None:
            rows.copy_(super(ParallelROIAlign, self).forward(input, part))

        # Threads for this call alone: a process that is forked has none of its parent's.
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(pool, rois.tensor_split(parts), out.tensor_split(parts)))
        return out


def pool_in_parallel(pooler: ROIPooler) -> None:
    """Let a pooler take its RoIs in parallel where it can, in place; others than RoIAlign stay."""
    for level, align in enumerate(pooler.level_poolers):
        if type(align) is ROIAlign:
            pooler.level_poolers[level] = ParallelROIAlign(
                align.output_size, align.spatial_scale, align.sampling_ratio, align.aligned
            )
