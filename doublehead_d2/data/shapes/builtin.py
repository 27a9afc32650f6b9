"""Register the built-in shapes data sets with detectron2, in the manner of its own data sets.

Importing this module registers `shapes_{train,val}` (COCO layout, evaluated by COCO's protocol)
and `shapes_voc_{trainval,test}` (VOC layout, VOC's protocol), and the harder data of the studies
likewise, `shapes_hard_{train,val}` and `shapes_hard_voc_{trainval,test}`. The files need not
exist yet; `python -m doublehead_d2.tools.make_shapes [--hard]` writes them.
"""

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc

from doublehead_d2.data.shapes.layouts import EASY, HARD, SPLITS, VOC_SPLITS

MAKE_SHAPES = "python -m doublehead_d2.tools.make_shapes"


def datasets_root() -> str:
    """The folder in which detectron2 and this package look for their data sets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def shapes_root(hard: bool = False) -> str:
    """The folder of the built-in shapes data set, or of the harder one."""
    return os.path.join(datasets_root(), "shapes_hard" if hard else "shapes")


def register_shapes(root: str, prefix: str = "shapes", hard: bool = False) -> None:
    """Register one copy of a shapes data set in both layouts.

    Args:
        root: the folder that `write_shapes` made or will make.
        prefix: start of the registered names.
        hard: whether it is the harder kind.
    """
    classes = list((HARD if hard else EASY).classes)
    command = f"{MAKE_SHAPES} --hard" if hard else MAKE_SHAPES
    if root != shapes_root(hard):
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


register_shapes(shapes_root())
register_shapes(shapes_root(hard=True), "shapes_hard", hard=True)
