"""The loader of the training data, which goes on at any iteration."""

import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from doublehead_d2.data.order import DataOrder, draws, group_by_shape
from doublehead_d2.data.seeding import Draw, Record, SeededDataset
from doublehead_d2.engine.interrupts import live_on

PLAIN, REPEATED, SUBSET = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
)

logger = logging.getLogger(__name__)


class TrainLoader:
    """Gives a process its parts of the batches of a training, without an end.

    It begins where :meth:`begin` says, when the first batch is asked for.
    """

    def __init__(
        self,
        *,
        dataset: SeededDataset,
        order: DataOrder,
        seed: int,
        parts: int = 1,
        num_workers: int = 0,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            dataset: maps the images.
            order: of the images, the same in all processes.
            seed: which it follows from, the same in all processes.
            parts: in which batches are run.
            num_workers: processes that map images.
            facts: what else the order follows from, by name, to be kept in checkpoints.
        """
        self.dataset = dataset
        self.order = order
        self.seed = seed
        self.parts = parts
        self.facts = facts or {}
        self._num_workers = num_workers
        self._start = 0

    def begin(self, *, seed: int, start: int) -> None:
        """Say what the batches follow from, before the first of them is asked for.

        Args:
            seed: in place of the first one.
            start: parts that were trained on before.
        """
        self.seed, self._start = seed, start

    def __iter__(self) -> Iterator[list[Record]]:
        # The body of a generator is run when the first batch is asked for: detectron2 0.6 asks for
        # an iterator before a checkpoint is loaded.
        processes = comm.get_world_size()
        images = iter(
            DataLoader(
                self.dataset,
                sampler=_Draws(self, comm.get_rank(), processes),
                batch_size=None,  # as detectron2: all workers work at one batch
                collate_fn=_as_it_is,
                num_workers=self._num_workers,
                worker_init_fn=_begin_worker,
                generator=torch.Generator(),  # else a number of the training's is drawn
            )
        )
        size = self.order.batch // self.parts // processes
        while True:
            yield list(islice(images, size))


class _Draws(Sampler):
    def __init__(self, loader: TrainLoader, rank: int, processes: int) -> None:
        self._draws = draws(
            loader.order,
            loader.seed,
            rank=rank,
            processes=processes,
            parts=loader.parts,
            start=loader._start,
        )

    def __iter__(self) -> Iterator[Draw]:
        return self._draws


def build_train_loader(
    cfg: CfgNode, mapper: Callable[[Record], Record | None]
) -> Iterable[list[Record]]:
    """A :class:`TrainLoader`, of the data sets, sampler and groups that the config asks for.

    Every process calls it.

    Args:
        cfg: with the keys of this package.
        mapper: of records.

    Returns:
        parts of the batches; from detectron2's own loader where the data is no list, or the sampler
        one that is not known here, which the log says.

    Raises:
        ValueError: names the key that cannot be.
    """
    parts, batch = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.IMS_PER_BATCH
    processes = comm.get_world_size()
    if batch % (parts * processes):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}; allowed with {parts} parts in {processes} "
            f"processes: a multiple of {parts * processes}"
        )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN),
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if not isinstance(records, list) or sampler not in (PLAIN, REPEATED, SUBSET):
        return _build_foreign(cfg, mapper, records)
    seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
    return TrainLoader(
        dataset=SeededDataset(DatasetFromList(records, copy=False), mapper),
        order=_build_order(cfg, records),
        seed=seed,
        parts=parts,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        facts={
            "images": len(records),
            "the names of the images": _fingerprint(records),
            "SOLVER.IMS_PER_BATCH": batch,
            "DATALOADER.SAMPLER_TRAIN": sampler,
            "DATALOADER.ASPECT_RATIO_GROUPING": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        },
    )


def _build_order(cfg: CfgNode, records: Sequence[Record]) -> DataOrder:
    loader = cfg.DATALOADER
    groups = np.zeros(len(records), int)
    if loader.ASPECT_RATIO_GROUPING:
        groups = group_by_shape(records)
    repeats = subset = None
    if loader.SAMPLER_TRAIN == REPEATED:
        by_frequency = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        # A key of upstream main
        options = {} if loader.get("REPEAT_SQRT", True) else {"sqrt": False}
        repeats = by_frequency(records, loader.REPEAT_THRESHOLD, **options).numpy()
    if loader.SAMPLER_TRAIN == SUBSET:
        ratio = loader.get("RANDOM_SUBSET_RATIO", 1.0)  # detectron2 0.6 has no such key
        subset = int(len(records) * ratio)
        if not 0 < subset <= len(records):
            raise ValueError(
                f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, which is {subset} of {len(records)} "
                "images; allowed: 1 or more, at most all of them"
            )
    return DataOrder(groups, cfg.SOLVER.IMS_PER_BATCH, repeats, subset)


def _build_foreign(cfg: CfgNode, mapper: Callable, records: Any) -> Iterable[list[Record]]:
    logger.warning(
        "DATALOADER.SAMPLER_TRAIN '%s' on a %s: this is detectron2's loader, with which --resume "
        "starts the data anew.",
        cfg.DATALOADER.SAMPLER_TRAIN,
        type(records).__name__,
    )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH //= cfg.SOLVER.ACCUMULATION_STEPS
    return build_detection_train_loader(cfg, mapper=mapper, dataset=records)


def _fingerprint(records: Sequence[Record]) -> int:
    """A number that is another for other images, or for another order of them."""
    names = (os.path.basename(str(r.get("file_name", r.get("image_id", "")))) for r in records)
    return zlib.crc32("\n".join(names).encode(errors="surrogateescape"))


def _as_it_is(record: Any) -> Any:
    return record


def _begin_worker(worker: int) -> None:
    """A seed of its own, as detectron2's workers have; and the images of the last step come."""
    worker_init_reset_seed(worker)
    live_on(worker)
