"""Losses on data that is not trained on."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.data.resize import build_mapper
from doublehead_d2.data.seeding import kept_random_state
from doublehead_d2.engine.validation_loss import (
    ValidationLoss,
    build_loss_loader,
    validation_losses,
)


class Losing(nn.Module):
    """Losses that are the images' values, noise if it is asked for, and all that must not move."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(1))
        self.noise = noise

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        assert self.training
        x = torch.tensor([[float(image["value"])] for image in batch])
        mean = self.drop(self.norm(x)).mean() * self.weight
        return {"loss_a": mean + self.noise * torch.rand(()), "loss_b": 2 * mean}


def images(*values: float) -> list[dict]:
    return [{"image_id": i, "value": value} for i, value in enumerate(values)]


def test_images_weigh_the_same_whatever_their_batch() -> None:
    # (1 + 2 + 6) / 3 = 3, where the mean of the two batches' means would be 3.75.
    model = Losing()
    model.norm.eps = 0.0  # then the norm's statistics, 0 and 1, leave values as they are
    losses = validation_losses(model, [images(1, 2), images(6)])
    assert losses == pytest.approx({"loss_a": 3, "loss_b": 6, "total_loss": 9})
    assert validation_losses(model, []) == {}


def test_nothing_of_the_training_moves() -> None:
    model = Losing(noise=1.0).train()
    model.drop.eval()  # a mode of its own is kept, too
    state = {name: x.clone() for name, x in model.state_dict().items()}
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    wanted = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    with EventStorage() as storage:
        validation_losses(model, [images(1, 2)])
        assert storage.latest() == {}
    torch.testing.assert_close(torch.rand(3), wanted[0], rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.rand(3), wanted[1])  # noqa: NPY002
    assert random.random() == wanted[2]
    torch.testing.assert_close(dict(model.state_dict()), state)
    assert model.weight.grad is None
    assert model.training and model.norm.training and not model.drop.training
    with kept_random_state():
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert random.getstate() != state


def test_the_same_weights_have_the_same_losses_in_any_order() -> None:
    model = Losing(noise=1.0)
    one, two = [images(1)], [[{"image_id": 7, "value": 3}]]
    first = validation_losses(model, one + two)
    torch.manual_seed(99)
    assert validation_losses(model, two + one) == pytest.approx(first, rel=1e-6)
    assert first["loss_a"] != pytest.approx(2.0, abs=1e-3)  # there was noise


class OneProcessOfTwo:
    """What another process would have gathered."""

    def __call__(self, mine: object) -> list:
        return [mine, ({"loss_a": 10.0, "loss_c": 4.0}, 3)]


def test_processes_count_by_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.all_gather", OneProcessOfTwo())
    model = Losing()
    model.norm.eps = 0.0
    # 2 of one image here, 10 of three there: 12 / 4; what one process alone has counts, too.
    losses = validation_losses(model, [images(2)])
    assert losses == pytest.approx({"loss_a": 3, "loss_b": 1, "loss_c": 1, "total_loss": 5})


def test_hook_puts_losses_by_name() -> None:
    model = Losing()
    hook = ValidationLoss(eval_period=2, model=model, loader=[images(2)])
    assert set(hook._func()["validation"]) == {"loss_a", "loss_b", "total_loss"}


def test_loader_has_annotations_and_the_images_of_a_test(shapes: Path) -> None:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = 96, "horizontal"
    cfg.INPUT.CROP.ENABLED = True
    batches = [batch for batch, _ in zip(build_loss_loader(cfg), range(4), strict=False)]
    mapper = build_mapper(cfg, is_train=False)
    for (image,) in batches:
        assert len(image["instances"]) > 0
        wanted = mapper({"file_name": image["file_name"], "height": 128, "width": 128})["image"]
        assert torch.equal(image["image"], wanted) and wanted.shape[1:] == (96, 96)


def test_data_without_annotations_is_refused(catalogs: None) -> None:
    from detectron2.data import DatasetCatalog

    record = {"file_name": "a.png", "height": 9, "width": 9, "image_id": 0, "annotations": []}
    DatasetCatalog.register("test_unlabelled", lambda: [record])
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.DATASETS.TEST = ("test_unlabelled",)
    with pytest.raises(ValueError, match=r"TEST.LOSS is True, and .*'test_unlabelled',\) has no "):
        build_loss_loader(cfg)


def test_detector_gives_the_losses_of_its_training(shapes: Path) -> None:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    state = {name: x.clone() for name, x in model.state_dict().items()}
    batches = [batch for batch, _ in zip(build_loss_loader(cfg), range(2), strict=False)]
    losses = validation_losses(model, batches)
    assert losses == validation_losses(model, batches)
    assert {"loss_cls", "loss_box_reg_unfocused", "loss_rpn_loc", "total_loss"} <= set(losses)
    assert losses["total_loss"] == pytest.approx(sum(losses.values()) - losses["total_loss"])
    assert not model.training and not any(module.training for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), state)
