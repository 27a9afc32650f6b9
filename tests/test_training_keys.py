"""What a config cannot ask of a training."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from builders import default_cfg
from conftest import TINY_EXT
from doublehead_d2.config import training
from doublehead_d2.engine import argument_parser, setup

BEST = "TEST.BEST"


def cfg_of(*opts: object) -> CfgNode:
    test = ("DATASETS.TEST", ("a",), "TEST.EVAL_PERIOD", 5)
    return default_cfg(*test, *opts)


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["SOLVER.ACCUMULATION_STEPS", 4],
        ["SOLVER.DETERMINISTIC", True, "SEED", 0],
        [f"{BEST}.METRIC", "bbox/AP", f"{BEST}.PATIENCE", 3, f"{BEST}.IN_CONFIG", True],
        [f"{BEST}.METRIC", "b/bbox/AP", "DATASETS.TEST", ("a", "b")],
        [f"{BEST}.METRIC", "validation/total_loss", f"{BEST}.MODE", "min", "TEST.LOSS", True],
        ["TEST.EVAL_PERIOD", 0, "TEST.LOSS", True],
    ],
)
def test_what_is_allowed(opts: list) -> None:
    training.check(cfg_of(*opts))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.ACCUMULATION_STEPS", 0], "ACCUMULATION_STEPS is 0; allowed: a whole number, 1 o"),
        (["SOLVER.ACCUMULATION_STEPS", 3], "is 3 and SOLVER.IMS_PER_BATCH is 16, .* multiple of 3"),
        (["SOLVER.DETERMINISTIC", True], "DETERMINISTIC is True and SEED is -1, .*: SEED 0 or mo"),
        (["MODEL.FREEZE", [""]], "MODEL.FREEZE is .*allowed: a list of names"),
        (["TEST.LOSS", True, "DATASETS.TEST", ()], "TEST.LOSS is True and DATASETS.TEST is empty"),
        ([f"{BEST}.MODE", "most"], "BEST.MODE is 'most'; allowed: 'max', 'min'"),
        ([f"{BEST}.PATIENCE", -1], "BEST.PATIENCE is -1; allowed: a whole number, 0 or more"),
        ([f"{BEST}.MIN_DELTA", -0.1], "BEST.MIN_DELTA is -0.1; allowed: 0 or more"),
        ([f"{BEST}.MIN_DELTA", float("nan")], "BEST.MIN_DELTA is nan; allowed: 0 or more"),
        ([f"{BEST}.PATIENCE", 2], "BEST.PATIENCE is 2 and TEST.BEST.METRIC is empty; allowed: a m"),
        ([f"{BEST}.IN_CONFIG", True], "IN_CONFIG is True and TEST.BEST.METRIC is empty"),
        (
            [f"{BEST}.METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 0],
            "is 'bbox/AP' and TEST.EVAL_PERIOD is 0, .*allowed: 1 or more iterations",
        ),
        (
            [f"{BEST}.METRIC", "bbox/AP", "DATASETS.TEST", ()],
            "METRIC is 'bbox/AP' and DATASETS.TEST is empty",
        ),
        (
            [f"{BEST}.METRIC", "bbox/AP", "DATASETS.TEST", ("a", "b")],
            "DATASETS.TEST has 2 data sets; allowed: 'a/bbox/AP', 'b/bbox/AP'",
        ),
        ([f"{BEST}.METRIC", "a/bbox/AP"], "one data set alone, .*; allowed: 'bbox/AP'"),
        ([f"{BEST}.METRIC", "validation/loss_cls"], "'validation/loss_cls', which needs TEST.LOSS"),
        (
            [f"{BEST}.METRIC", "validation/loss_cls", "TEST.LOSS", True],
            "MODE is 'max'; with TEST.BEST.METRIC 'validation/loss_cls', a loss, allowed: 'min'",
        ),
    ],
)
def test_what_is_refused(opts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.check(cfg_of(*opts))


def test_parts_have_images_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 8)
    training.check_parts(cfg_of("SOLVER.ACCUMULATION_STEPS", 2))
    with pytest.raises(ValueError, match="equal parts by 8 processes; allowed: a multiple of 32"):
        training.check_parts(cfg_of("SOLVER.ACCUMULATION_STEPS", 4))


@pytest.mark.parametrize(
    "words",
    [
        ["SOLVER.ACCUMULATION_STEPS", "3"],
        ["TEST.BEST.METRIC", "bbox/AQ", "TEST.EVAL_PERIOD", "5"],
        ["TEST.BEST.METRIC", "bbox/AP"],  # the tiny config evaluates at the end alone
    ],
)
def test_refused_before_there_is_a_folder(words: list, shapes: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = ["--config-file", TINY_EXT, *words, "OUTPUT_DIR", str(output)]
    with pytest.raises(ValueError, match="allowed: "):
        setup(argument_parser().parse_args(command))
    assert not output.exists()
