"""What train_net.py says of mistakes, errors and interruptions, and how it ends."""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from torch.multiprocessing.spawn import ProcessExitedException

from conftest import REPOSITORY, TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.config import merge_opts
from doublehead_d2.data.naming_mapper import RecordError
from doublehead_d2.engine import Trainer, argument_parser, interrupts, main, program, run, setup

SHORT = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]


@pytest.fixture(autouse=True)
def _as_from_a_terminal() -> Iterator[None]:
    """SIGINT is heeded. A shell that starts the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def mistake() -> None:
    merge_opts(model_zoo.get_config(TINY_EXT), ["SOLVER.MAX_ITTER", "5"])


def foreign_error() -> None:
    torch.zeros(2).expand(3).view(7)  # RuntimeError


def foreign_value_error() -> None:
    int("x")


def assertion() -> None:
    raise AssertionError("of ours")


def missing_file() -> None:
    Path("nowhere.txt").read_text()


def status_of(
    does: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *words: str, processes: int = 1
) -> int:
    monkeypatch.setattr(program, "main", lambda args: does())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return run(argument_parser().parse_args([*words, "--num-gpus", str(processes)]))


@pytest.mark.parametrize(
    ("does", "line"),
    [
        (mistake, "error: 'SOLVER.MAX_ITTER' is no config key; did you mean SOLVER.MAX_ITER"),
        (missing_file, "error: [Errno 2] No such file or directory: 'nowhere.txt'"),
    ],
)
def test_a_mistake_ends_in_a_line(
    does: Callable[[], None],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert status_of(does, monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1
    with pytest.raises((ValueError, OSError)):
        status_of(does, monkeypatch, "--traceback")


WORKER_TEXT = """Caught RecordError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 1, in fetch
doublehead_d2.data.naming_mapper.RecordError: image 'a.jpg': OSError: image file is truncated
"""


@pytest.mark.parametrize("text", [WORKER_TEXT, "image 'a.jpg': OSError: image file is truncated"])
def test_a_damaged_image_ends_in_a_line_and_how_to_find_others(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail() -> None:
        raise RecordError(text)

    assert status_of(fail, monkeypatch) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["error: image 'a.jpg': OSError: image file is truncated", program.FIND_ALL]
    with pytest.raises(RecordError):
        status_of(fail, monkeypatch, "--traceback")


DEATHS = {
    "process 1 of the training (id 17) was killed by SIGKILL, and the others were ended;": (
        ProcessExitedException("", 1, 17, -9, "SIGKILL")
    ),
    "process 0 of the training (id 17) ended with status 3, and": (
        ProcessExitedException("", 0, 17, 3)
    ),
    "DataLoader worker (pid 5) is killed by signal: Killed.: a process that loads images": (
        RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")
    ),
    "this process has lost another one of the training, whose own message, or the system's": (
        RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:7")
    ),
}


@pytest.mark.parametrize("line", DEATHS)
def test_deaths_end_in_a_line(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail() -> None:
        raise DEATHS[line]

    assert status_of(fail, monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}") and said.count("\n") == 1


@pytest.mark.parametrize("does", [foreign_error, foreign_value_error, assertion])
def test_an_error_of_code_keeps_its_traceback(
    does: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # This file is none of the package: what it raises is not told from what torch raises.
    with pytest.raises((RuntimeError, ValueError, AssertionError)) as error:
        status_of(does, monkeypatch)
    assert not isinstance(error.value, program.MistakeError)


def test_options_that_cannot_be_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert status_of(mistake, monkeypatch, processes=0) == 1
    assert capsys.readouterr().err.startswith("error: --num-gpus 0 --num-machines 1: both must be")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)],
)
def test_interruptions(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = signal.getsignal(number)
    assert status_of(lambda: signal.raise_signal(number), monkeypatch) == status
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) is before


def test_no_traceback_of_ctrl_c_while_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        for given, then in (
            (signal.default_int_handler, signal.SIG_DFL),
            (signal.SIG_IGN, signal.SIG_IGN),
        ):
            signal.signal(signal.SIGINT, given)
            runpy.run_path(str(REPOSITORY / "train_net.py"), run_name="__mp_main__")
            assert signal.getsignal(signal.SIGINT) is then
    finally:
        signal.signal(signal.SIGINT, before)


# --------------------------------------------------------------------------- resuming


class Interrupt(HookBase):
    """Ctrl-C in a step that is not waited for."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def warnings_of(output: Path, *words: str, interrupt: int) -> list[str]:
    """What `main` warns of a training; `interrupt` is the iteration that Ctrl-C comes in."""
    log, build = output / "log.txt", Trainer.build_hooks
    before = log.read_text() if log.exists() else ""
    words = ("--config-file", TINY_EXT, *words, *SHORT, "OUTPUT_DIR", str(output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "build_hooks", lambda self: [*build(self), Interrupt(interrupt)])
        with pytest.raises(KeyboardInterrupt):
            main(argument_parser().parse_args(words))
    lines = log.read_text().removeprefix(before).splitlines()
    return [line.split("WARNING: ")[1] for line in lines if "engine.train WARNING" in line]


@pytest.mark.slow
def test_what_is_said_of_resuming(shapes: Path, tmp_path: Path) -> None:
    often, seldom = (["SOLVER.CHECKPOINT_PERIOD", period] for period in ("1", "100"))
    none_yet = "Interrupted in iteration 0; the training has no checkpoint yet (SOLVER.CHECKPOINT_P"
    (line,) = warnings_of(tmp_path, *seldom, interrupt=0)
    assert line == f"{none_yet}ERIOD is 100)."

    first, second = warnings_of(tmp_path, "--resume", *often, interrupt=2)
    assert first == f"--resume: {tmp_path} has no checkpoint; the training begins anew."
    saved = tmp_path / "model_0000001.pth"
    goes_on = f"the training goes on from {saved} with --resume."
    assert second == f"Interrupted in iteration 2; {goes_on}"

    # Before it has a checkpoint of its own, a resumed training goes on from the one that it had.
    lines = warnings_of(tmp_path, "--resume", *seldom, interrupt=2)
    assert lines == [f"Interrupted in iteration 2; {goes_on}"]
    # Another training does not.
    (line,) = warnings_of(tmp_path, "--overwrite", *seldom, interrupt=0)
    assert line.startswith(none_yet)


@pytest.mark.slow
def test_nothing_left_to_train(shapes: Path, tmp_path: Path) -> None:
    for words in (["SOLVER.MAX_ITER", "2"], ["--resume", "SOLVER.MAX_ITER", "1"]):
        words = ["--config-file", TINY_EXT, *words, *SHORT, "OUTPUT_DIR", str(tmp_path)]
        main(argument_parser().parse_args(words))
    log = (tmp_path / "log.txt").read_text()
    assert log.count("nothing is left to train") == 1
    said = f"{tmp_path / 'model_final.pth'} was saved after 2 iterations, and SOLVER.MAX_ITER is 1;"
    assert f"{said} to train on, set it above 2.\n" in log


@pytest.mark.slow
def test_a_training_that_diverges_ends_in_a_line(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["--config-file", TINY_EXT, *SHORT, "OUTPUT_DIR", str(tmp_path)]
    words += ["SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "3"]
    assert run(argument_parser().parse_args(words)) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith("error: the training diverged in iteration 1: ")
    images = json.loads((tmp_path / "diverged.json").read_text())["images"]
    assert len(images) == 2 and f"diverged.json: {', '.join(images)}. Try a SOLVER.BASE_LR" in line
    assert line.endswith("Try a SOLVER.BASE_LR below 1e+30, or more SOLVER.WARMUP_ITERS than 3")


@pytest.mark.slow
def test_a_gpu_without_memory_ends_in_a_line(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_step(trainer: Trainer) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")

    monkeypatch.setattr(Trainer, "run_step", run_step)
    words = ["--config-file", TINY_EXT, *SHORT, "OUTPUT_DIR", str(tmp_path)]
    message = r"too small for iteration 0 \(CUDA .* 2 GiB\.\); .*ACCUMULATION_STEPS above 1, .*AMP"
    with pytest.raises(ValueError, match=message):
        main(argument_parser().parse_args(words))


def test_resuming_an_evaluation_of_nothing(shapes: Path, tmp_path: Path) -> None:
    words = ["--config-file", TINY_EXT, "--eval-only", "--resume", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ValueError, match="random weights: MODEL.WEIGHTS is empty"):
        setup(argument_parser().parse_args(words))
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    setup(argument_parser().parse_args(words))


# --------------------------------------------------------------------------- command line


def train_net(*words: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "train_net.py"), "--config-file", TINY_EXT, *words]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_a_mistake_in_two_processes(shapes: Path, tmp_path: Path) -> None:
    words = [*SHORT, "OUTPUT_DIR", "out", "MODEL.WEIGHTS", "nowhere.pth"]
    command = train_net("--num-gpus", "2", "--dist-url", "auto", *words)
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: there is no checkpoint 'nowhere.pth'")
    assert "Traceback" not in result.stdout


def heed_ctrl_c() -> None:
    """Shells let what they start in the background ignore it, and so does what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "number", "send"),
    [
        (1, signal.SIGTERM, os.kill),
        (2, signal.SIGINT, os.kill),  # to the first process alone, as from `kill`
        (2, signal.SIGINT, os.killpg),  # to all, as from a terminal
    ],
)
def test_an_interrupted_training_names_resume(
    processes: int,
    number: int,
    send: Callable[[int, int], None],
    shapes: Path,
    tmp_path: Path,
) -> None:
    if processes > 1 and torch.cuda.is_available():
        pytest.skip("tests gloo processes without a GPU")
    words = ["--num-gpus", str(processes), "--dist-url", "auto", *SHORT, "OUTPUT_DIR", "out"]
    process = subprocess.Popen(
        train_net(*words, "SOLVER.CHECKPOINT_PERIOD", "1"), cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, bufsize=1, preexec_fn=heed_ctrl_c,
        start_new_session=True,
    )  # fmt: skip
    try:
        said = ""
        while " iter: 2/" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        send(process.pid, number)
        # Until the last of the processes that were started has let go of the output.
        rest, errors = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a checkpoint an iteration would fill the disk
    assert process.returncode == 128 + number and errors.splitlines() == ["interrupted"]
    assert "the training goes on from out/model_0000" in rest
    assert rest.count("with --resume.\n") == 1
    assert "with --resume.\n" in (tmp_path / "out" / "log.txt").read_text()


def say_and_go_on(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send("deaf")
    time.sleep(600)


@pytest.mark.slow
def test_processes_that_do_not_end_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "SECONDS_TO_END", 0)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    others, mine = (
        context.Process(target=say_and_go_on, args=(there,), daemon=True) for _ in range(2)
    )
    others.start()
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.processes_end_with_this_one():
            mine.start()
            assert [here.recv(), here.recv()] == ["deaf"] * 2
            raise KeyboardInterrupt
        assert mine.exitcode == -signal.SIGKILL and others.is_alive()
    finally:
        others.kill()
