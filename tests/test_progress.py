"""The line of progress, and what it adds to metrics.json."""

import json
import logging
from pathlib import Path

import pytest
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import JSONWriter

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.engine import Trainer
from doublehead_d2.engine.progress import ProgressPrinter, count_images


class Counter(TrainerBase):
    """A training whose losses are its iteration, half a second each."""

    data_time = 0.01

    def run_step(self) -> None:
        done = float(self.iter + 1)
        self.storage.put_scalars(loss_cls=done, total_loss=2 * done, data_time=self.data_time)
        self.storage.put_scalars(time=0.5, lr=0.02, smoothing_hint=False)
        self.storage.put_scalar("validation/loss_cls", 7.0)


def lines(
    caplog: pytest.LogCaptureFixture, folder: Path, *, images: int | None = 10, data: float = 0.01
) -> tuple[list[str], list[dict]]:
    caplog.set_level(logging.INFO, "doublehead_d2")
    trainer = Counter()
    trainer.data_time = data
    printer = ProgressPrinter(max_iter=6, batch=4, images=images)
    path = folder / "metrics.json"
    trainer.register_hooks([PeriodicWriter([printer, JSONWriter(str(path))], period=3)])
    trainer.train(0, 6)
    said = [r.getMessage() for r in caplog.records if r.name.endswith("engine.progress")]
    return said, [json.loads(line) for line in path.read_text().splitlines()]


def test_line_is_for_people(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    said, rows = lines(caplog, tmp_path)
    # 3 x 4 of 10 images; 3 more iterations of half a second; medians of 1, 2, 3 and of 2, 4, 6
    assert said[0] == (
        "epoch: 1.20/2.4  iter: 3/6  left: 0:00:01  8 images/s  total_loss: 4  loss_cls: 2  "
        "lr: 0.02"
    )
    assert said[1].startswith("epoch: 2.40/2.4  iter: 6/6  left: 0:00:00")
    assert len(said) == 2  # and nothing after the last iteration
    first, last = rows
    assert (first["epoch"], first["images_per_second"], first["eta_seconds"]) == (1.2, 8.0, 1.5)
    assert (last["epoch"], last["iteration"], last["lr"]) == (2.4, 5, 0.02)


def test_waiting_is_said_where_it_matters(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    said, _ = lines(caplog, tmp_path, data=0.2)
    assert "  waits for data: 40%  " in said[0]


def test_epochs_are_left_out_where_they_are_unknown(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    said, rows = lines(caplog, tmp_path, images=None)
    assert said[0].startswith("iter: 3/6  left") and "epoch" not in rows[0]


def test_loaders_say_how_many_images_they_draw_from(shapes: Path, tmp_path: Path) -> None:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "cpu", str(tmp_path)
    for grouping in (True, False):
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
        assert count_images(Trainer.build_train_loader(cfg)) == 240
    assert count_images(Trainer.build_test_loader(cfg, "shapes_val")) == 40
    assert count_images(iter([])) is None
    trainer = Trainer(cfg)
    assert trainer.build_printer()._images == 240
