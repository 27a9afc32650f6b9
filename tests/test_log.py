"""What a job says on the terminal, and what in log.txt."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.engine import argument_parser, setup
from doublehead_d2.engine.log import _handlers, start_logging

NAMES = ("fvcore", "detectron2", "doublehead_d2")
RED = "\x1b[31mred\x1b[0m"


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Leave the loggers as they were."""
    before = {name: list(logging.getLogger(name).handlers) for name in NAMES}
    yield
    for name, handlers in before.items():
        logging.getLogger(name).handlers[:] = handlers
    _handlers.clear()


def set_up(output: Path, *words: str) -> None:
    opts = [*words, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output)]
    setup(argument_parser().parse_args(["--config-file", TINY_EXT, *opts]))


def test_log_has_all_and_the_terminal_what_is_new(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    set_up(tmp_path, "SOLVER.MAX_ITER", "7")
    said, log = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    assert len(said.splitlines()) < 20
    before = model_zoo.get_config(TINY_EXT).SOLVER.MAX_ITER
    for line in (
        f"SOLVER.MAX_ITER: {before} -> 7",
        "MODEL.DEVICE: 'cuda' -> 'cpu'",
        "World size: 1",
    ):
        assert line in said and line in log, line
    for line in ("PyTorch built with:", "WARMUP_FACTOR:", "Command line arguments:"):
        assert line not in said and line in log, line
    assert str(tmp_path / "config.yaml") in said and (tmp_path / "config.yaml").is_file()
    assert "\x1b" not in log
    assert "\x1b" not in said  # which is no terminal here


def test_colours_are_for_terminals(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=is_terminal: answer)
        start_logging(str(tmp_path / str(is_terminal)))
        logging.getLogger("fvcore.common").warning("it is %s", RED)
        assert (RED in capsys.readouterr().out) == is_terminal
        assert "it is red\n" in (tmp_path / str(is_terminal) / "log.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_twice(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mine = logging.StreamHandler(sys.stdout)
    other = logging.FileHandler(tmp_path / "other.txt")
    logger = logging.getLogger(name)
    for handler in (mine, other):
        logger.addHandler(handler)
    for folder in "aab":
        start_logging(str(tmp_path / folder))
    logger.info("this")
    assert capsys.readouterr().out.count("this") == 1
    assert (tmp_path / "b" / "log.txt").read_text().count("this") == 1
    assert "this" not in (tmp_path / "a" / "log.txt").read_text()
    assert (tmp_path / "other.txt").read_text() == "this\n"


def test_an_error_in_training_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start_logging(str(tmp_path))
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("detectron2.engine.train_loop").exception("Exception during training:")
    assert "broken" not in capsys.readouterr().out
    assert "ValueError: broken" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("trace", ["last_checkpoint", "metrics.json"])
def test_a_folder_in_use_is_refused(trace: str, shapes: Path, tmp_path: Path) -> None:
    set_up(tmp_path)
    (tmp_path / trace).write_text("")
    log = (tmp_path / "log.txt").read_text()
    with pytest.raises(ValueError, match="is the folder of another training"):
        set_up(tmp_path)
    assert (tmp_path / "log.txt").read_text() == log
    weights = ("MODEL.WEIGHTS", "a.pth")
    for option in ("--resume", "--eval-only", "--overwrite"):
        words = ["--config-file", TINY_EXT, option, *weights, "OUTPUT_DIR", str(tmp_path)]
        setup(argument_parser().parse_args(words))
        assert (tmp_path / trace).exists() == (option != "--overwrite")
    with pytest.raises(ValueError, match="--resume goes on with what --overwrite removes"):
        setup(argument_parser().parse_args(["--resume", *words]))


def test_loaders_are_told_of_once_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start_logging(str(tmp_path))
    for name in ("detectron2.data.build", "detectron2.evaluation.evaluator"):
        for _ in range(2):
            logging.getLogger(name).info("by %s", name)
    said, log = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    assert said.count("by detectron2.data.build") == 1
    assert said.count("by detectron2.evaluation.evaluator") == 2
    assert log.count("by detectron2.data.build") == 2
