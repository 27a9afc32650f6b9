"""A training that is asked to end does so after a whole step."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm
from torch import nn

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.engine import interrupts, launch
from doublehead_d2.engine.interrupts import asked_to_end, interruptible
from doublehead_d2.engine.stopping import StopWhenAsked

ITERATIONS = 6


@pytest.fixture(autouse=True)
def _as_from_a_terminal() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Model(nn.Linear):
    """Does something in its forward pass of a given number."""

    def __init__(self, at: int = -1, does: Callable[[], object] = lambda: None) -> None:
        super().__init__(2, 1)
        self.at, self.does, self.steps = at, does, 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.steps == self.at:
            self.does()
        self.steps += 1
        return {"loss": super().forward(x).sum()}


class Between(HookBase):
    """Does something between two steps, as an evaluation does."""

    def __init__(self, at: int, does: Callable[[], object]) -> None:
        self.at, self.does, self.done = at, does, False

    def after_step(self) -> None:
        if self.trainer.iter == self.at:
            self.does()
            self.done = True


def train(
    folder: Path, model: Model, *more: HookBase, period: int = 100, eval_period: int = 0
) -> StopWhenAsked:
    """As `_train` of engine/train.py."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, [torch.ones(1, 2)] * ITERATIONS, optimizer)
    checkpointer = DoubleHeadCheckpointer(model, str(folder))
    hook = StopWhenAsked(checkpointer, eval_period)
    trainer.register_hooks([PeriodicCheckpointer(checkpointer, period), hook, *more])
    try:
        with interruptible():
            trainer.train(0, ITERATIONS)
    except KeyboardInterrupt:
        hook.save()
        raise
    return hook


def saved(folder: Path) -> dict[str, int]:
    """The iteration of each checkpoint, and of the last one."""
    found = {x.stem: torch.load(x)["iteration"] for x in folder.glob("*.pth")}
    last = folder / "last_checkpoint"
    return {**found, "last": found[last.read_text()[:-4]]} if last.exists() else found


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_in_a_step_ends_after_it(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    model = Model(2, lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(tmp_path, model)
    assert interrupt.value.args == (number,)
    assert model.steps == 3 and saved(tmp_path) == {"model_0000002": 2, "last": 2}
    weight = torch.load(tmp_path / "model_0000002.pth")["model"]["weight"]
    assert torch.equal(weight, model.weight)
    assert asked_to_end() == 0 and signal.getsignal(number) is not interrupts._heed


def test_a_checkpoint_that_is_there_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = DoubleHeadCheckpointer.save
    monkeypatch.setattr(
        DoubleHeadCheckpointer, "save", lambda *a, **k: (written.append(a[1]), real(*a, **k))
    )
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Model(1, lambda: signal.raise_signal(signal.SIGTERM)), period=2)
    assert written == ["model_0000001"]


def test_a_signal_between_steps_ends_at_once(tmp_path: Path) -> None:
    between = Between(2, lambda: signal.raise_signal(signal.SIGTERM))
    model = Model()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model, between)
    assert not between.done and model.steps == 3
    assert saved(tmp_path) == {"model_0000002": 2, "last": 2}


@pytest.mark.parametrize(("eval_period", "steps"), [(0, 4), (2, 4), (3, 3)])
def test_one_of_several_ends_alone_only_where_all_evaluate(
    eval_period: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal after iteration 2 waits for the end of the next step, unless 3 are evaluated."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(SimpleTrainer, "write_metrics", lambda *args: None)  # of all processes
    monkeypatch.setattr(StopWhenAsked, "_agreed", lambda self, number: number)
    model, between = Model(), Between(2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model, between, eval_period=eval_period)
    assert model.steps == steps


def test_a_late_signal_of_an_agreed_end_is_the_same() -> None:
    with interruptible():
        interrupts.count_as_asked(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # which is ignored
        assert asked_to_end() == signal.SIGINT


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same one, from the launcher
        monkeypatch.setattr(interrupts, "SECONDS_OF_ONE", 0)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("still here")

    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(tmp_path, Model(2, twice))
    assert interrupt.value.args == (signal.SIGTERM,)
    assert saved(tmp_path) == {}  # the step was not whole


def test_a_signal_in_the_last_step_leaves_the_final_model(tmp_path: Path) -> None:
    evaluated: list[int] = []

    class Evaluation(HookBase):
        def after_train(self) -> None:
            evaluated.append(1)

    last = ITERATIONS - 1
    model = Model(last, lambda: signal.raise_signal(signal.SIGTERM))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, [torch.ones(1, 2)] * ITERATIONS, optimizer)
    checkpointer = DoubleHeadCheckpointer(model, str(tmp_path))
    periodic = PeriodicCheckpointer(checkpointer, 100)
    trainer.register_hooks([periodic, StopWhenAsked(checkpointer), Evaluation()])
    with pytest.raises(KeyboardInterrupt), interruptible():
        periodic.max_iter = ITERATIONS
        trainer.train(0, ITERATIONS)
    assert saved(tmp_path) == {"model_final": last, "last": last} and not evaluated


def test_a_training_that_is_not_asked_goes_on(tmp_path: Path) -> None:
    model = Model()
    train(tmp_path, model)
    assert model.steps == ITERATIONS and saved(tmp_path).keys() == {"model_final", "last"}


def test_an_error_is_not_hidden(tmp_path: Path) -> None:
    def fail() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("of the step")

    with pytest.raises(RuntimeError, match="of the step"):
        train(tmp_path, Model(2, fail))
    with interruptible(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)  # which no longer waits


def in_fork(does: Callable[[], None]) -> int:
    process = os.fork()
    if not process:
        does()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_processes_that_load_images_live_on() -> None:
    def once() -> None:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)

    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    def as_torch_has_it() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        interrupts.live_on(0)
        signal.raise_signal(signal.SIGTERM)

    with interruptible():
        assert in_fork(as_torch_has_it) == 7
        assert in_fork(once) == 7
        assert in_fork(twice) == -signal.SIGTERM  # torch ends those that do not end


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGUSR1)
            assert asked_to_end() == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


def train_in_two(folder: str) -> None:
    """The process that is not the main one is asked to end, and the other one not."""
    from detectron2.utils import comm

    def ask() -> None:
        if comm.get_rank() == 1:
            signal.raise_signal(signal.SIGTERM)

    model = Model(2, ask)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, [torch.ones(1, 2)] * ITERATIONS, optimizer)
    trainer.register_hooks([StopWhenAsked(DoubleHeadCheckpointer(model, folder))])
    try:
        trainer.train(0, ITERATIONS)
    finally:
        Path(folder, f"{comm.get_rank()}.txt").write_text(str(model.steps))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_all_processes_end_after_the_same_step(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupt:
        launch(train_in_two, 2, dist_url="auto", args=(str(tmp_path),))
    assert interrupt.value.args == (signal.SIGTERM,)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["3", "3"]
    assert saved(tmp_path) == {"model_0000002": 2, "last": 2}


def one_dies_and_one_waits(folder: str) -> None:
    from detectron2.utils import comm

    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Event().wait(600)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_a_process_that_waits_for_a_dead_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "SECONDS_AFTER_FAILURE", 0.5)
    start = time.monotonic()
    with pytest.raises(Exception, match="process 1 terminated with signal SIGKILL"):
        launch(one_dies_and_one_waits, 2, dist_url="auto", args=(str(tmp_path),))
    assert time.monotonic() - start < 300  # it would wait for 600
