"""Register the built-in shapes data sets with detectron2, in the manner of its own data sets.

Importing this module registers `shapes_{train,val}` (COCO layout, evaluated by COCO's protocol)
and `shapes_voc_{trainval,test}` (VOC layout, VOC's protocol), and likewise the data of the studies,
`shapes_hard_*`, which is harder, and `shapes_colors_*`, the images of `shapes_*` with more classes.
The files need not exist yet; `python -m doublehead_d2.tools.make_shapes [--hard | --colors]` writes
them.
"""

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc

from doublehead_d2.data.shapes.layouts import KINDS, SPLITS, VOC_SPLITS, kind_named

MAKE_SHAPES = "python -m doublehead_d2.tools.make_shapes"


def datasets_root() -> str:
    """The folder in which detectron2 and this package look for their data sets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def shapes_root(kind: str = "shapes") -> str:
    """The folder of a kind of the built-in shapes data, one of `layouts.KINDS`."""
    return os.path.join(datasets_root(), kind)


def register_shapes(root: str, prefix: str = "shapes", kind: str = "shapes") -> None:
    """Register one copy of a shapes data set in both layouts.

    Args:
        root: the folder that `write_shapes` made or will make.
        prefix: start of the registered names.
        kind: one of `layouts.KINDS`.

    Raises:
        ValueError: there is no such kind.
    """
    chosen = kind_named(kind)
    classes = list(chosen.classes)
    command = " ".join([MAKE_SHAPES, *(f"--{option}" for option in chosen.mark)])
    if root != shapes_root(kind):
        command += f" --output {root}"
    for split in SPLITS:
        name = f"{prefix}_{split}"
        metadata = {
            "thing_classes": classes,
            # Loading the annotations sets the same; an evaluator may be asked before that.
            "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(classes))},
            "written_by": command,
        }
        json_file = os.path.join(root, "coco", "annotations", f"instances_{split}.json")
        register_coco_instances(name, metadata, json_file, os.path.join(root, "coco", split))
    for split in VOC_SPLITS.values():
        name = f"{prefix}_voc_{split}"
        # The year chooses VOC2007's 11-point average precision.
        register_pascal_voc(name, os.path.join(root, "voc"), split, 2007, classes)
        MetadataCatalog.get(name).set(evaluator_type="pascal_voc", written_by=command)


for _kind in KINDS:
    register_shapes(shapes_root(_kind), _kind, _kind)
