"""A code base a file: its keys, its renames, its published models. The only foreign key names."""

from doublehead_d2.checkpoint.sources import (
    detnet,
    maskrcnn_benchmark,
    mmdet,
    torchvision,
    tsd,
)

# In the order in which they are asked whether a file is theirs; a further one is a line here.
SOURCES = {
    source.name: source
    for source in (
        mmdet.SOURCE,
        maskrcnn_benchmark.SOURCE,
        tsd.SOURCE,
        torchvision.SOURCE,
        detnet.SOURCE,
        detnet.SOURCE_OF_OURS,
    )
}
