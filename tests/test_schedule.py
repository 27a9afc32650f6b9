"""Learning rate and schedule that follow the total batch."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from builders import default_cfg
from conftest import DATASETS
from doublehead_d2 import model_zoo
from doublehead_d2.config import check_config
from doublehead_d2.engine import Trainer, argument_parser, setup
from doublehead_d2.engine.schedule import scale_schedule

WRITTEN = {
    "IMS_PER_BATCH": 16,
    "REFERENCE_IMS_PER_BATCH": 16,
    "BASE_LR": 0.02,
    "MAX_ITER": 90000,
    "STEPS": (60000, 80000),
    "WARMUP_ITERS": 1000,
    "CHECKPOINT_PERIOD": 5000,
}


def cfg_of_batch(batch: int, **changes: object) -> object:
    opts = [x for key, value in {**WRITTEN, **changes}.items() for x in (f"SOLVER.{key}", value)]
    return default_cfg(*opts, "SOLVER.IMS_PER_BATCH", batch, "TEST.EVAL_PERIOD", 5000)


def test_halved_batch_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    # Half the images: half the lr, twice the iterations.
    cfg = cfg_of_batch(8)
    with caplog.at_level(logging.WARNING):
        scaled = scale_schedule(cfg)
    solver = scaled.SOLVER
    assert pytest.approx(0.01) == solver.BASE_LR
    assert (solver.MAX_ITER, solver.STEPS) == (180000, (120000, 160000))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (2000, 10000)
    assert scaled.TEST.EVAL_PERIOD == 10000
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_IMS_PER_BATCH) == (8, 8)
    assert cfg.SOLVER.BASE_LR == 0.02  # the given config is left alone
    for line in ("BASE_LR: 0.02 -> 0.01", "MAX_ITER: 90000 -> 180000", "factor 0.5"):
        assert line in caplog.text


def test_detectron2s_schedule_at_8_images_is_the_papers() -> None:
    ours = model_zoo.get_config("COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml")
    ours.SOLVER.IMS_PER_BATCH = 8
    paper = model_zoo.get_config("COCO-Detection/double_head_rcnn_R_50_FPN_paper_1x.yaml").SOLVER
    ours = scale_schedule(ours).SOLVER
    assert pytest.approx(paper.BASE_LR) == ours.BASE_LR
    assert (ours.MAX_ITER, ours.STEPS) == (paper.MAX_ITER, paper.STEPS)


def test_twice_is_once_and_there_and_back_is_nothing() -> None:
    scaled = scale_schedule(cfg_of_batch(32))
    assert scale_schedule(scaled) is scaled
    scaled.SOLVER.IMS_PER_BATCH = 16
    assert scale_schedule(scaled) == cfg_of_batch(16)


@pytest.mark.parametrize("changes", [{}, {"REFERENCE_IMS_PER_BATCH": 0}])
def test_nothing_to_do(changes: dict, caplog: pytest.LogCaptureFixture) -> None:
    cfg = cfg_of_batch(16 if not changes else 2, **changes)
    assert scale_schedule(cfg) is cfg and not caplog.records


def test_no_count_vanishes_and_off_stays_off() -> None:
    cfg = cfg_of_batch(16, REFERENCE_IMS_PER_BATCH=2, MAX_ITER=3, STEPS=(), WARMUP_ITERS=0)
    cfg.TEST.EVAL_PERIOD = 0
    solver = scale_schedule(cfg).SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (1, (), 0)
    assert scale_schedule(cfg).TEST.EVAL_PERIOD == 0


def test_a_frozen_config_stays_frozen() -> None:
    cfg = cfg_of_batch(8)
    cfg.freeze()
    assert scale_schedule(cfg).is_frozen()


@pytest.mark.parametrize("refuse", [check_config, scale_schedule, Trainer])
def test_impossible_batches_are_refused(refuse: Callable) -> None:
    with pytest.raises(ValueError, match="REFERENCE_WORLD_SIZE is 8: both scale the learning rate"):
        refuse(cfg_of_batch(16, REFERENCE_WORLD_SIZE=8))
    with pytest.raises(ValueError, match="REFERENCE_IMS_PER_BATCH is -1; allowed: 0"):
        refuse(cfg_of_batch(8, REFERENCE_IMS_PER_BATCH=-1))
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH is 0; allowed: 1 or more"):
        refuse(cfg_of_batch(0))


def test_a_schedule_of_another_batch_is_not_trained_with() -> None:
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 8, .* batches of 16 .*complete_config"):
        Trainer(cfg_of_batch(8))


def test_training_uses_and_saves_the_scaled_schedule(shapes: Path, tmp_path: Path) -> None:
    words = ["--config-file", "Shapes-Detection/double_head_ext_rcnn_tiny.yaml"]
    words += ["SOLVER.REFERENCE_IMS_PER_BATCH", "8", "SOLVER.IMS_PER_BATCH", "2"]
    cfg = setup(argument_parser().parse_args([*words, "OUTPUT_DIR", str(tmp_path)]))
    saved = model_zoo.get_config(str(tmp_path / "config.yaml"))
    for config in (cfg, saved, Trainer(cfg).cfg):
        assert (config.SOLVER.BASE_LR, config.SOLVER.MAX_ITER) == (0.005, 4400)
    assert (DATASETS / "shapes").exists()


def test_number_of_gpus_changes_nothing(shapes: Path, tmp_path: Path) -> None:
    words = ["--config-file", "Shapes-Detection/double_head_ext_rcnn_tiny.yaml", "--num-gpus", "8"]
    words += ["SOLVER.REFERENCE_IMS_PER_BATCH", "8"]
    cfg = setup(argument_parser().parse_args([*words, "OUTPUT_DIR", str(tmp_path)]))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.02, 1100)
