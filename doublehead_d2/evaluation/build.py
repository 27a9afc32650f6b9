"""Choose the evaluator that the metadata of a data set asks for."""

import logging
import os

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from doublehead_d2.data.coco_gaps import fill_gaps
from doublehead_d2.evaluation.ap70 import AP70COCOEvaluator, AP70VOCEvaluator

EVALUATOR_TYPES = ("coco", "pascal_voc")


def build_evaluator(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of a registered data set. Every process must call it.

    Args:
        dataset_name: name in detectron2's catalogs; its metadata `evaluator_type` decides.
        output_folder: where the evaluator writes its files.

    Raises:
        ValueError: the metadata names no evaluator, or one that is not known here.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type == "pascal_voc":
        return AP70VOCEvaluator(dataset_name)
    if evaluator_type == "coco":
        return build_coco_evaluator(dataset_name, output_folder)
    raise ValueError(
        f"data set '{dataset_name}' has evaluator_type {evaluator_type!r}; "
        f"allowed: {', '.join(map(repr, EVALUATOR_TYPES))}. Set it with "
        f"MetadataCatalog.get('{dataset_name}').evaluator_type = ..."
    )


def build_coco_evaluator(dataset_name: str, output_folder: str) -> AP70COCOEvaluator:
    """Build an evaluator by COCO's metric, whatever the metadata asks for; else as above."""
    _drop_converted_annotations(dataset_name, output_folder)
    evaluator = AP70COCOEvaluator(dataset_name, output_dir=output_folder)
    if filled := fill_gaps(evaluator._coco_api):
        # There may be many evaluations of a data set.
        log_first_n(logging.WARNING, f"Data set '{dataset_name}': {filled}.", key="message")
    return evaluator


def _drop_converted_annotations(dataset_name: str, output_folder: str) -> None:
    """Remove what an earlier run converted from a data set that is not in COCO format.

    COCOEvaluator keeps the conversion under the data set's name and never looks whether the data
    is still the same: a changed data set would silently be scored against its old boxes.
    """
    if MetadataCatalog.get(dataset_name).get("json_file") is None and comm.is_main_process():
        converted = os.path.join(output_folder, f"{dataset_name}_coco_format.json")
        if PathManager.isfile(converted):
            PathManager.rm(converted)
    comm.synchronize()
