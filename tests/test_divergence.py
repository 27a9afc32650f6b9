"""A loss that is not finite names the images."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from doublehead_d2.engine.accumulation import AccumulatingTrainer
from doublehead_d2.engine.divergence import NamingSteps, NotFiniteError, save_batch


class Model(nn.Module):
    """Losses of a batch of records: the sum of their values, and one that is always 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        return {"loss_a": self.w * sum(x["value"] for x in batch), "loss_b": self.w.sum() * 0 + 1}


def record(name: str, value: float = 1.0) -> dict:
    return {"file_name": name, "value": value}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [NamingSteps, AccumulatingTrainer])
def test_the_step_is_not_taken(kind: type[NamingSteps], value: float) -> None:
    model = Model()
    loader = [[record("a")], [record("b", value), record("c")]]
    steps = kind(model, loader, torch.optim.SGD(model.parameters(), lr=0.1))
    with EventStorage():
        steps.run_step()
        assert steps.images == ["a"]
        before = model.w.item()
        assert before == pytest.approx(0.9)
        with pytest.raises(NotFiniteError, match=rf"^loss_a is {value}\.$"):
            steps.run_step()
    assert steps.images == ["b", "c"] and model.w.item() == before


def test_all_parts_of_a_step_are_named() -> None:
    model = Model()
    loader = [[record(name)] for name in "abcd"]
    steps = AccumulatingTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    with EventStorage():
        for images in (["a", "b"], ["c", "d"]):
            steps.run_step()
            assert steps.images == images
    model.eval()
    model([record("evaluated")])
    assert steps.images == ["c", "d"]


def test_a_sum_that_overflows() -> None:
    class Large(Model):
        def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
            large = self.w.double() * 1.5e308
            return {"loss_a": large, "loss_b": large}

    steps = NamingSteps(Large(), [[record("a")]], torch.optim.SGD(Large().parameters(), lr=0.1))
    with EventStorage(), pytest.raises(NotFiniteError, match="the sum of .*1.5e"):
        steps.run_step()


def test_the_batch_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_batch(str(tmp_path), 7, "loss_a is nan.", ["b", "c"])
    assert Path(path) == tmp_path / "diverged.json"
    content = {"iteration": 7, "reason": "loss_a is nan.", "images": ["b", "c"]}
    assert json.loads(Path(path).read_text()) == content
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 3)
    assert save_batch(str(tmp_path), 7, "", []).endswith("diverged.rank3.json")
