"""Mixed precision, test-time augmentation, precomputed proposals, test sets without annotations."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.engine import Trainer, argument_parser, complete_config, main
from doublehead_d2.engine.amp import AMPTrainer
from doublehead_d2.engine.proposal_files import check_proposal_files

SHORT = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3]


def cfg_of(name: str, output: Path, *opts: object) -> CfgNode:
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list([*SHORT, "DATASETS.TEST", (), *opts, "OUTPUT_DIR", str(output)])
    return cfg


def evaluate(config: Path, output: Path, *opts: str) -> dict:
    words = ["--config-file", str(config), "--eval-only", "OUTPUT_DIR", str(output), *opts]
    return main(argument_parser().parse_args(words))


def train(*opts: str, config: str = TINY_EXT) -> None:
    main(argument_parser().parse_args(["--config-file", config, *opts]))


# ------------------------------------------------------------------------------------- checks


def test_modes_of_a_single_head_are_refused_before_training(shapes: Path) -> None:
    message = "DOUBLE_HEAD_MODES is True and MODEL.ROI_HEADS.NAME is 'StandardROIHeads'"
    with pytest.raises(ValueError, match=message):
        train("TEST.DOUBLE_HEAD_MODES", "True", config="Shapes-Detection/single_fc_rcnn_tiny.yaml")


def test_deformable_convolution_of_a_single_head_is_refused(shapes: Path) -> None:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False,True,True,True]"]
    with pytest.raises(ValueError, match="a GPU, and MODEL.DEVICE is 'cpu'"):
        train(*opts, config="Shapes-Detection/single_fc_rcnn_tiny.yaml")


@pytest.mark.parametrize("reference", [0, 8])
def test_resuming_with_another_batch(reference: int, shapes: Path, tmp_path: Path) -> None:
    opts = ["SOLVER.REFERENCE_IMS_PER_BATCH", reference, "SOLVER.IMS_PER_BATCH"]

    def trainer(batch: int) -> Trainer:
        return Trainer(complete_config(cfg_of(TINY_EXT, tmp_path, *opts, batch)))

    state, resumed = trainer(4).state_dict(), trainer(2)
    if reference:
        with pytest.raises(ValueError, match="IMS_PER_BATCH 4 and cannot be resumed with 2"):
            resumed.load_state_dict(state)
    else:
        resumed.load_state_dict(state)
    trainer(4).load_state_dict(state)


# ------------------------------------------------------------------------------------- AMP


class Batches:
    """A loader that gives one batch again and again."""

    def __iter__(self) -> object:
        while True:
            yield torch.ones(4, 8)


class Losses(torch.nn.Module):
    """Losses of a linear layer, and the types that it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 2)
        self.types: list[torch.dtype] = []

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(batch)
        self.types.append(y.dtype)
        return {"loss_a": y[:, 0].float().square().mean(), "loss_b": y[:, 1].float().abs().mean()}


def amp_trainer(model: Losses) -> AMPTrainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return AMPTrainer(model, Batches(), optimizer)


def test_amp_step_computes_in_half_precision_and_learns() -> None:
    torch.manual_seed(0)
    model = Losses()
    before = [p.clone() for p in model.parameters()]
    trainer = amp_trainer(model)
    trainer.train(0, 3)
    assert model.types == [torch.bfloat16] * 3
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.dtype == torch.float32 and not torch.equal(old, new)
    assert "loss_a" in trainer.storage.latest()


def test_amp_state_is_kept_and_that_of_full_precision_is_accepted() -> None:
    first, second = amp_trainer(Losses()), amp_trainer(Losses())
    first.train(0, 2)
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.optimizer.state_dict()["state"].keys() == state["optimizer"]["state"].keys()
    del state["grad_scaler"]
    second.load_state_dict(state)


def scaling_trainer(model: Losses, lr: float = 0.01) -> AMPTrainer:
    """Scales gradients as on a GPU, which the CPU's bfloat16 does not need."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = AMPTrainer(model, Batches(), optimizer)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return trainer


def test_scaled_gradients_give_the_same_step() -> None:
    plain, scaled = Losses(), Losses()
    scaled.load_state_dict(plain.state_dict())
    amp_trainer(plain).train(0, 1)
    scaling_trainer(scaled).train(0, 1)
    assert scaled.linear.weight.grad.abs().max() > 0
    for got, wanted in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_step_that_overflows_is_skipped_and_lowers_the_scale() -> None:
    model = Losses()
    trainer = scaling_trainer(model)
    model.linear.weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    before = [p.clone() for p in model.parameters()]
    trainer.train(0, 1)
    for got, wanted in zip(model.parameters(), before, strict=True):
        assert torch.equal(got, wanted)
    assert trainer.grad_scaler.get_scale() == 512.0


def test_scale_is_saved_and_loaded() -> None:
    first, second = scaling_trainer(Losses()), scaling_trainer(Losses())
    first.grad_scaler.load_state_dict({**first.grad_scaler.state_dict(), "scale": 64.0})
    second.load_state_dict(first.state_dict())
    assert second.grad_scaler.get_scale() == 64.0


def test_clipping_sees_gradients_without_scale() -> None:
    model = Losses()
    trainer = scaling_trainer(model, lr=1.0)
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(
        ["ENABLED", True, "CLIP_TYPE", "norm", "CLIP_VALUE", 100.0]
    )
    trainer.optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
        model.parameters(), lr=1.0
    )
    unclipped = Losses()
    unclipped.load_state_dict(model.state_dict())
    scaling_trainer(unclipped, lr=1.0).train(0, 1)
    trainer.train(0, 1)
    assert min(p.grad.norm() for p in model.parameters()) > 100 / 1024
    # Norms are some units: below 100 and left alone, which they were not 1,024 times as large.
    for got, wanted in zip(model.parameters(), unclipped.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [TINY_EXT, "Shapes-Detection/single_fc_rcnn_tiny.yaml"], ids=["ext", "single"]
)
def test_amp_losses_are_those_of_full_precision_to_its_rounding(
    name: str, shapes: Path, tmp_path: Path
) -> None:
    losses = []
    for amp in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  detectron2's augmentations draw from it
        cfg = cfg_of(name, tmp_path / str(amp), "SOLVER.AMP.ENABLED", amp, "SOLVER.MAX_ITER", 1)
        cfg.INPUT.RANDOM_FLIP = "none"
        trainer = Trainer(cfg)
        assert isinstance(trainer._trainer, AMPTrainer) == amp
        trainer.train()
        latest = trainer.storage.latest()
        losses.append({k: v[0] for k, v in latest.items() if k.startswith("loss")})
    assert losses[0] == pytest.approx(losses[1], rel=0.1, abs=0.02)
    assert losses[0] != losses[1]


# ------------------------------------------------------------------------------------- TTA


@pytest.mark.slow
def test_tta_augments_and_reports_both_results(trained: Path, tmp_path: Path) -> None:
    cfg = model_zoo.get_config(str(trained / "config.yaml"))
    assert (cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP) == ((102, 128, 160), True)
    results = evaluate(trained / "config.yaml", tmp_path, "TEST.AUG.ENABLED", "True")
    assert set(results) == {"bbox", "bbox_TTA"}
    assert results["bbox"] != results["bbox_TTA"]
    # Other views of one image agree on what is there.
    assert results["bbox_TTA"]["AP50"] > 0.8 * results["bbox"]["AP50"] > 4
    assert (tmp_path / "inference_TTA" / "coco_instances_results.json").is_file()


@pytest.mark.slow
def test_tta_at_one_scale_without_flip_is_the_plain_evaluation(
    trained: Path, tmp_path: Path
) -> None:
    opts = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(128,)", "TEST.AUG.FLIP", "False"]
    results = evaluate(trained / "config.yaml", tmp_path, *opts)
    # Merging suppresses overlaps again and drops nothing, so it is the same to rounding.
    assert results["bbox_TTA"]["AP"] == pytest.approx(results["bbox"]["AP"], abs=0.05)


@pytest.mark.slow
def test_training_ends_with_tta(shapes: Path, tmp_path: Path) -> None:
    opts = ["TEST.AUG.ENABLED", True, "DATASETS.TEST", ("shapes_val",)]
    opts += ["TEST.EXPECTED_RESULTS", [["bbox_TTA", "AP", 50.0, 100.0]]]
    cfg = cfg_of(TINY_EXT, tmp_path, *opts, "TEST.AUG.MIN_SIZES", (128,))
    trainer = Trainer(cfg)
    assert {"bbox", "bbox_TTA"} <= set(trainer.train())
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    last = json.loads(lines[-1])
    assert "bbox/AP" in last and "bbox_TTA/AP" in last


def test_tta_names_an_image_that_it_cannot_resize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[torch.nn.Module] = []
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, m, _: models.append(m) or {}))
    cfg = cfg_of(TINY_EXT, tmp_path, "DATASETS.TEST", ())
    Trainer.test_with_TTA(cfg, build_model(cfg).eval())
    record = {"file_name": "thin.png", "image": torch.zeros(3, 1, 500), "height": 1, "width": 500}
    with pytest.raises(ValueError, match="image 'thin.png': (Value|Runtime)Error: "):
        models[0]([record])


@pytest.mark.parametrize("key", ["MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"])
def test_tta_that_detectron2_lacks_is_refused(key: str, tmp_path: Path, shapes: Path) -> None:
    message = f"TEST.AUG.ENABLED is True and {key} is True"
    cfg = cfg_of(TINY_EXT, tmp_path, key, True)
    with pytest.raises(ValueError, match=message):
        Trainer.test_with_TTA(cfg, torch.nn.Identity())
    with pytest.raises(ValueError, match=message):  # and not only when the training is over
        train("TEST.AUG.ENABLED", "True", key, "True")


# ------------------------------------------------------------------------------------- proposals


def write_proposals(dataset: str, path: Path) -> str:
    """A proposal file in detectron2's format: the objects themselves and one other box an image."""
    records = DatasetCatalog.get(dataset)
    boxes = []
    for record in records:
        objects = np.array([a["bbox"] for a in record["annotations"]], np.float32).reshape(-1, 4)
        objects[:, 2:] += objects[:, :2]  # XYWH to XYXY
        boxes.append(np.concatenate([objects, [[5, 5, 100, 90]]]).astype(np.float32))
    content = {
        "ids": [record["image_id"] for record in records],
        "boxes": boxes,
        "objectness_logits": [np.ones(len(b), np.float32) for b in boxes],
        "bbox_mode": 0,
    }
    path.write_bytes(pickle.dumps(content))
    return str(path)


@pytest.mark.slow
def test_precomputed_proposals_train_and_evaluate(shapes: Path, tmp_path: Path) -> None:
    opts = ["MODEL.LOAD_PROPOSALS", True, "DATASETS.TEST", ("shapes_val",)]
    opts += ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        path = write_proposals(f"shapes_{split}", tmp_path / f"{split}.pkl")
        opts += [f"DATASETS.PROPOSAL_FILES_{key}", (path,)]
    trainer = Trainer(cfg_of(TINY_EXT, tmp_path, *opts))
    assert trainer.model.proposal_generator is None
    results = trainer.train()
    losses = trainer.storage.latest()
    assert "loss_box_reg_unfocused" in losses and "loss_rpn_cls" not in losses
    assert results is None or "bbox" in results
    assert (tmp_path / "inference" / "coco_instances_results.json").is_file()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.LOAD_PROPOSALS", True],
            "PROPOSAL_GENERATOR.NAME is 'RPN'; with MODEL.LOAD_PROPOSALS True allowed: 'Precomp",
        ),
        (
            ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
            "'PrecomputedProposals', which needs MODEL.LOAD_PROPOSALS True",
        ),
        (
            [
                "MODEL.LOAD_PROPOSALS",
                True,
                *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
            ],
            "DATASETS.PROPOSAL_FILES_TRAIN has 0 files for 1 data sets",
        ),
        (
            [
                "MODEL.LOAD_PROPOSALS",
                True,
                *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
                *("DATASETS.PROPOSAL_FILES_TRAIN", "('no_such.pkl',)"),
            ],
            "DATASETS.PROPOSAL_FILES_TRAIN: there is no file no_such.pkl",
        ),
    ],
)
def test_proposals_that_would_be_ignored_or_missing_are_refused(
    opts: list, message: str, shapes: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(*map(str, opts))


BOXES = [np.zeros((1, 4), np.float32)]
LOGITS = [np.zeros(1, np.float32)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a.pkl' is no file of proposals: it holds a list of something else; allowed: a p"),
        ({"ids": [0], "boxes": BOXES}, r"a dict of ids \(1\), boxes \(1\); allowed: .*or scores$"),
        (
            {"ids": [0, 1], "boxes": BOXES, "scores": LOGITS},
            r"ids \(2\), boxes \(1\), scores \(1\)",
        ),
        ({"indexes": ["7"], "boxes": BOXES, "scores": LOGITS}, "a.pkl' has no proposals for 39 im"),
    ],
)
@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_files_that_hold_no_proposals(
    split: str, content: object, message: str, shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    cfg = cfg_of(TINY_EXT, tmp_path, "MODEL.LOAD_PROPOSALS", True)
    cfg.DATASETS[split] = ("shapes_val",)
    cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = (str(tmp_path / "a.pkl"),)
    with pytest.raises(ValueError, match=message):
        check_proposal_files(cfg, split)


def test_proposals_by_either_name_or_of_arrays_are_taken(shapes: Path, tmp_path: Path) -> None:
    path = Path(write_proposals("shapes_val", tmp_path / "a.pkl"))
    cfg = cfg_of(TINY_EXT, tmp_path, "MODEL.LOAD_PROPOSALS", True)
    cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST = ("shapes_val",), (str(path),)
    check_proposal_files(cfg, "TEST")
    content = pickle.loads(path.read_bytes())
    content["scores"] = content.pop("objectness_logits")
    content["indexes"] = np.array(content.pop("ids"))
    path.write_bytes(pickle.dumps(content))
    check_proposal_files(cfg, "TEST")


# ------------------------------------------------------------------------------------- test-dev


@pytest.mark.slow
def test_results_file_for_images_without_annotations(trained: Path, tmp_path: Path) -> None:
    """COCO test-dev is such a set: its file has images and categories and nothing else."""
    data = Path(MetadataCatalog.get("shapes_val").json_file)
    content = json.loads(data.read_text())
    del content["annotations"]
    (tmp_path / "info.json").write_text(json.dumps(content))
    root = MetadataCatalog.get("shapes_val").image_root
    name = "test_images_without_annotations"
    register_coco_instances(name, {}, str(tmp_path / "info.json"), root)
    try:
        evaluate(trained / "config.yaml", tmp_path, "DATASETS.TEST", f"('{name}',)")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= set(results[0])
    assert {result["category_id"] for result in results} <= {1, 2, 3}  # the file's own ids
