"""RoI features: in float32, by RoIAlign on all cores of a CPU, and at bins moved by offsets.

Shape legend: N images; R RoIs; C channels; H x W cells of a feature map, h x w bins of a RoI. Boxes
are XYXY in absolute coordinates of the (padded) network input.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign, ShapeSpec, nonzero_tuple
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
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


def levels_of(shapes: Mapping[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The maps of a backbone, their strides those of the levels that RoIs are assigned to.

    detectron2's `ROIPooler` takes the level of a map for the logarithm of its stride, and refuses
    two maps of one stride. Here the first map has the level of its stride, and each further map the
    next one. Where all strides double, or leap, they stay as they are.

    Args:
        shapes: the backbone's maps by name, finest first.
    """
    strides = [shape.stride for shape in shapes.values()]
    steps = {b / a for a, b in itertools.pairwise(strides)}
    if not (1 in steps and steps <= {1, 2}):
        return dict(shapes)
    first = strides[0]
    return {
        name: ShapeSpec(channels=shape.channels, stride=first * 2**i)
        for i, (name, shape) in enumerate(shapes.items())
    }


def pool_at_strides(pooler: ROIPooler, strides: Sequence[int]) -> None:
    """Let a pooler that was built for levels pool each map at its true stride, in place."""
    for align, stride in zip(pooler.level_poolers, strides, strict=True):
        align.spatial_scale = 1.0 / stride


class Mmdet1ROIAlign(ParallelROIAlign):
    """RoIAlign of mmdetection 1: RoIs not moved by half a cell, and of any size.

    detectron2's with `aligned` False makes RoIs at least one cell large; with True it moves them.
    """

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Map features N x C x H x W and RoIs R x 5 (image, XYXY) to R x C x h x w."""
        half = 0.5 / self.spatial_scale
        return super().forward(input, rois + rois.new_tensor([0, half, half, half, half]))


def pool_as_mmdet1(pooler: ROIPooler) -> None:
    """Let a pooler of type "ROIAlign" pool as mmdetection 1 did, in place."""
    for level, align in enumerate(pooler.level_poolers):
        pooler.level_poolers[level] = Mmdet1ROIAlign(
            align.output_size, align.spatial_scale, align.sampling_ratio, aligned=True
        )


def pool_at_offsets(
    pooler: ROIPooler,
    maps: list[Tensor],
    boxes: list[Boxes],
    offsets: Tensor,
    *,
    samples: int,
    offset_scale: float,
    legacy: bool = False,
) -> Tensor:
    """Pool RoIs from the maps that a pooler takes them from, each bin moved by its offset.

    Args:
        pooler: says which map a RoI is pooled from.
        maps: its feature maps, each N x C x H x W.
        boxes: N elements, Ri boxes each.
        offsets: R x 2 x h x w, as :func:`offset_roi_align`.
        samples, offset_scale, legacy: as :func:`offset_roi_align`.

    Returns:
        R x C x h x w.
    """
    rois = convert_boxes_to_pooler_format(boxes)
    scales = [align.spatial_scale for align in pooler.level_poolers]

    def pool(level: int, rows: Tensor | slice) -> Tensor:
        return offset_roi_align(
            maps[level],
            rois[rows],
            offsets[rows],
            spatial_scale=scales[level],
            samples=samples,
            offset_scale=offset_scale,
            legacy=legacy,
        )

    if len(maps) == 1:
        return pool(0, slice(None))
    levels = assign_boxes_to_levels(
        boxes,
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
    pooled = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], *offsets.shape[2:])
    for level in range(len(maps)):
        rows = nonzero_tuple(levels == level)[0]
        pooled.index_put_((rows,), pool(level, rows))
    return pooled


# Values that a chunk of RoIs gathers in inference at most: 4 MiB of indices and weights.
_CHUNK = 1 << 19


def offset_roi_align(
    features: Tensor,
    rois: Tensor,
    offsets: Tensor,
    *,
    spatial_scale: float,
    samples: int,
    offset_scale: float,
    legacy: bool = False,
) -> Tensor:
    """RoIAlign whose bins are each moved by an offset (TSD, Section 3.2): whole bins, rigidly.

    By default the rule is RoIAlignV2's: a bin's samples lie in the middle of its samples x samples
    cells; one that is more than a cell outside the map counts as 0. With offsets of zero this is
    RoIAlignV2 with that sampling ratio.

    As a sum of weighted rows of the map, an embedding bag for every bin, it needs no memory for the
    values at the samples, in neither pass.

    Args:
        features: N x C x H x W.
        rois: R x 5 (image, XYXY). No gradient flows to them.
        offsets: R x 2 x h x w, x first. A bin moves by offset_scale times its offset times width
            or height of the RoI.
        spatial_scale: cells of the map a pixel.
        samples: per bin and axis.
        offset_scale: γ of the paper.
        legacy: the rule of the authors' kernel (deformable position-sensitive RoI pooling): RoIs
            are rounded to whole pixels, a bin's samples lie at the upper left corners of their
            cells, those outside the map are left out of the mean.

    Returns:
        R x C x h x w, with gradients to features and offsets.
    """
    batch, channels, height, width = features.shape
    start, size = _legacy_extent(rois, spatial_scale) if legacy else _extent(rois, spatial_scale)
    rows = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    shape = (channels, *offsets.shape[2:])
    offsets = offsets.to(features.dtype)  # autocast makes them in half precision

    captured = torch.jit.is_tracing() or torch.is_grad_enabled()
    merged = not captured and features.device.type == "cpu"

    def pool(start: Tensor, size: Tensor, offsets: Tensor, images: Tensor) -> Tensor:
        shift = offsets * (offset_scale * size[:, :, None, None])  # R x 2 x h x w
        columns, column_weights = _taps(
            *(start[:, 0], size[:, 0], shift[:, 0]), width, samples, legacy, merged
        )
        lines, line_weights = _taps(
            *(start[:, 1], size[:, 1], shift[:, 1].transpose(1, 2)), height, samples, legacy, merged
        )
        lines, line_weights = lines.transpose(1, 2), line_weights.transpose(1, 2)
        indices = images[:, None, None, None] * height + lines  # R x h x w x taps
        indices = indices[..., :, None] * width + columns[..., None, :]
        weights = line_weights[..., :, None] * column_weights[..., None, :]
        bags = F.embedding_bag(
            indices.flatten(3).flatten(0, 2),
            rows,
            mode="sum",
            per_sample_weights=weights.flatten(3).flatten(0, 2),
        )
        return bags.view(-1, *shape[1:], channels).permute(0, 3, 1, 2).contiguous()

    inputs = (start, size, offsets, rois[:, 0].int())
    if captured:
        return pool(*inputs)
    chunk = max(1, _CHUNK // (math.prod(shape[1:]) * (2 * samples) ** 2))
    pooled = features.new_empty(rois.shape[0], *shape)
    # By size, so that the bins of a chunk reach over about as many cells.
    for part in size.amax(dim=1).argsort().split(chunk):
        pooled[part] = pool(*(x[part] for x in inputs))
    return pooled


def _extent(rois: Tensor, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """Upper left corners and sizes of RoIs in cells, R x 2 each; cell centres are integers."""
    start, end = rois[:, 1:3], rois[:, 3:5]
    return start * spatial_scale - 0.5, (end - start) * spatial_scale


def _legacy_extent(rois: Tensor, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """As `_extent` by the authors' kernel, which rounds the first and the last pixel of a RoI."""
    start, end = _round(rois[:, 1:3]), _round(rois[:, 3:5] - 1) + 1
    return start * spatial_scale - 0.5, ((end - start) * spatial_scale).clamp(min=0.1)


def _round(x: Tensor) -> Tensor:
    """C's round: halves away from zero, where torch.round takes the even number."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def _taps(
    start: Tensor,
    size: Tensor,
    shift: Tensor,
    length: int,
    samples: int,
    legacy: bool,
    merged: bool,
) -> tuple[Tensor, Tensor]:
    """Along one axis, the cells that the samples of each bin lie between, and their weights.

    Args:
        start, size: of the RoIs in cells, R each.
        shift: of the bins in cells, R x (bins across) x (bins along the axis).
        length: cells of the map along the axis.
        samples, legacy: as :func:`offset_roi_align`.
        merged: where several samples of the bins lie between the same cells, name each cell once.
            It halves the time on a CPU, and is not for gradients: they differ where a sample lies
            on a cell.

    Returns:
        indices and weights, each R x (bins across) x (bins along the axis) x (2 samples), or fewer
        where they are merged. The weights of a bin sum to 1, or to less where samples lie outside
        the map.
    """
    bins = shift.shape[2]
    within = torch.arange(samples, dtype=shift.dtype, device=shift.device)
    within = (within + (0.0 if legacy else 0.5)) / samples
    places = torch.arange(bins, dtype=shift.dtype, device=shift.device)
    places = (places[:, None] + within) / bins * size[:, None, None] + start[:, None, None]
    places = places[:, None] + shift[..., None]  # R x across x along x samples
    margin = 0.5 if legacy else 1.0  # beyond the centres of the outermost cells
    kept = ((places >= -margin) & (places <= length - 1 + margin)).to(shift.dtype)
    counted = kept.sum(dim=-1, keepdim=True).clamp(min=1) if legacy else samples
    places = places.clamp(0, length - 1)
    lower = places.detach().floor()
    if merged and len(places):
        first = lower[..., :1]
        span = (lower[..., -1:] - first).amax() + 2  # samples ascend
        if span < 2 * samples:  # not where a coordinate is NaN, either
            cells = first + torch.arange(int(span), dtype=shift.dtype, device=shift.device)
            weights = (1 - (places[..., None] - cells[..., None, :]).abs()).clamp(min=0)
            weights = (weights * (kept / counted)[..., None]).sum(dim=-2)
            return cells.clamp(max=length - 1).int(), weights
    upper_weight = places - lower
    weights = torch.stack([1 - upper_weight, upper_weight], dim=-1) * (kept / counted)[..., None]
    indices = torch.stack([lower, (lower + 1).clamp(max=length - 1)], dim=-1).int()
    return indices.flatten(-2), weights.flatten(-2)
