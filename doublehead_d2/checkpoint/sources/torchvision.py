"""Keys of torchvision's VGG16 (torchvision.models.vgg16), a classifier of ImageNet."""

from collections.abc import Iterator

from doublehead_d2.checkpoint.sources.renames import LINEAR, Rename, layer
from doublehead_d2.checkpoint.sources.source import Source

# Places of the convolutions in `features`, by stage
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def renames(depth: int) -> Iterator[Rename]:
    """Every key; there is one depth.

    fc6 and fc7 flatten RoI features as detectron2's fc-head does. fc8 tells ImageNet's classes and
    is dropped.
    """
    for stage, places in enumerate(CONVOLUTIONS, 1):
        for number, place in enumerate(places, 1):
            ours = f"backbone.conv{stage}.conv{number}"
            yield from layer(f"features.{place}", ours, LINEAR)
    yield from layer("classifier.0", "roi_heads.box_head.fc1", LINEAR)
    yield from layer("classifier.3", "roi_heads.box_head.fc2", LINEAR)
    for name in LINEAR:
        yield Rename(f"classifier.6.{name}", None)


SOURCE = Source(
    name="torchvision",
    title="torchvision",
    model="VGG16",
    mark="features.",
    model_mark="features.28.",
    res4=None,
    cls_scores=(),
    box_deltas=(),
    background_boxes=0,
    agnostic_rows=None,
    renames=renames,
    published={},
    refused={r"^features\.1\.running_mean$": "a VGG with batch norms"},
    config="COCO-Detection/grcn_VGG_16_1x.yaml",
)
