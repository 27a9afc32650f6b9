"""Progress from the first iteration on, and metrics.json as it was."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import IterationTimer, PeriodicWriter
from detectron2.utils.events import CommonMetricPrinter, JSONWriter

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.engine import Trainer
from doublehead_d2.engine.first_iterations import PERIOD, FirstIterations


class Counter(TrainerBase):
    """A training of a loss that is its iteration."""

    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", self.iter)


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("detectron2.utils.events")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


def count(path: Path, start: int, end: int, *hooks: HookBase) -> list[dict]:
    """Train with detectron2's writers; returns the rows of metrics.json, less their times."""
    trainer = Counter()
    writers = [CommonMetricPrinter(end), JSONWriter(str(path))]
    trainer.register_hooks([IterationTimer(), PeriodicWriter(writers, period=20), *hooks])
    trainer.train(start, end)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "eta_seconds")} for row in rows]


@pytest.mark.parametrize(
    ("start", "end", "shown"),
    [
        (0, 25, [0, 1, 4, 9, 19, 24]),
        (
            38,
            50,
            [38, 39, 42, 47, 49],
        ),  # a resumed one; the writers come at 39 and 49 by themselves
        (0, 2, [0, 1]),
        (0, 1, [0]),
        (5, 5, []),
    ],
)
def test_first_iterations_are_shown_once(
    start: int, end: int, shown: list[int], said: list[str], tmp_path: Path
) -> None:
    with_hook = count(tmp_path / "a.json", start, end, FirstIterations())
    iterations = [int(re.findall(r"iter: (\d+)", line)[0]) for line in said]
    assert [i for i in iterations if i < end] == shown
    assert with_hook == count(tmp_path / "b.json", start, end)


def test_the_trainer_shows_them(shapes: Path, tmp_path: Path) -> None:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "cpu", str(tmp_path)
    *_, writer, last = Trainer(cfg)._hooks
    assert isinstance(last, FirstIterations)
    assert isinstance(writer, PeriodicWriter) and writer._period == PERIOD
