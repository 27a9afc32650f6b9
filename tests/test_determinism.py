"""Two trainings that are the same to the bit."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import TINY_EXT
from doublehead_d2.engine import argument_parser, main
from doublehead_d2.engine.determinism import WORKSPACE, make_deterministic


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave torch as it was."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    os.environ.pop(WORKSPACE, None)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_settings() -> None:
    torch.backends.cudnn.benchmark = True
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    assert os.environ[WORKSPACE] == ":4096:8"


def test_a_workspace_that_was_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    make_deterministic()
    assert os.environ[WORKSPACE] == ":16:8"


def weights(output: Path, seed: int, workers: int) -> dict[str, torch.Tensor]:
    opts = {
        "SOLVER.DETERMINISTIC": True,
        "SEED": seed,
        "DATALOADER.NUM_WORKERS": workers,
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "DATASETS.TEST": (),
        "OUTPUT_DIR": output,
    }
    words = [str(word) for item in opts.items() for word in item]
    main(argument_parser().parse_args(["--config-file", TINY_EXT, *words]))
    return torch.load(output / "model_final.pth")["model"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_trainings_give_the_same_weights(workers: int, shapes: Path, tmp_path: Path) -> None:
    one = weights(tmp_path / "one", 3, workers)
    assert torch.are_deterministic_algorithms_enabled()
    two = weights(tmp_path / "two", 3, workers)
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    other = weights(tmp_path / "other", 4, workers)
    name = "proposal_generator.rpn_head.conv.weight"
    assert not torch.equal(other[name], one[name])
