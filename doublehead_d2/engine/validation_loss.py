"""A hook that gives the losses of training on data that is not trained on."""

import logging
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from doublehead_d2.config.training import LOSSES
from doublehead_d2.data.naming_mapper import NamingMapper
from doublehead_d2.data.resize import build_mapper
from doublehead_d2.data.seeding import kept_random_state
from doublehead_d2.engine.evaluation_hook import EvaluationHook

Batches = Iterable[list[dict[str, Any]]]

logger = logging.getLogger(__name__)


class ValidationLoss(EvaluationHook):
    """At each evaluation, means over the images as "validation/loss_cls", ..., "/total_loss".

    In a `train_net.py` of your own, in every process and before the writers:

        ValidationLoss(eval_period=..., model=self.model, loader=build_loss_loader(cfg))
    """

    def __init__(self, *, eval_period: int, model: nn.Module, loader: Batches) -> None:
        """
        Args:
            eval_period: that of the evaluations; 0 for one at the end.
            model: gives a dict of losses in training mode.
            loader: this process's images, with annotations; gone over each time.
        """
        super().__init__(eval_period, lambda: {LOSSES: _log(validation_losses(model, loader))})


def validation_losses(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Mean losses over all images of all processes, each weighted by its batch's images.

    Nothing is learned: no gradients, and batch norms and dropout as in evaluation. What is random,
    such as the sampling of RoIs, follows from the images of a batch alone, so that the same weights
    have the same losses, however many processes there are and whatever was drawn before.

    Args:
        model: gives a dict of losses in training mode; its modes are as before afterwards.
        batches: this process's.

    Returns:
        the losses by name, their sum as "total_loss", the same in all processes; empty where no
        process has an image.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module  # processes need not have as many batches
    sums: dict[str, float] = defaultdict(float)
    images = 0
    # A storage of its own: what models note down in training is not of this training.
    with _losses_only(model), kept_random_state(), torch.no_grad(), EventStorage(1):
        for batch in batches:
            _seed(batch)
            for name, loss in model(batch).items():
                sums[name] += float(loss) * len(batch)
            images += len(batch)
    gathered = comm.all_gather((dict(sums), images))
    total = sum(count for _, count in gathered)
    names = dict.fromkeys(name for found, _ in gathered for name in found)
    means = {n: sum(found.get(n, 0.0) for found, _ in gathered) / total for n in names}
    return {**means, "total_loss": sum(means.values())} if means else {}


def build_loss_loader(cfg: CfgNode) -> Batches:
    """DATASETS.TEST with annotations, resized as for tests, an image a batch.

    Raises:
        ValueError: a data set has no annotations.
    """
    mapper = build_mapper(cfg, is_train=True)
    # Cropping, flips and the sizes of training go; what training does to annotations stays.
    mapper.augmentations.augs[:] = build_mapper(cfg, is_train=False).augmentations.augs
    mapper.recompute_boxes = False  # which is for crops
    files = cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TEST), filter_empty=False, proposal_files=files
    )
    if not any(record.get("annotations") for record in records):
        raise ValueError(
            f"TEST.LOSS is True, and DATASETS.TEST {tuple(cfg.DATASETS.TEST)} has no annotations; "
            "allowed: data sets with objects, or TEST.LOSS False"
        )
    return build_detection_test_loader(
        records, mapper=NamingMapper(mapper), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


@contextmanager
def _losses_only(model: nn.Module) -> Iterator[None]:
    """Within the context, `model` gives losses and nothing else of it is as in training."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        for module in modes:
            if isinstance(module, _NormBase | _DropoutNd):
                module.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _seed(batch: list[dict[str, Any]]) -> None:
    names = [str(x.get("image_id", x.get("file_name", ""))) for x in batch]
    torch.manual_seed(zlib.crc32("\n".join(names).encode()))


def _log(losses: dict[str, float]) -> dict[str, float]:
    said = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    logger.info("Losses on the validation data: %s", said)
    return losses
