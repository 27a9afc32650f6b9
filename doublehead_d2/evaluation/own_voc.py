"""VOC's metric on data sets of DATASETS.REGISTER, whose XML files may lack what it reads."""

import os
import tempfile

from detectron2.utils import comm

from doublehead_d2.data.layouts.voc import VocDataset
from doublehead_d2.data.registration import own_dataset
from doublehead_d2.evaluation.ap70 import AP70VOCEvaluator


class OwnVOCEvaluator(AP70VOCEvaluator):
    """The evaluator, on a copy of the annotations as VOC writes them.

    So data without ImageSets, <pose>, <truncated> or <difficult>, of fractions of pixels or of
    renamed classes is scored by the same code as VOC's own.
    """

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """As `AP70VOCEvaluator`: every process must call it, the first has results.

        Raises:
            ValueError: the annotations have changed and cannot be read any more.
        """
        with tempfile.TemporaryDirectory(prefix="voc_") as folder:
            if comm.is_main_process():
                own = own_dataset(self._dataset_name)
                assert isinstance(own, VocDataset), f"{own} is chosen by build_evaluator"
                own.write_voc(folder)
            self._anno_file_template = os.path.join(folder, "Annotations", "{}.xml")
            self._image_set_path = os.path.join(folder, "images.txt")
            return super().evaluate()
