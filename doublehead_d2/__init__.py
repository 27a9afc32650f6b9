"""Double-Head R-CNN and its extension for detectron2 (https://arxiv.org/abs/1904.06493).

Importing the package registers its modules in detectron2's registries and its data sets in
detectron2's catalogs.
"""

from pathlib import Path

from doublehead_d2.environment import (
    ignore_warnings,
    require_detectron2,
    running_doctor,
    running_program,
)

__version__ = "0.1.0"

# The doctor alone must be able to speak where detectron2 is missing or broken.
if not running_doctor():
    require_detectron2()
    # In other programs the filters are theirs.
    if running_program(Path(__file__).resolve().parent):
        ignore_warnings()

    from doublehead_d2 import data, inference, model_zoo
    from doublehead_d2.config import add_doublehead_config
    from doublehead_d2.modeling import (
        DoubleHeadConvHead,
        DoubleHeadROIHeads,
        GRCNROIHeads,
        TSDROIHeads,
    )

    __all__ = [
        "DoubleHeadConvHead",
        "DoubleHeadROIHeads",
        "GRCNROIHeads",
        "TSDROIHeads",
        "add_doublehead_config",
        "data",
        "inference",
        "model_zoo",
    ]
