"""A resumed training is the one that was not interrupted."""

import itertools
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine.hooks import PreciseBN
from torch import nn

from conftest import TINY_EXT
from doublehead_d2.data.order import DataOrder
from doublehead_d2.data.seeding import SeededDataset
from doublehead_d2.engine import argument_parser, main
from doublehead_d2.engine.exact_resume import ExactResume
from doublehead_d2.engine.train_loader import TrainLoader


def loader_of(seed: int = 4, parts: int = 1, **facts: Any) -> TrainLoader:
    data = SeededDataset([{"id": i} for i in range(10)], lambda record: record)
    order = DataOrder(np.zeros(10, int), 2)
    return TrainLoader(dataset=data, order=order, seed=seed, parts=parts, facts=facts)


def some(loader: Any, count: int) -> list[list[int]]:
    return [[x["id"] for x in batch] for batch in itertools.islice(loader, count)]


def begin(hook: ExactResume, start: int, *others: object) -> None:
    hook.trainer = SimpleNamespace(start_iter=start, iter=start, _hooks=[hook, *others])
    hook.before_train()


@pytest.mark.parametrize("parts", [1, 2])
def test_data_goes_on_at_its_place(parts: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = some(loader_of(parts=parts), 8 * parts)
    before = ExactResume(loader_of(parts=parts, images=10), seed=4)
    loader = loader_of(parts=parts, images=10)
    batches = iter(loader)
    hook = ExactResume(loader, seed=4)
    hook.load_state_dict(before.state_dict())
    with caplog.at_level(logging.INFO):
        begin(hook, 3)
    assert some(batches, 5 * parts) == whole[3 * parts :] and not caplog.records


def test_a_step_draws_by_seed_iteration_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, iteration: int, rank: int) -> tuple[float, float]:
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
        hook = ExactResume(loader_of(), seed=seed)
        begin(hook, 0)
        hook.trainer.iter = iteration
        hook.before_step()
        return torch.rand(()).item(), np.random.rand()  # noqa: NPY002

    found = [drawn(*x) for x in [(4, 0, 0), (4, 1, 0), (4, 0, 1), (5, 0, 0)]]
    assert len(set(itertools.chain(*found))) == 8
    assert drawn(4, 1, 0) == found[1]


def test_a_seed_that_was_drawn_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    first = ExactResume(loader_of(seed=11))
    with caplog.at_level(logging.INFO):
        begin(first, 0)
    assert "SEED is -1: order and random numbers of this training follow from 11" in caplog.text
    caplog.clear()
    loader = loader_of(seed=12)
    hook = ExactResume(loader)
    hook.load_state_dict(first.state_dict())
    with caplog.at_level(logging.INFO):
        begin(hook, 2)
    assert (hook.seed, loader.seed) == (11, 11) and not caplog.records
    assert some(loader, 3) == some(loader_of(seed=11), 5)[2:]


def test_what_has_changed_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ExactResume(loader_of(images=10, batch=2), seed=4).state_dict()
    hook = ExactResume(loader_of(images=12, batch=2), seed=5)
    hook.load_state_dict(before)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    begin(hook, 3)
    order, processes = (record.getMessage() for record in caplog.records)
    assert order.endswith("changed is images (now 12, before 10), SEED (now 5, before 4).")
    assert processes.startswith("Resumed in 2 processes instead of 1: images come in the same ord")
    assert hook.seed == 5


def test_a_checkpoint_from_before(caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_of()
    begin(ExactResume(loader, seed=4), 3)
    assert "from iteration 3 on images come in the order that they have there" in caplog.text
    assert some(loader, 2) == some(loader_of(), 5)[3:]


def test_a_loader_of_another_kind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: np.int64(21))
    hook = ExactResume([])
    assert hook.state_dict() == {"seed": 21, "facts": {}, "processes": 1}
    hook.load_state_dict({"seed": 20, "facts": {"images": 3}, "processes": 1})
    begin(hook, 0)
    assert not caplog.records and hook.seed == 20
    begin(hook, 1)
    assert "This loader of training data cannot go on" in caplog.text


@pytest.mark.parametrize(("period", "updates"), [(2, 3), (0, 0)])
def test_precise_norms_go_on_with_their_images(period: int, updates: int) -> None:
    loader = loader_of()
    precise = PreciseBN(period, nn.BatchNorm1d(1), loader, 4)
    idle = PreciseBN(period, nn.Linear(1, 1), loader, 4)
    begin(ExactResume(loader_of(), seed=4), 7, precise, idle)
    assert some(loader, 2) == some(loader_of(), 4 * updates + 2)[4 * updates :]


# -- whole trainings -------------------------------------------------------------------------------


def train(output: Path, *opts: object, resume: bool = False) -> dict[str, torch.Tensor]:
    fixed = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.DEPTH": 50,  # which may be narrow
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 4,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "INPUT.MIN_SIZE_TRAIN": (48, 56, 64),
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "DATASETS.TEST": (),
        "OUTPUT_DIR": output,
    }
    words = [str(word) for word in (*itertools.chain(*fixed.items()), *opts)]
    flags = ["--resume"] if resume else []
    main(argument_parser().parse_args(["--config-file", TINY_EXT, *flags, *words]))
    return torch.load(output / "model_final.pth", weights_only=True)


WORKERS, PARTS = "DATALOADER.NUM_WORKERS", "SOLVER.ACCUMULATION_STEPS"
PRECISE = "TEST.PRECISE_BN"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["SEED", 3, WORKERS, 0], [WORKERS, 2]),
        (["SEED", -1, WORKERS, 2, PARTS, 2], []),
        (
            ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2],
            [],
        ),
    ],
    ids=["other workers", "parts and a drawn seed", "precise norms"],
)
def test_weights_are_those_of_the_uninterrupted_training(
    first: list, second: list, shapes: Path, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", *first)
    # What a kill leaves: the checkpoint after three iterations.
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000002.pth", killed)
    (killed / "last_checkpoint").write_text("model_0000002.pth")
    resumed = train(killed, *first, *second, resume=True)
    torch.testing.assert_close(resumed["model"], whole["model"], rtol=0, atol=0)
    ours, theirs = resumed["trainer"], whole["trainer"]
    assert (ours["iteration"], ours["hooks"]) == (theirs["iteration"], theirs["hooks"])
    optimizers = [trainer["_trainer"]["optimizer"]["state"] for trainer in (ours, theirs)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)
    middle = torch.load(killed / "model_0000002.pth", weights_only=True)["model"]
    name = "proposal_generator.rpn_head.conv.weight"
    assert not torch.equal(middle[name], whole["model"][name])
