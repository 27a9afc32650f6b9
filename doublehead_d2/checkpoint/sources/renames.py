"""What the rename tables of the sources are made of.

A table lists every key of a checkpoint, what is dropped included. The tables hold the only foreign
key names of this package.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Residual blocks of the stages res2 to res5, by depth of the ResNet.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
NORM = ("weight", "bias", "running_mean", "running_var")
COUNTED_NORM = (*NORM, "num_batches_tracked")
LINEAR = ("weight", "bias")

Change = Callable[[Tensor], Tensor]


class Rename(NamedTuple):
    """One key of a source."""

    theirs: str
    ours: str | None  # None: dropped
    change: Change | None = None  # what happens to the tensor


def layer(
    theirs: str, ours: str, names: Sequence[str], changes: Mapping[str, Change] | None = None
) -> Iterator[Rename]:
    """The tensors `names` of one layer; `changes` by name."""
    for name in names:
        yield Rename(f"{theirs}.{name}", f"{ours}.{name}", (changes or {}).get(name))


def resnet_stages(
    depth: int, theirs: str, norm: Callable[[str, str], Iterator[Rename]]
) -> Iterator[Rename]:
    """Stages `<theirs>.layer1` to `4`, whose blocks mmdetection and the authors name alike.

    Args:
        depth: one of `BLOCKS`.
        theirs: prefix of the stages.
        norm: makes the renames of a norm from its two prefixes.
    """
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        ours = f"backbone.bottom_up.res{stage + 1}"
        yield from residual_blocks(f"{theirs}.layer{stage}", ours, blocks, "downsample", norm)


def residual_blocks(
    theirs: str,
    ours: str,
    count: int,
    shortcut: str,
    norm: Callable[[str, str], Iterator[Rename]],
) -> Iterator[Rename]:
    """The bottleneck blocks of one stage, the first with a projection on its shortcut.

    Args:
        theirs, ours: prefixes of the stage.
        count: of its blocks.
        shortcut: their name of the projection.
        norm: makes the renames of a norm from its two prefixes.
    """
    for block in range(count):
        their_block, our_block = f"{theirs}.{block}", f"{ours}.{block}"
        if block == 0:
            yield from layer(f"{their_block}.{shortcut}.0", f"{our_block}.shortcut", ["weight"])
            yield from norm(f"{their_block}.{shortcut}.1", f"{our_block}.shortcut.norm")
        for i in (1, 2, 3):
            yield from layer(f"{their_block}.conv{i}", f"{our_block}.conv{i}", ["weight"])
            yield from norm(f"{their_block}.bn{i}", f"{our_block}.conv{i}.norm")


def background_last(rows: Tensor) -> Tensor:
    """Rows of background, class 1, ..., class K to class 1, ..., class K, background."""
    return torch.cat([rows[1:], rows[:1]])


def without_background_box(rows: Tensor) -> Tensor:
    """4 (K + 1) rows, background first, to 4K; class-agnostic: 8 rows to the last 4."""
    return rows[4:].clone()
