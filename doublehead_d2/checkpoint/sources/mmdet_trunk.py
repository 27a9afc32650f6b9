"""Keys of backbone, FPN and RPN, which all versions of mmdetection name alike."""

from collections.abc import Iterator

from doublehead_d2.checkpoint.sources.renames import LINEAR, NORM, Rename, layer, resnet_stages


def trunk(depth: int) -> Iterator[Rename]:
    """Every key of ResNet, FPN and RPN, with a ResNet of `depth` layers.

    Tensors stay as they are: frozen batch norms have detectron2's epsilon.
    """
    yield from layer("backbone.conv1", "backbone.bottom_up.stem.conv1", ["weight"])
    yield from _frozen_norm("backbone.bn1", "backbone.bottom_up.stem.conv1.norm")
    yield from resnet_stages(depth, "backbone", _frozen_norm)
    for i in range(4):
        yield from layer(f"neck.lateral_convs.{i}.conv", f"backbone.fpn_lateral{i + 2}", LINEAR)
    for i in range(4):
        yield from layer(f"neck.fpn_convs.{i}.conv", f"backbone.fpn_output{i + 2}", LINEAR)
    rpn = "proposal_generator.rpn_head"
    yield from layer("rpn_head.rpn_conv", f"{rpn}.conv", LINEAR)
    yield from layer("rpn_head.rpn_cls", f"{rpn}.objectness_logits", LINEAR)
    yield from layer("rpn_head.rpn_reg", f"{rpn}.anchor_deltas", LINEAR)


def _frozen_norm(theirs: str, ours: str) -> Iterator[Rename]:
    """detectron2's frozen norm counts no batches."""
    yield from layer(theirs, ours, NORM)
    yield Rename(f"{theirs}.num_batches_tracked", None)
