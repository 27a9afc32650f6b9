"""Batches in parts: gradients, what is logged, and the exchange between processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from builders import EXT, random_features, sampled_proposals, small_heads
from doublehead_d2.engine.accumulation import AccumulatingTrainer
from doublehead_d2.engine.amp import AMPTrainer

Batch = list


class Loader:
    """Gives the listed batches again and again."""

    def __init__(self, *batches: object) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator:
        while True:
            yield from self.batches


class Square(nn.Module):
    """The mean of (w x)^2, whose gradient is the mean of 2 w x^2, and a loss of a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        losses = {"loss_square": (self.w * x).square().mean()}
        return losses | ({"loss_big": 0 * self.w + 1} if x.max() > 2 else {})


def step(trainer_type: type, model: nn.Module, *batches: object, lr: float = 0.1) -> SimpleTrainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = trainer_type(model, Loader(*batches), optimizer, *([len(batches)] * (lr > 0)))
    trainer.train(0, 1)
    return trainer


def test_gradients_are_averaged_and_losses_are_those_of_the_batch() -> None:
    model = Square()
    trainer = step(AccumulatingTrainer, model, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
    # The mean of x^2 is (1 + 4 + 9 + 0) / 4 = 3.5, so the gradient is 7 and w is 1 - 0.7.
    assert model.w.grad.item() == pytest.approx(7.0)
    assert model.w.item() == pytest.approx(0.3)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert latest["loss_square"] == pytest.approx(3.5)
    assert latest["loss_big"] == 0.5  # of one part of two
    assert latest["total_loss"] == pytest.approx(4.0)
    assert latest["data_time"] >= 0


def test_gradients_of_a_step_are_not_those_of_the_one_before() -> None:
    model = Square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ones = torch.ones(1)
    AccumulatingTrainer(model, Loader(ones, ones), optimizer, 2).train(0, 2)
    # w: 1, then 1 - 0.1 * 2 = 0.8, then 0.8 - 0.1 * 1.6 = 0.64
    assert model.w.item() == pytest.approx(0.64)


def test_data_time_is_that_of_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    one = torch.ones(1)
    trainer = step(AccumulatingTrainer, Square(), one, one, one)
    assert trainer.storage.latest()["data_time"][0] == 3  # a tick each


@pytest.mark.parametrize("trainer_type", [AccumulatingTrainer, AMPTrainer])
def test_processes_exchange_gradients_with_the_last_part_alone(
    trainer_type: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Shared(Square):
        @contextlib.contextmanager
        def no_sync(self) -> Iterator[None]:
            calls.append("kept")
            yield
            calls.append("till here")

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            calls.append("forward")
            self.w.register_hook(lambda grad: calls.append("backward"))
            return super().forward(x)

    monkeypatch.setattr(f"{AccumulatingTrainer.__module__}.DistributedDataParallel", Shared)
    one = torch.ones(1)
    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer_type(model, Loader(one, one), optimizer, 2).train(0, 1)
    first = calls.index("till here")
    assert calls[0] == "kept" and "forward" in calls[:first] and "backward" in calls[:first]
    assert calls.count("kept") == 1 and "forward" in calls[first:]


def test_amp_parts_give_the_step_of_full_precision_to_its_rounding() -> None:
    x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])  # exact in bfloat16
    models = Square(), Square()
    step(AccumulatingTrainer, models[0], *x)
    trainer = step(AMPTrainer, models[1], *x)
    assert trainer.parts == 2
    torch.testing.assert_close(models[1].w, models[0].w)


def test_parts_are_scaled_alike() -> None:
    model = Square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AMPTrainer(model, Loader(torch.ones(1), 3 * torch.ones(1)), optimizer, 2)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.train(0, 1)
    # The mean of 1 and 9, twice: 10, unscaled before the step.
    assert model.w.item() == pytest.approx(0.0, abs=1e-6)


class BoxLosses(nn.Module):
    """Losses of RoI heads whose norms look at no batch, for images given by number."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = small_heads(*EXT, "MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NORM", "FrozenBN")

    def forward(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        features, proposals = random_features(4), sampled_proposals((6, 6, 6, 6))
        chosen = {name: x[numbers] for name, x in features.items()}
        return self.heads._forward_box(chosen, [proposals[i] for i in numbers])


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[0], [1], [2], [3]]])
def test_parts_of_equal_rois_have_the_gradients_of_the_batch(parts: list) -> None:
    whole, cut = BoxLosses(), BoxLosses()
    cut.load_state_dict(whole.state_dict())
    one = step(AccumulatingTrainer, whole, [0, 1, 2, 3])
    several = step(AccumulatingTrainer, cut, *parts)
    for (name, a), b in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-5, msg=name)
    assert any(parameter.grad.abs().max() > 1e-2 for parameter in whole.parameters())
    names = [name for name in one.storage.latest() if "loss" in name]
    for name in names:
        assert several.storage.latest()[name][0] == pytest.approx(
            one.storage.latest()[name][0], abs=1e-5
        )


def test_batch_norm_sees_the_parts() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1, momentum=1.0)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.norm(x).square().mean()}

    model = Normed()
    step(AccumulatingTrainer, model, torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]]))
    assert model.norm.running_mean.item() == 5  # of the last part, not 3
    assert model.norm.num_batches_tracked == 2


def test_trainer_cuts_the_batch(shapes: Path, tmp_path: Path) -> None:
    from conftest import TINY_EXT
    from doublehead_d2 import model_zoo
    from doublehead_d2.engine import Trainer

    cfg = model_zoo.get_config(TINY_EXT)
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 6, "OUTPUT_DIR", str(tmp_path)]
    cfg.merge_from_list([*opts, "SOLVER.ACCUMULATION_STEPS", 3, "DATASETS.TEST", ()])
    assert len(next(iter(Trainer.build_train_loader(cfg)))) == 2
    trainer = Trainer(cfg)
    assert isinstance(trainer._trainer, AccumulatingTrainer) and trainer._trainer.parts == 3
    cfg.SOLVER.AMP.ENABLED = True
    assert Trainer(cfg)._trainer.parts == 3
    cfg.SOLVER.IMS_PER_BATCH = 8
    with pytest.raises(ValueError, match=r"ACCUMULATION_STEPS is 3 .*PER_BATCH is 8, .*tiple of 3"):
        Trainer(cfg)
