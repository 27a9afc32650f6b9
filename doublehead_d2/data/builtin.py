"""Registers the built-in shapes data set with detectron2, in the manner of its own data sets.

Importing this module registers ``shapes_{train,val}`` (COCO layout, evaluated by COCO's protocol)
and ``shapes_voc_{trainval,test}`` (VOC layout, VOC's protocol). The files need not exist yet;
``python -m doublehead_d2.tools.make_shapes`` writes them.
"""

from __future__ import annotations

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc

from doublehead_d2.data.layouts import SPLITS, VOC_SPLITS
from doublehead_d2.data.shapes import SHAPES_CLASSES

MAKE_SHAPES = "python -m doublehead_d2.tools.make_shapes"


def datasets_root() -> str:
    """The folder in which detectron2 and this package look for their data sets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def shapes_root() -> str:
    """The folder of the built-in shapes data set."""
    return os.path.join(datasets_root(), "shapes")


def register_shapes(root: str, prefix: str = "shapes") -> None:
    """Registers one copy of the shapes data set in both layouts.

    Args:
        root: the folder that ``write_shapes`` made or will make.
        prefix: start of the registered names.
    """
    command = MAKE_SHAPES if root == shapes_root() else f"{MAKE_SHAPES} --output {root}"
    for split in SPLITS:
        name = f"{prefix}_{split}"
        metadata = {
            "thing_classes": list(SHAPES_CLASSES),
            # Loading the annotations sets the same; an evaluator may be asked before that.
            "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(SHAPES_CLASSES))},
            "written_by": command,
        }
        json_file = os.path.join(root, "coco", "annotations", f"instances_{split}.json")
        register_coco_instances(name, metadata, json_file, os.path.join(root, "coco", split))
    for split in VOC_SPLITS.values():
        name = f"{prefix}_voc_{split}"
        # The year chooses VOC2007's 11-point average precision.
        register_pascal_voc(name, os.path.join(root, "voc"), split, 2007, list(SHAPES_CLASSES))
        MetadataCatalog.get(name).set(evaluator_type="pascal_voc", written_by=command)


register_shapes(shapes_root())
