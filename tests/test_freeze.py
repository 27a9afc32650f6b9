"""Parts of a model that are not trained."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from torch import nn

from builders import default_cfg
from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.engine import Trainer
from doublehead_d2.engine.freeze import FrozenNorms, freeze, frozen_norms


class Small(nn.Module):
    """A trunk of a layer (2 x 2 and 2) with a norm (2 and 2), and a head (2 and 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.trunk_two = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)


def frozen(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not p.requires_grad]


TRUNK = ["trunk.0.weight", "trunk.0.bias", "trunk.1.weight", "trunk.1.bias"]


@pytest.mark.parametrize(
    ("patterns", "expected", "norms"),
    [
        ([], [], 0),
        (["trunk"], TRUNK, 1),  # and not trunk_two
        (["trunk.*"], TRUNK, 1),
        (["trunk.1"], TRUNK[2:], 1),
        (["*.bias"], ["trunk.0.bias", "trunk.1.bias", "trunk_two.bias", "head.bias"], 0),
        (["trunk.1.?*"], TRUNK[2:], 1),
        (["head", "trunk.0.weight"], ["trunk.0.weight", "head.weight", "head.bias"], 0),
    ],
)
def test_names_choose_parameters_and_norms(patterns: list, expected: list, norms: int) -> None:
    model = freeze(Small(), patterns)
    assert frozen(model) == expected
    assert len(frozen_norms(model)) == norms


def test_log_says_how_much_is_frozen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "doublehead_d2")
    freeze(Small(), ["trunk"])
    # 4 + 2 + 2 + 2 of the trunk; 6 more in trunk_two and 3 in the head
    assert caplog.messages == [
        "MODEL.FREEZE ['trunk']: 10 parameters in 4 tensors are frozen, and the statistics of 1 "
        "batch norms; in all 10 of 19 parameters are not trained."
    ]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["trunk", "hed.*"], r"matches 'hed\.\*'; allowed, for example: 'head'"),
        (["xyz"], r"matches 'xyz'; allowed, for example: 'head', .*'trunk', .*'trunk_two'"),
        (["*"], r"FREEZE is \['\*'\], which leaves nothing to train"),
        ("trunk", "FREEZE is 'trunk'; allowed: a list of names"),
        ([""], r"FREEZE is \[''\]; allowed: a list of names of modules or parameters"),
        ([3], r"FREEZE is \[3\]; allowed: a list"),
    ],
)
def test_patterns_that_make_no_sense(patterns: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(Small(), patterns)


def test_frozen_norms_keep_their_statistics_through_training() -> None:
    model = freeze(Small(), ["trunk"])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    hook = FrozenNorms(model)
    for _ in range(2):
        model.train()  # as after an evaluation
        hook.before_step()
        model.trunk(torch.randn(4, 2) * 9)
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert model.training and not model.trunk[1].training


def test_optimizer_has_what_is_trained() -> None:
    model = freeze(Small(), ["trunk.0"])
    optimizer = build_optimizer(default_cfg(), model)
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert count == 19 - 6


def test_detector_with_a_frozen_backbone(shapes: Path, tmp_path: Path) -> None:
    cfg = model_zoo.get_config(TINY_EXT)
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", str(tmp_path)]
    patterns = ["backbone.bottom_up", "roi_heads.box_head.*"]
    cfg.merge_from_list([*opts, "MODEL.FREEZE", patterns, "DATASETS.TEST", (), "SEED", 1])
    trainer = Trainer(cfg)
    assert [type(hook) for hook in trainer._hooks].count(FrozenNorms) == 1
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    trainer.max_iter = 1
    trainer.train()
    moved = {n for n, x in trainer.model.state_dict().items() if not torch.equal(x, before[n])}
    assert not any(n.startswith(("backbone.bottom_up", "roi_heads.box_head.")) for n in moved)
    assert any(n.startswith("backbone.fpn") for n in moved)
    assert any("running_mean" in n for n in moved)  # of the conv-head, which is trained
    # A model without frozen parts has the same tensors.
    assert build_model(cfg).state_dict().keys() == before.keys()
