"""The best weights, and the end of a training that stands still, on a training of one number."""

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer

from conftest import REPOSITORY, TINY_EXT
from doublehead_d2.engine.best_checkpoint import BestCheckpoint
from doublehead_d2.engine.ending import EndOfTraining, EndsEarly
from doublehead_d2.engine.evaluation_hook import EvaluationHook

NAN = float("nan")


class Toy(EndsEarly):
    """A training whose weight is the number of its iterations, evaluated every second one."""

    def __init__(
        self, folder: Path, values: Sequence[float], *, hook: type = EvaluationHook, **best: object
    ) -> None:
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.checkpointer = DetectionCheckpointer(self.model, str(folder), trainer=self)
        self.evaluated: list[int] = []  # iterations done
        self.values = values  # of the evaluations after 2, 4, ... iterations

        def evaluate() -> dict:
            done = int(self.model.weight.item())
            self.evaluated.append(done)
            return {"bbox": {"AP": self.values[(done - 1) // 2], "AP50": 1.0}}

        options = {"metric": "bbox/AP", **best}
        self.best = BestCheckpoint(eval_period=2, checkpointer=self.checkpointer, **options)
        checkpoints = PeriodicCheckpointer(self.checkpointer, period=4)
        self.register_hooks([checkpoints, hook(2, evaluate), self.best])

    def run_step(self) -> None:
        self.model.weight.data.fill_(self.iter + 1)

    def resume(self) -> "Toy":
        if self.checkpointer.has_checkpoint():
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = self.iter + 1
        return self

    def run(self, max_iter: int) -> "Toy":
        self.train(self.start_iter, max_iter)
        return self


class Kill(HookBase):
    """Ends a training as a signal does, after some iterations."""

    def __init__(self, done: int) -> None:
        self.done = done

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.done:
            raise KeyboardInterrupt


def kill_at(toy: Toy, done: int, max_iter: int, *, before_evaluation: bool = False) -> None:
    toy._hooks.insert(1 if before_evaluation else len(toy._hooks), Kill(done))
    toy._hooks[1 if before_evaluation else -1].trainer = toy
    with pytest.raises(KeyboardInterrupt):
        toy.run(max_iter)


def best_of(folder: Path) -> tuple[float, float]:
    """Iterations, by the weight itself, and value of model_best.pth."""
    content = torch.load(folder / "model_best.pth")
    assert set(content) == {"model", "iteration", "best"}
    _, done, value = content["best"]
    assert content["iteration"] == done - 1 and content["model"]["weight"].item() == done
    return done, value


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "doublehead_d2")
    return caplog


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([1, 3, 2, 3], "max", (4, 3)),  # the first of equal ones
        ([1, 3, 2, 0.5], "min", (8, 0.5)),
        ([NAN, 3, NAN, math.inf], "max", (4, 3)),
        ([5, NAN, 4, 6], "max", (8, 6)),  # the last one, after training
    ],
)
def test_best_is_kept(values: list, mode: str, best: tuple, tmp_path: Path) -> None:
    toy = Toy(tmp_path, values, mode=mode).run(8)
    assert toy.evaluated == [2, 4, 6, 8]
    assert best_of(tmp_path) == best == toy.best.saved == toy.best.best
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_what_is_no_number_is_never_best(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    toy = Toy(tmp_path, [NAN] * 4).run(8)
    assert toy.best.saved is None and not (tmp_path / "model_best.pth").exists()
    assert "bbox/AP was never a number: there is no model_best.pth." in said.text


@pytest.mark.parametrize("hook", [EvaluationHook, EvalHook])
def test_patience_ends_the_training(
    hook: type, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    toy = Toy(tmp_path, [1, 3, 2, 3, 9, 9], patience=2, hook=hook).run(12)
    # The end is that of a training of 8 iterations, for all other hooks, too.
    assert toy.iter == toy.max_iter == 8 and toy.model.weight.item() == 8
    assert toy.evaluated == [2, 4, 6, 8] + [8] * (hook is EvalHook)
    final = torch.load(tmp_path / "model_final.pth")
    assert final["iteration"] == final["trainer"]["iteration"] == 7
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert best_of(tmp_path) == (4, 3)
    ends = [x for x in said.messages if "has not improved" in x]
    assert ends == [
        "bbox/AP has not improved for 2 evaluations: the training ends after 8 iterations of 12; "
        "the best bbox/AP is 3.0000 after 4 iterations."
    ]


@pytest.mark.parametrize(
    ("values", "delta", "ended"),
    [
        # Of 1 onwards: 1.4 gains 0.4 and does not count, 1.6 gains 0.6 and does, then 2.2.
        ([1, 1.4, 1.6, 2.0, 2.2, 2.2], 0.5, 12),
        ([1, 1.4, 1.45, 3, 3, 3], 0.5, 6),
        ([1, 1.5, 1.75, 1.75, 1.75, 9], 0.5, 8),
        ([NAN, NAN, 1, 1, 1, 1], 0.0, 4),
        ([NAN, 1, NAN, 2, NAN, 3], 0.0, 12),
    ],
)
def test_patience_counts_from_an_improvement(
    values: list, delta: float, ended: int, tmp_path: Path
) -> None:
    assert Toy(tmp_path, values, patience=2, min_delta=delta).run(12).iter == ended


def test_worse_after_resuming_does_not_overwrite(tmp_path: Path) -> None:
    kill_at(Toy(tmp_path, [1, 9, 8]), 6, 12)
    resumed = Toy(tmp_path, [0, 9, 2, 3, 4, 5]).resume()
    assert resumed.start_iter == 4
    resumed.run(12)
    assert best_of(tmp_path) == (4, 9)


def test_a_file_better_than_the_checkpoint_knows_is_kept(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    """Killed after the evaluation at 6, resumed from 4, and not the same from there on."""
    kill_at(Toy(tmp_path, [1, 2, 9]), 6, 12)
    resumed = Toy(tmp_path, [0, 2, 3, 8, 8, 8]).resume().run(12)
    assert best_of(tmp_path) == resumed.best.saved == (6, 9)
    assert "keeps 9.0000 after 6 iterations, from before the resumption" in said.text
    assert "The best bbox/AP is 9.0000 after 6 iterations" in said.text


@pytest.mark.parametrize("done", range(1, 10))
@pytest.mark.parametrize("before_evaluation", [False, True])
def test_resumed_training_ends_where_an_uninterrupted_one_does(
    done: int, before_evaluation: bool, tmp_path: Path
) -> None:
    values = [1, 5, 4, 6, 6, 5, 7]
    whole = Toy(tmp_path / "whole", values, patience=2).run(14)
    assert whole.iter == 12
    folder = tmp_path / "killed"
    kill_at(Toy(folder, values, patience=2), done, 14, before_evaluation=before_evaluation)
    resumed = Toy(folder, values, patience=2).resume().run(14)
    assert resumed.iter == 12 and resumed.best.state_dict() == whole.best.state_dict()
    assert best_of(folder) == best_of(tmp_path / "whole") == (8, 6)


def test_killed_at_the_checkpoint_of_its_end(tmp_path: Path) -> None:
    """The evaluation that ends it is made up for, and there is a final model."""
    kill_at(Toy(tmp_path, [3, 2, 1, 1], patience=3), 8, 12, before_evaluation=True)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000007.pth"
    resumed = Toy(tmp_path, [3, 2, 1, 1], patience=3).resume().run(12)
    assert resumed.iter == 8 and resumed.evaluated == [8]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_resuming_what_had_ended(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    values = [3, 2, 1, 0, 0, 0, 0, 0]
    Toy(tmp_path, values, patience=2).run(12)
    written = (tmp_path / "model_final.pth").stat().st_mtime_ns
    said.clear()
    again = Toy(tmp_path, values, patience=2).resume().run(12)
    assert again.iter == 6 and again.model.weight.item() == 6 and again.evaluated == [6]
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == written
    (line,) = [x for x in said.messages if "has not improved" in x]
    assert "the training had ended after 6 iterations of 12" in line
    assert line.endswith(
        "With a TEST.BEST.PATIENCE above 2, or a SOLVER.MAX_ITER above 12, it goes on."
    )
    # Another number of processes may evaluate it a little better: it has ended nevertheless.
    assert Toy(tmp_path, [3, 2, 9], patience=2).resume().run(12).iter == 6
    # Either key lets it go on: the count is that of all, or begins anew.
    assert Toy(tmp_path, values, patience=3).resume().run(12).iter == 8
    assert Toy(tmp_path, values, patience=3).resume().run(16).iter == 14


def test_another_metric_forgets(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    Toy(tmp_path, [3, 2, 1]).run(6)
    resumed = Toy(tmp_path, [3, 2, 1, 0], metric="bbox/AP50").resume().run(8)
    assert resumed.best.best == (6, 1.0)
    assert "The checkpoint knows the best of bbox/AP; of bbox/AP50" in said.text
    assert best_of(tmp_path) == (6, 1.0)


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    message = r"'bbox/AP5', which the evaluation does not give; allowed: 'bbox/AP50', 'bbox/AP'$"
    with pytest.raises(ValueError, match=message):
        Toy(tmp_path, [1] * 4, metric="bbox/AP5").run(8)


def test_detectron2s_own_trainer_passes_the_end_on(tmp_path: Path) -> None:
    class Plain(Toy):
        train = TrainerBase.train

    with pytest.raises(EndOfTraining):
        Plain(tmp_path, [3, 2, 1], patience=1).run(6)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_two_processes_end_early_and_stay_ended(small_shapes: Path, tmp_path: Path) -> None:
    """No object is found so early: AP is 0, or no number, and does not improve."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(small_shapes.parent)}
    options = ["TEST.BEST.METRIC", "bbox/AP50", "TEST.BEST.PATIENCE", "1", "TEST.LOSS", "True"]
    options += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "9", "TEST.EVAL_PERIOD", "1"]
    options += ["SOLVER.BASE_LR", "1e-9", "TEST.BEST.IN_CONFIG", "True", "OUTPUT_DIR", "out"]
    # No statistics that each process has of its own
    node = "MODEL.ROI_DOUBLE_HEAD.CONV_HEAD"
    options += ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "GN", f"{node}.NORM", "GN"]
    options += [f"{node}.BOTTLENECK_DIM", "32"]
    said = []
    for extra in (["--num-gpus", "2", "--dist-url", "auto"], ["--resume"]):
        words = [str(REPOSITORY / "train_net.py"), "--config-file", TINY_EXT, *extra, *options]
        result = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-2000:]
        said.append(result.stdout)
    out = tmp_path / "out"
    for text, verb in zip(said, ("ends", "had ended"), strict=True):
        assert text.count(f"the training {verb} after") == 1
    done = int(re.findall(r"the training ends after (\d+) iterations of 9", said[0])[0])
    assert done < 9 and f"Starting training from iteration {done}" in said[1]
    assert torch.load(out / "model_final.pth")["iteration"] == done - 1
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    rows = [row for row in rows if "bbox/AP50" in row]
    assert [row["iteration"] for row in rows] == [done - 1] * 2  # of each run the last
    # However many processes: the same losses of the same weights.
    first, second = (row["validation/total_loss"] for row in rows)
    assert first == pytest.approx(second, rel=1e-4)
    (name,) = re.findall(r"\n  WEIGHTS: out/(.*)", (out / "config.yaml").read_text())
    assert name == ("model_best.pth" if (out / "model_best.pth").exists() else "model_final.pth")
