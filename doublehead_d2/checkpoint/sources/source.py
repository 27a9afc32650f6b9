"""What is known of a code base whose checkpoints are understood."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from doublehead_d2.checkpoint.sources.renames import Rename

PREFIX = "doublehead://"  # of published models, for MODEL.WEIGHTS
COCO_CLASSES = 80


class Settings(NamedTuple):
    """How a backbone was trained, where nothing in its weights shows it."""

    input_format: str  # INPUT.FORMAT
    pixel_mean: tuple[float, float, float]  # MODEL.PIXEL_MEAN
    pixel_std: tuple[float, float, float]  # MODEL.PIXEL_STD
    stride_in_1x1: bool  # MODEL.RESNETS.STRIDE_IN_1X1


class Published(NamedTuple):
    """A checkpoint that others published."""

    file: str  # name of the original file
    depth: int  # of the ResNet
    address: str
    direct: bool  # whether `address` gives the file, not a page to click through
    config: str  # name in the zoo
    masks: bool = False  # whether it has a mask head
    num_classes: int = COCO_CLASSES
    detector: bool = True  # False: a backbone, and the rest of `config` starts anew


class Source(NamedTuple):
    """A code base whose checkpoints are understood: all that this package knows of its files."""

    name: str  # as `convert_checkpoint` takes it
    title: str  # the code base, for people
    model: str  # the system that is converted, for people
    mark: str  # beginning of keys that only its models have
    model_mark: str  # beginning of keys that of its models only that system has
    # what stands before the number of a block in the keys of its ResNet's res4; None: it has none
    res4: str | None
    # layers with a row a class, and one of background; none where it has no such layer
    cls_scores: tuple[str, ...]
    box_deltas: tuple[str, ...]  # layers with 4 rows a class
    background_boxes: int  # how many of the classes with boxes are background
    agnostic_rows: int | None  # of box_deltas if the same for all classes; None: never the same
    renames: Callable[[int], Iterator[Rename]]  # every key of a model, by depth of its ResNet
    published: Mapping[str, Published]  # by name, without `PREFIX`
    # every key of the mask head, where models with one are converted, too
    mask_renames: Callable[[], Iterable[Rename]] = tuple
    # what of its models is not converted, for people, by a pattern of keys that only such have
    refused: Mapping[str, str] = MappingProxyType({})
    # how many rows of `cls_scores` are background
    background_scores: int = 1
    # a pattern of keys that some of its files lack
    optional: str | None = None
    # how its backbones were trained, for a warning where a model is set otherwise
    settings: Settings | None = None
    config: str | None = None  # name in the zoo, where no published model says it
