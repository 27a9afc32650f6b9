"""The trainer: detectron2's, on a GPU or a CPU, on detectron2 0.6 and main."""

import os
import weakref
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from doublehead_d2.engine.trained_config import TrainedConfigWriter
from doublehead_d2.evaluation import build_evaluator


class Trainer(DefaultTrainer):
    """`DefaultTrainer` that also trains in several CPU processes and resumes the optimizer."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: a config with the keys of this package.

        Raises:
            ValueError: SOLVER.AMP.ENABLED without CUDA.
        """
        # Not DefaultTrainer's constructor: it gives DDP device ids, which DDP refuses for a model
        # on the CPU, on both versions of detectron2.
        TrainerBase.__init__(self)
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        if cfg.SOLVER.AMP.ENABLED and on_cpu:
            raise ValueError(
                "SOLVER.AMP.ENABLED is True, which needs CUDA, and MODEL.DEVICE is 'cpu'; "
                "set SOLVER.AMP.ENABLED False"
            )
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        ddp_args = {"device_ids": None} if on_cpu else {}
        model = create_ddp_model(model, broadcast_buffers=False, **ddp_args)
        trainer_type = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_type(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks of `DefaultTrainer`, and the one that leaves a config of the trained model."""
        hooks = super().build_hooks()
        if comm.is_main_process():
            # First, since an evaluation that fails or is interrupted keeps the others from running.
            hooks.insert(0, TrainedConfigWriter(self.cfg))
        return hooks

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; with the optimizer, which detectron2 0.6 leaves out."""
        state = super().state_dict()
        state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator that the metadata of the data set asks for."""
        return build_evaluator(
            dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )
