"""The trainer: detectron2's, on a GPU or a CPU, on detectron2 0.6 and main."""

import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.config import check_tta_config
from doublehead_d2.config.checks import check_batch, check_num_classes
from doublehead_d2.config.training import check_parts
from doublehead_d2.data.naming_mapper import NamingMapper
from doublehead_d2.data.resize import build_mapper
from doublehead_d2.engine.accumulation import AccumulatingTrainer
from doublehead_d2.engine.amp import AMPTrainer
from doublehead_d2.engine.divergence import NamingSteps
from doublehead_d2.engine.ending import EndsEarly
from doublehead_d2.engine.freeze import freeze
from doublehead_d2.engine.hooks import complete_hooks
from doublehead_d2.engine.progress import ProgressPrinter, count_images
from doublehead_d2.engine.proposal_files import check_proposal_files
from doublehead_d2.engine.train_loader import build_train_loader
from doublehead_d2.evaluation import (
    ModesEvaluator,
    all_modes,
    build_evaluator,
    find_heads,
    score_modes,
)

logger = logging.getLogger(__name__)

Results = dict[str, Any]


class Trainer(DefaultTrainer, EndsEarly):
    """`DefaultTrainer` that also trains in several CPU processes and resumes the optimizer."""

    _last_eval_results: Results

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: a config with the keys of this package, its schedule that of its batch, as
                `complete_config` gives it.

        Raises:
            ValueError: a setting that cannot be trained with; names the key.
        """
        # Not DefaultTrainer's constructor: it gives DDP device ids, which DDP refuses for a model
        # on the CPU, on both versions of detectron2.
        TrainerBase.__init__(self)
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        check_batch(cfg)
        check_num_classes(cfg)
        check_parts(cfg)
        _check_scaled(cfg)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = freeze(self.build_model(cfg), cfg.MODEL.FREEZE)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        devices = None if on_cpu else [torch.cuda.current_device()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        self._trainer = _build_steps(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DoubleHeadCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            new_predictors=cfg.MODEL.NEW_PREDICTORS,
            keep=cfg.SOLVER.KEEP_CHECKPOINTS,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks of `DefaultTrainer` and those that the config asks for."""
        return complete_hooks(self, super().build_hooks())

    def build_printer(self) -> EventWriter:
        """What tells of the progress."""
        return ProgressPrinter(
            max_iter=self.max_iter,
            batch=self.cfg.SOLVER.IMS_PER_BATCH,
            images=count_images(self._trainer.data_loader),
        )

    def build_writers(self) -> list[EventWriter]:
        """The writers of `DefaultTrainer`, with a printer for people."""
        return [self.build_printer(), *super().build_writers()[1:]]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; with the optimizer, which detectron2 0.6 leaves out."""
        state = super().state_dict()
        state["_trainer"] = self._trainer.state_dict()
        state["ims_per_batch"] = self.cfg.SOLVER.IMS_PER_BATCH
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: the batch has changed and the schedule depends on it.
        """
        solver = self.cfg.SOLVER
        before = state_dict.get("ims_per_batch", solver.IMS_PER_BATCH)
        if solver.REFERENCE_IMS_PER_BATCH and before != solver.IMS_PER_BATCH:
            # The checkpoint's lr and iteration would be restored over those that were scaled.
            raise ValueError(
                f"this training was begun with SOLVER.IMS_PER_BATCH {before} and cannot be resumed "
                f"with {solver.IMS_PER_BATCH}, whose learning rate and iterations are others; "
                f"resume with {before}, or start another training from the checkpoint "
                "(MODEL.WEIGHTS, another OUTPUT_DIR)"
            )
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def test_with_tta_at_end(self) -> Results:
        """What a hook calls after the plain evaluation, whose results it adds to."""
        results = self.test_with_TTA(self.cfg, self.model)
        # train() returns these and compares them with TEST.EXPECTED_RESULTS.
        self._last_eval_results = {**self._last_eval_results, **results}
        return results

    def test_at_iteration(self) -> Results:
        """What a hook calls to evaluate."""
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | DatasetEvaluator | None = None,
    ) -> Results:
        """Evaluate on DATASETS.TEST; with TEST.DOUBLE_HEAD_MODES in several ways in one pass.

        Args:
            cfg: a config with the keys of this package.
            model: the model, with its weights.
            evaluators: as `DefaultTrainer.test`; given ones score the model as it is configured.

        Returns:
            results by task (by data set, then task, if there are several).
        """
        if evaluators is not None or not cfg.TEST.DOUBLE_HEAD_MODES:
            return super().test(cfg, model, evaluators)
        modes, configured = all_modes(find_heads(model))
        logger.info(
            "TEST.DOUBLE_HEAD_MODES: one pass scores the model in the modes %s. Every head sees "
            "all proposals.",
            modes,
        )
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        mode_evaluators = [
            ModesEvaluator(
                {
                    mode: build_evaluator(name, os.path.join(folder, mode), cfg.TEST.COCO_API)
                    for mode in modes
                },
                configured,
            )
            for name in cfg.DATASETS.TEST
        ]
        with score_modes(model, modes):
            return super().test(cfg, model, mode_evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Results:
        """Evaluate with test-time augmentation: the scales and the flip of TEST.AUG.

        Returns:
            results as :meth:`test` without modes, their names (of tasks, or of data sets if there
            are several) ending in "_TTA".

        Raises:
            ValueError: the model is one that detectron2 cannot augment.
        """
        check_tta_config(cfg)
        logger.info(
            "Evaluating with test-time augmentation: short sides %s, flip %s",
            list(cfg.TEST.AUG.MIN_SIZES),
            cfg.TEST.AUG.FLIP,
        )
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [
            build_evaluator(name, folder, cfg.TEST.COCO_API) for name in cfg.DATASETS.TEST
        ]
        mapper = NamingMapper(DatasetMapperTTA(cfg))  # which cannot resize an image of one row
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model, mapper), evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """The loader of the training data, resizing as INPUT.RESIZE_RULE asks for.

        Its batches are the parts that SOLVER.ACCUMULATION_STEPS makes of SOLVER.IMS_PER_BATCH.
        """
        check_proposal_files(cfg, "TRAIN")
        return build_train_loader(cfg, NamingMapper(build_mapper(cfg, is_train=True)))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """detectron2's loader of a test set, resizing as INPUT.RESIZE_RULE asks for."""
        check_proposal_files(cfg, "TEST")
        mapper = NamingMapper(build_mapper(cfg, is_train=False))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator that the metadata of the data set asks for."""
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return build_evaluator(dataset_name, folder, cfg.TEST.COCO_API)


def _build_steps(
    cfg: CfgNode, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """What runs a step: detectron2's own, unless there is mixed precision or accumulation."""
    parts = cfg.SOLVER.ACCUMULATION_STEPS
    if parts > 1:
        logger.info(
            "SOLVER.ACCUMULATION_STEPS %d: the %d images of a step are run in parts of %d. Batch "
            "norms that are trained see %d images at a time, those of a part and a process.",
            parts,
            cfg.SOLVER.IMS_PER_BATCH,
            cfg.SOLVER.IMS_PER_BATCH // parts,
            cfg.SOLVER.IMS_PER_BATCH // parts // comm.get_world_size(),
        )
    if cfg.SOLVER.AMP.ENABLED:
        return AMPTrainer(model, data_loader, optimizer, parts)
    if parts > 1:
        return AccumulatingTrainer(model, data_loader, optimizer, parts)
    return NamingSteps(model, data_loader, optimizer)


def _check_scaled(cfg: CfgNode) -> None:
    """A schedule of another batch would be trained with silently."""
    reference, batch = cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference not in (0, batch):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, and lr and schedule are written for batches of "
            f"{reference} (SOLVER.REFERENCE_IMS_PER_BATCH); allowed: a config from "
            "doublehead_d2.engine.complete_config, which scales them as train_net.py does, or "
            "SOLVER.REFERENCE_IMS_PER_BATCH 0, which takes them as they stand"
        )
