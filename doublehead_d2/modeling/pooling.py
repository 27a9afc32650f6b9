"""RoI features in float32, and RoIAlign on all cores of a CPU."""

import math
from queue import Empty, SimpleQueue
from threading import Thread

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor

# Parts that a thread takes at least: some RoIs are larger than others, and take longer.
_PARTS_A_THREAD = 4
# Values of a part at most. From here on (ATen's GRAIN_SIZE) torch itself would fill and copy a part
# with all threads, as many more for every thread of ours.
_PART = 1 << 15
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
        input = input.contiguous()  # once: the operator would do it for every part
        out = input.new_empty(shape)
        rows = min(len(rois) // (num_threads * _PARTS_A_THREAD), _PART // math.prod(shape[1:]))
        parts: SimpleQueue[tuple[Tensor, Tensor]] = SimpleQueue()
        for part in zip(rois.split(max(1, rows)), out.split(max(1, rows)), strict=True):
            parts.put(part)
        errors: list[BaseException] = []

        @torch.inference_mode()  # every thread has its own mode
        def pool() -> None:
            try:
                while not errors:
                    part, rows_of_part = parts.get_nowait()
                    rows_of_part.copy_(super(ParallelROIAlign, self).forward(input, part))
            except Empty:
                pass
            except BaseException as error:
                errors.append(error)

        # Threads for this call alone: a process that is forked has none of its parent's.
        threads = []
        for _ in range(num_threads - 1):
            thread = Thread(target=pool, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the limit of threads is reached, or Python is shutting down
                break
            threads.append(thread)
        pool()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return out


def pool_in_parallel(pooler: ROIPooler) -> None:
    """Let a pooler take its RoIs in parallel where it can, in place; others than RoIAlign stay."""
    for level, align in enumerate(pooler.level_poolers):
        if type(align) is ROIAlign:
            pooler.level_poolers[level] = ParallelROIAlign(
                align.output_size, align.spatial_scale, align.sampling_ratio, align.aligned
            )


def in_float32(features: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The named feature maps as poolers need them.

    RoIAlign casts boxes to the type of the features: in half precision coordinates would be up to
    0.5 px off, in bfloat16 up to 3 px.
    """
    return {name: features[name].float() for name in names}
