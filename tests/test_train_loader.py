"""The loader of the training data, of a config."""

import itertools
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.utils.data import Dataset

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.engine.train_loader import TrainLoader, build_train_loader

Record = dict[str, Any]


numbers = itertools.count()


def records(count: int = 7, folder: str = "a") -> list[Record]:
    """Every third is wide; the last one has no object; the classes are 0 and, once, 1."""
    return [
        {
            "file_name": f"{folder}/{i}.jpg",
            "image_id": i,
            "width": 30 if i % 3 == 0 else 20,
            "height": 20,
            "annotations": [{"category_id": int(i == 2), "iscrowd": 0}] * (i < count - 1),
        }
        for i in range(count)
    ]


def cfg_of(content: Any, *opts: object) -> CfgNode:
    name = f"test_loader_{next(numbers)}"
    DatasetCatalog.register(name, lambda: content)
    MetadataCatalog.get(name).thing_classes = ["one", "two"]
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0  # which detectron2 0.6 does not have
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 4, "SEED", 5, *opts])
    return cfg


@pytest.fixture(autouse=True)
def _catalogs(catalogs: None) -> None:
    """Data sets are registered for a test."""


def loader_of(*opts: object, content: Any = None) -> TrainLoader:
    loader = build_train_loader(cfg_of(content or records(), *opts), lambda record: record)
    assert isinstance(loader, TrainLoader)
    return loader


def some(loader: Any, count: int) -> list[list[int]]:
    return [[x["image_id"] for x in batch] for batch in itertools.islice(loader, count)]


def test_batches_are_those_of_the_order() -> None:
    loader = loader_of()
    assert len(loader.dataset) == 6, "without the image that has no object"
    expected = [x.tolist() for x in itertools.islice(loader.order.batches(5), 9)]
    assert some(loader, 9) == expected
    assert {frozenset(i % 3 == 0 for i in batch) for batch in expected} == {
        frozenset({True}),
        frozenset({False}),
    }
    assert Counter(itertools.chain(*some(loader, 6))) == dict.fromkeys(range(6), 4)
    assert len(loader_of("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False).dataset) == 7


def test_it_begins_when_the_first_batch_is_asked_for() -> None:
    loader = loader_of()
    whole, other = some(loader, 8), some(loader_of("SEED", 6), 8)
    assert whole != other
    late = iter(loader)
    loader.begin(seed=6, start=5)
    assert some(late, 3) == other[5:]


def test_without_groups_an_epoch_is_cut_as_it_comes() -> None:
    loader = loader_of("DATALOADER.ASPECT_RATIO_GROUPING", False)
    images = list(itertools.chain(*some(loader, 3)))
    assert sorted(images[:6]) == sorted(images[6:]) == list(range(6))


def test_parts_and_processes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = some(loader_of(), 6)
    assert some(loader_of("SOLVER.ACCUMULATION_STEPS", 2), 12) == [
        half for batch in whole for half in (batch[:2], batch[2:])
    ]
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        assert some(loader_of(), 6) == [batch[2 * rank :][:2] for batch in whole]
    with pytest.raises(ValueError, match=r"PER_BATCH is 5; allowed with 1 parts in 2 processes: a"):
        loader_of("SOLVER.IMS_PER_BATCH", 5)


def test_rare_classes_are_repeated() -> None:
    loader = loader_of(
        *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        *("DATALOADER.REPEAT_THRESHOLD", 0.6667),
    )
    # Class 1 is in one image of six: sqrt(4) = 2; class 0 in five: no repeats.
    np.testing.assert_allclose(loader.order.repeats, [1, 1, 2, 1, 1, 1], atol=1e-3)


def test_a_subset() -> None:
    sampler = ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler")
    loader = loader_of(*sampler, "DATALOADER.RANDOM_SUBSET_RATIO", 0.6)
    assert len(set(itertools.chain(*some(loader, 20)))) == 3
    for ratio, count in ((0.1, 0), (1.5, 9)):
        with pytest.raises(ValueError, match=rf"SUBSET_RATIO is {ratio}, which is {count} of 6 im"):
            loader_of(*sampler, "DATALOADER.RANDOM_SUBSET_RATIO", ratio)


class Listed(Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Record:
        return records()[index]


def test_what_is_no_list_comes_by_detectron2s_loader(caplog: pytest.LogCaptureFixture) -> None:
    cfg = cfg_of(Listed(), "SOLVER.ACCUMULATION_STEPS", 2)
    with caplog.at_level(logging.WARNING):
        loader = build_train_loader(cfg, lambda record: record)
    assert not isinstance(loader, TrainLoader)
    assert "'TrainingSampler' on a ConcatDataset: this is detectron2's loader" in caplog.text
    assert [len(batch) for batch in itertools.islice(loader, 3)] == [2, 2, 2]
    cfg = cfg_of(records(), "DATALOADER.SAMPLER_TRAIN", "Mine")
    with pytest.raises(ValueError, match="Unknown training sampler: Mine"):
        build_train_loader(cfg, lambda record: record)


def test_facts_that_the_order_follows_from() -> None:
    facts = loader_of().facts
    assert facts["images"] == 6 and facts["SOLVER.IMS_PER_BATCH"] == 4
    assert facts["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler"
    assert facts["DATALOADER.ASPECT_RATIO_GROUPING"] is True
    names = "the names of the images"
    assert loader_of(content=records(folder="b")).facts == facts  # in another folder
    assert loader_of(content=records()[::-1]).facts[names] != facts[names]


def test_a_seed_is_drawn_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: np.int64(12))
    loader = loader_of("SEED", -1)
    assert loader.seed == 12 and type(loader.seed) is int  # checkpoints hold no numpy numbers
    assert loader_of("SEED", 0).seed == 0


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_number_of_the_training_is_drawn(workers: int) -> None:
    loader = loader_of("DATALOADER.NUM_WORKERS", workers)
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    some(loader, 2)
    assert torch.rand(()) == expected


@pytest.mark.slow
def test_images_are_the_same_in_any_number_of_workers(shapes: Path) -> None:
    from doublehead_d2.engine import Trainer

    def batches(workers: int, start: int) -> list[list[Record]]:
        cfg = model_zoo.get_config(TINY_EXT)
        cfg.merge_from_list(
            ["INPUT.MIN_SIZE_TRAIN", (64, 72, 80), "DATALOADER.NUM_WORKERS", workers]
        )
        loader = Trainer.build_train_loader(cfg)
        assert isinstance(loader, TrainLoader)
        loader.begin(seed=1, start=start)
        return list(itertools.islice(loader, 5 - start))

    whole = batches(0, 0)
    assert len({image["image"].shape for batch in whole for image in batch}) > 2
    for batch, other in zip(whole[3:], batches(2, 3), strict=True):
        for a, b in zip(batch, other, strict=True):
            assert a["file_name"] == b["file_name"] and torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
