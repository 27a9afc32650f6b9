"""A hook that leaves a config of the trained model beside its weights."""

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.file_io import PathManager


class TrainedConfigWriter(HookBase):
    """After the last iteration, write OUTPUT_DIR/config.yaml with MODEL.WEIGHTS = the final model.

    `default_setup` has written a config whose weights are those that training started from: a
    predictor built from it would run, and predict nonsense.
    """

    def __init__(
        self, cfg: CfgNode, weights: Callable[[], str] = lambda: "model_final.pth"
    ) -> None:
        """
        Args:
            cfg: what the model was trained with.
            weights: asked after training: the file in OUTPUT_DIR that is to be named.
        """
        self._cfg = cfg.clone()
        self._weights = weights

    def after_train(self) -> None:
        """Called after training, also when it was interrupted: then there is no final model."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        self._cfg.defrost()
        self._cfg.MODEL.NEW_PREDICTORS = False  # which asked for others than the final model's
        self._cfg.MODEL.WEIGHTS = os.path.join(self._cfg.OUTPUT_DIR, self._weights())
        with PathManager.open(os.path.join(self._cfg.OUTPUT_DIR, "config.yaml"), "w") as f:
            f.write(self._cfg.dump())
