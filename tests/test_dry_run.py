"""A training tried out, of which nothing is left."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from builders import default_cfg
from conftest import REPOSITORY, TINY_EXT
from doublehead_d2.engine import argument_parser, main
from doublehead_d2.engine.dry_run import (
    MEASURED,
    WARM_UP,
    Costs,
    _seconds,
    count_evaluations,
    peak_memory,
    report,
)

OPTIONS = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "20"]


@pytest.mark.parametrize(
    ("period", "last", "done", "expected"),
    [
        (0, 100, 0, 1),
        (30, 100, 0, 4),  # after 30, 60, 90 and 100
        (50, 100, 0, 2),  # the last one once
        (30, 100, 60, 2),  # after 90 and 100
        (200, 100, 0, 1),
        (30, 100, 100, 1),
    ],
)
def test_evaluations_are_counted(period: int, last: int, done: int, expected: int) -> None:
    opts = ["TEST.EVAL_PERIOD", period, "SOLVER.MAX_ITER", last]
    assert count_evaluations(default_cfg("DATASETS.TEST", ("a",), *opts), done) == expected
    assert count_evaluations(default_cfg("DATASETS.TEST", (), *opts), done) == 0


def test_report(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    schedule = ["SOLVER.MAX_ITER", 1000, "SOLVER.CHECKPOINT_PERIOD", 300, "TEST.EVAL_PERIOD", 500]
    cfg = default_cfg(*schedule, "DATASETS.TEST", ("a",), "OUTPUT_DIR", str(folder))
    cfg.TEST.BEST.METRIC = "bbox/AP"
    model = nn.Linear(2**20, 3, bias=False)  # 3 x 2^20 numbers of 4 bytes, 12 MB
    costs = Costs(step=0.5, evaluation=60, memory=7 * 2**20)
    said = report(cfg, model, costs)
    for line in (
        "parameters: 3,145,728, of them trained 3,145,728",
        "memory: 7 MB at most in a process",
        "a step of 16 images: 0.5 s",
        "an evaluation: 0:01:00, without",
        # 500 s of steps and 120 of evaluations
        "all: 0:10:20, for 1000 iterations and 2 evaluations",
        f"would be written to {folder} (a new folder):",
        "3 checkpoints model_*.pth of 24 MB, model_final.pth",  # with the momentum
        "model_best.pth of 12 MB",
    ):
        assert line in said, line
    model.requires_grad_(False)
    cfg.TEST.BEST.METRIC = ""
    folder.mkdir()
    said = report(cfg, model, costs, done=700)
    assert "of them trained 0" in said and "pth of 12 MB, model_final" in said
    assert "all: 0:03:30, for 300 iterations and 1 evaluations" in said
    assert "1 checkpoints" in said and "new folder" not in said and "model_best" not in said


def test_the_first_action_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0, 10, 10, 11, 11, 14])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert _seconds([lambda: None] * 3) == 2  # of 1 and 3
    assert _seconds([]) == 0
    times = iter([0, 5])
    assert _seconds([lambda: None]) == 5


def test_memory_is_there() -> None:
    assert peak_memory() > 10**7


def test_evaluation_alone_is_refused(tmp_path: Path) -> None:
    words = ["--config-file", TINY_EXT, "--dry-run", "--eval-only", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ValueError, match="--dry-run is for a training; allowed: without --eval"):
        main(argument_parser().parse_args(words))


@pytest.mark.slow
def test_dry_run_leaves_nothing(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = set(Path(tempfile.gettempdir()).iterdir())
    output = tmp_path / "output"
    words = ["--config-file", TINY_EXT, "--dry-run", *OPTIONS, "TEST.LOSS", "True"]
    assert main(argument_parser().parse_args([*words, "OUTPUT_DIR", str(output)])) is None
    assert not output.exists() and set(Path(tempfile.gettempdir()).iterdir()) == before
    said = capsys.readouterr().out
    assert said.count("Dry run: the training can begin.") == 1
    assert "for 20 iterations and 1 evaluations" in said and f"written to {output} (a new" in said
    assert "OUTPUT_DIR: 'output/shapes_double_head_ext_rcnn_tiny' -> '" in said
    assert f"{output}/config.yaml" not in said
    assert WARM_UP + MEASURED <= 5


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_dry_run_of_two_processes(small_shapes: Path, tmp_path: Path) -> None:
    words = ["--config-file", TINY_EXT, "--dry-run", "--num-gpus", "2", "--dist-url", "auto"]
    opts = ["TEST.LOSS", "True", "SOLVER.ACCUMULATION_STEPS", "2", "SOLVER.IMS_PER_BATCH", "4"]
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "train_net.py"), *words, *OPTIONS, *opts],
        cwd=tmp_path,
        env={**os.environ, "DETECTRON2_DATASETS": str(small_shapes.parent)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("Dry run: the training can begin.") == 1
    assert list(tmp_path.iterdir()) == []
    assert result.stderr == ""  # no warning of the libraries, either
