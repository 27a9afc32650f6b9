"""Keys of DetNet image classifiers: github.com/guoruoqian/DetNet_pytorch, and ours.

Of the former's files only the one that was trained on ImageNet is known here: its detectors have
another pyramid, RPN and head.
"""

from collections.abc import Iterator

from doublehead_d2.checkpoint.sources.renames import (
    BLOCKS,
    LINEAR,
    NORM,
    Rename,
    layer,
    residual_blocks,
)
from doublehead_d2.checkpoint.sources.source import Published, Settings, Source

# Files of PyTorch before 0.4 have no counters.
_COUNTER = r"\.num_batches_tracked$"
_TORCHVISION = Settings(
    input_format="RGB",
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(58.395, 57.12, 57.375),
    stride_in_1x1=False,
)
_OURS = "backbone.bottom_up"


def renames(depth: int) -> Iterator[Rename]:
    """Every key of a classifier with the first stages of a ResNet of `depth` layers."""
    yield from layer("conv1", f"{_OURS}.stem.conv1", ["weight"])
    yield from _norm("bn1", f"{_OURS}.stem.conv1.norm")
    for stage, blocks in enumerate((*BLOCKS[depth][:3], 3, 3), start=1):
        shortcut = "downsample" if stage < 4 else "extra_conv"
        ours = f"{_OURS}.res{stage + 1}"
        yield from residual_blocks(f"layer{stage}", ours, blocks, shortcut, _norm)
    yield from _dropped("fc")


def renames_of_ours(depth: int) -> Iterator[Rename]:
    """As :func:`renames`, of `modeling.build_detnet_classifier`."""
    for rename in renames(depth):
        if rename.ours is not None:
            yield rename._replace(theirs=rename.ours.removeprefix(f"{_OURS}."))
        elif rename.theirs.endswith("num_batches_tracked"):
            yield Rename(_counter_of_ours(rename.theirs, depth), None)
    yield from _dropped("linear")


def _counter_of_ours(theirs: str, depth: int) -> str:
    norm = theirs.removesuffix("num_batches_tracked")
    (ours,) = (r.ours for r in renames(depth) if r.theirs == f"{norm}running_var")
    assert ours is not None
    return ours.removeprefix(f"{_OURS}.").replace("running_var", "num_batches_tracked")


def _norm(theirs: str, ours: str) -> Iterator[Rename]:
    """detectron2's frozen norm counts no batches."""
    yield from layer(theirs, ours, NORM)
    yield Rename(f"{theirs}.num_batches_tracked", None)


def _dropped(classifier: str) -> Iterator[Rename]:
    for name in LINEAR:
        yield Rename(f"{classifier}.{name}", None)


SOURCE = Source(
    name="detnet",
    title="DetNet_pytorch",
    model="DetNet classifier",
    mark="layer5.",
    model_mark="layer4.0.extra_conv.",
    res4="layer3.",
    cls_scores=("fc",),
    box_deltas=(),
    background_boxes=0,
    agnostic_rows=None,
    renames=renames,
    published={
        "detnet/detnet59_imagenet": Published(
            file="detnet59.pth",
            depth=50,
            address="https://pan.baidu.com/s/14_ztsAKcrZGb4nnm8aCMyQ",
            direct=False,
            config="Imported/detnet_faster_rcnn_DetNet_59_FPN_1x.yaml",
            num_classes=1000,
            detector=False,
        ),
    },
    background_scores=0,
    optional=_COUNTER,
    settings=_TORCHVISION,
)
SOURCE_OF_OURS = SOURCE._replace(
    name="detnet_classifier",
    title="build_detnet_classifier",
    mark="res6.",
    model_mark="linear.",
    res4="res4.",
    cls_scores=("linear",),
    renames=renames_of_ours,
    published={},
)
