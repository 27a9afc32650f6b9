"""Choose the evaluator that the metadata of a data set asks for."""

import contextlib
import logging
import os
from collections.abc import Iterator

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from doublehead_d2.config.coco_api import uses_hotcoco
from doublehead_d2.data.coco_gaps import fill_gaps
from doublehead_d2.data.layouts.coco import CocoDataset
from doublehead_d2.data.layouts.voc import VocDataset
from doublehead_d2.data.registration import own_dataset
from doublehead_d2.evaluation.ap70 import AP70COCOEvaluator, AP70VOCEvaluator
from doublehead_d2.evaluation.own_voc import OwnVOCEvaluator

EVALUATOR_TYPES = ("coco", "pascal_voc")


def build_evaluator(
    dataset_name: str, output_folder: str, coco_api: str = "auto"
) -> DatasetEvaluator:
    """Build the evaluator of a registered data set. Every process must call it.

    Args:
        dataset_name: name in detectron2's catalogs; its metadata `evaluator_type` decides.
        output_folder: where the evaluator writes its files.
        coco_api: as TEST.COCO_API.

    Raises:
        ValueError: the metadata names no evaluator, or one that is not known here; hotcoco is
            asked for and not installed.
    """
    check_evaluator(dataset_name)
    own = own_dataset(dataset_name)
    if MetadataCatalog.get(dataset_name).evaluator_type == "pascal_voc":
        is_own = isinstance(own, VocDataset)
        return OwnVOCEvaluator(dataset_name) if is_own else AP70VOCEvaluator(dataset_name)
    return build_coco_evaluator(dataset_name, output_folder, coco_api)


def build_coco_evaluator(
    dataset_name: str, output_folder: str, coco_api: str = "auto"
) -> AP70COCOEvaluator:
    """Build an evaluator by COCO's metric, whatever the metadata ask for; else as above."""
    with _ground_truth(dataset_name, output_folder):
        evaluator = _coco_evaluator(coco_api)(dataset_name, output_dir=output_folder)
    if filled := fill_gaps(evaluator._coco_api):
        # There may be many evaluations of a data set.
        log_first_n(logging.WARNING, f"Data set '{dataset_name}': {filled}.", key="message")
    return evaluator


def _coco_evaluator(coco_api: str) -> type[AP70COCOEvaluator]:
    if not uses_hotcoco(coco_api):
        return AP70COCOEvaluator
    from doublehead_d2.evaluation.fast_coco import FastCOCOEvaluator  # imports hotcoco

    return FastCOCOEvaluator


def check_evaluator(dataset_name: str) -> None:
    """Refuse a data set that nobody has said how to score.

    Raises:
        ValueError: the metadata name no evaluator, or one that is not known here.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in EVALUATOR_TYPES:
        raise ValueError(
            f"data set '{dataset_name}' has evaluator_type {evaluator_type!r}; "
            f"allowed: {', '.join(map(repr, EVALUATOR_TYPES))}. Set it with "
            f"MetadataCatalog.get('{dataset_name}').evaluator_type = ..."
        )


@contextlib.contextmanager
def _ground_truth(dataset_name: str, output_folder: str) -> Iterator[None]:
    """While this lasts, what an evaluator is built with are the annotations as they are now.

    COCOEvaluator reads the data set's own file, or, where there is none in COCO's format, converts
    the data set, keeps that under its name and never looks whether the data is still the same: a
    changed data set would silently be scored against its old boxes.
    """
    metadata, own = MetadataCatalog.get(dataset_name), own_dataset(dataset_name)
    file = metadata.get("json_file")
    converts = file is None or (isinstance(own, CocoDataset) and not own.is_in_form())
    if converts and file is not None:
        del metadata.json_file
    converted = os.path.join(output_folder, f"{dataset_name}_coco_format.json")
    if converts and comm.is_main_process() and PathManager.isfile(converted):
        PathManager.rm(converted)
    comm.synchronize()
    try:
        yield
    finally:
        if converts:
            # The evaluator has set it, and metadata take no other value for what is there.
            if "json_file" in vars(metadata):
                del metadata.json_file
            if file is not None:
                metadata.json_file = file
