"""Launching, setting up, training, resuming, evaluating."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.engine import HookBase, create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from builders import EXT, random_features, sampled_proposals, small_heads
from conftest import DATASETS, REPOSITORY, RUN, TINY_EXT, once
from doublehead_d2 import model_zoo
from doublehead_d2.engine import Trainer, argument_parser, launch, main, setup
from doublehead_d2.engine.accumulation import AccumulatingTrainer
from doublehead_d2.engine.launch import _free_port

SHORT = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "0"]
CPU = ["MODEL.DEVICE", "cpu"]


def args_for(*words: str) -> object:
    return argument_parser().parse_args(list(words))


def tiny_cfg(output: Path, *opts: object, name: str = TINY_EXT) -> CfgNode:
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list([*CPU, *SHORT, *opts, "OUTPUT_DIR", str(output)])
    return cfg


class LossRecorder(HookBase):
    """The losses of every iteration, averaged over processes."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def after_step(self) -> None:
        latest = get_event_storage().latest()
        self.losses.append({k: v[0] for k, v in latest.items() if "loss" in k})


# ------------------------------------------------------------------------------------- launch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_gpus_per_machine": 0}, "--num-gpus 0 .* must be 1 or more"),
        ({"num_gpus_per_machine": 1, "machine_rank": 1}, "--machine-rank is 1; allowed: 0 to 0"),
        (
            {"num_gpus_per_machine": 1, "num_machines": 2, "dist_url": "auto"},
            "give the same tcp://host:port",
        ),
    ],
)
def test_impossible_launches_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch(lambda: None, **arguments)


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus is 2; this machine has 1"):
        launch(lambda: None, 2)


def test_one_process_runs_here() -> None:
    seen = []
    launch(seen.append, 1, args=("here",))
    assert seen == ["here"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the launch without a GPU")
def test_two_cpu_processes(two_processes: list[dict]) -> None:
    assert [report["ranks"] for report in two_processes] == [[0, 2, 0, 2], [1, 2, 1, 2]]


# ------------------------------------------------------------------------------------- setup


def test_missing_config_file() -> None:
    with pytest.raises(ValueError, match="--config-file is missing.*double_head_ext_rcnn_tiny"):
        setup(args_for())


def test_unknown_config_file() -> None:
    with pytest.raises(ValueError, match="no config file 'Shapes/tiny.yaml'.*try: "):
        setup(args_for("--config-file", "Shapes/tiny.yaml"))


def test_evaluating_random_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="random weights: MODEL.WEIGHTS is empty"):
        setup(args_for("--config-file", TINY_EXT, "--eval-only"))


def test_evaluating_on_nothing_is_refused() -> None:
    opts = ["MODEL.WEIGHTS", "model.pth", "DATASETS.TEST", "()"]
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        setup(args_for("--config-file", TINY_EXT, "--eval-only", *opts))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml", "coco/train2017"),
        ("PascalVOC-Detection/double_head_ext_rcnn_R_50_FPN.yaml", "VOC2007"),
    ],
)
def test_missing_data_set_says_what_is_expected_where(config: str, expected: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        setup(args_for("--config-file", config))
    assert str(DATASETS) in str(error.value) and expected in str(error.value)


def test_number_of_classes_must_be_that_of_the_data(shapes: Path, tmp_path: Path) -> None:
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "80", "OUTPUT_DIR", str(tmp_path)]
    message = "NUM_CLASSES is 80, but data set 'shapes_train' has 3 classes: circle, rect"
    with pytest.raises(ValueError, match=message):
        setup(args_for("--config-file", TINY_EXT, *opts))


def test_a_mistake_leaves_no_folder(shapes: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    for opts in (["MODEL.ROI_DOUBLE_HEAD.CLS_HEAD.LAMBDA", "2."], ["SOLVER.IMS_PER_BATCH", "0"]):
        with pytest.raises(ValueError, match="allowed: "):
            setup(args_for("--config-file", TINY_EXT, "OUTPUT_DIR", str(output), *opts))
    assert not output.exists()


def test_setup_saves_a_config_with_class_names(shapes: Path, tmp_path: Path) -> None:
    setup(args_for("--config-file", TINY_EXT, "OUTPUT_DIR", str(tmp_path)))
    saved = yaml.unsafe_load((tmp_path / "config.yaml").read_text())
    assert saved["DATASETS"]["CLASS_NAMES"] == ["circle", "rectangle", "triangle"]


# ------------------------------------------------------------------------------------- trainer


def train(cfg: CfgNode, resume: bool = False) -> tuple[Trainer, list[dict[str, float]]]:
    torch.manual_seed(0)
    trainer, recorder = Trainer(cfg), LossRecorder()
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer, recorder.losses


@pytest.mark.slow
def test_resuming_restores_the_optimizer(shapes: Path, tmp_path: Path) -> None:
    half = tiny_cfg(tmp_path, "SOLVER.MAX_ITER", 2)
    before, _ = train(half)
    resumed = Trainer(tiny_cfg(tmp_path, "SOLVER.MAX_ITER", 4))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    momenta = [
        [s["momentum_buffer"] for s in t._trainer.optimizer.state.values()]
        for t in (before, resumed)
    ]
    assert momenta[0] and len(momenta[0]) == len(momenta[1])
    torch.testing.assert_close(*momenta)
    assert any(m.any() for m in momenta[1])


def register_images_without_objects(shapes: Path) -> str:
    name = "test_images_without_objects"
    if name not in DatasetCatalog.list():
        files = sorted((shapes / "coco" / "train").glob("*.jpg"))[:4]
        size = {"height": 128, "width": 128, "annotations": []}
        records = [{"file_name": str(f), "image_id": i, **size} for i, f in enumerate(files)]
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).thing_classes = ["circle", "rectangle", "triangle"]
    return name


@pytest.mark.slow
def test_images_without_objects_train(shapes: Path, tmp_path: Path) -> None:
    name = register_images_without_objects(shapes)
    opts = ["DATASETS.TRAIN", (name,), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    _, losses = train(tiny_cfg(tmp_path, *opts, "SOLVER.MAX_ITER", 2))
    for name in ("loss_box_reg", "loss_box_reg_unfocused", "loss_rpn_loc"):
        assert [step[name] for step in losses] == [0, 0], name
    assert all(step["loss_cls"] > 0 for step in losses)


@pytest.mark.slow
def test_config_of_an_interrupted_training_keeps_its_weights(shapes: Path, tmp_path: Path) -> None:
    class Interrupt(HookBase):
        def after_step(self) -> None:
            raise KeyboardInterrupt

    cfg = setup(args_for("--config-file", TINY_EXT, "OUTPUT_DIR", str(tmp_path), *SHORT))
    trainer = Trainer(cfg)
    trainer.register_hooks([Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    saved = yaml.unsafe_load((tmp_path / "config.yaml").read_text())
    assert saved["MODEL"]["WEIGHTS"] == ""


# ------------------------------------------------------------------------------------- DDP


# Their losses by name: RPN 2, in all 1, heads the rest
DDP_CONFIGS = {
    TINY_EXT: 7,
    "Shapes-Detection/tsd_rcnn_tiny.yaml": 8,
    "Shapes-Detection/faster_rcnn_detnet_tiny.yaml": 5,
}


def ddp_cfg(name: str, output: str) -> CfgNode:
    """A training in which nothing depends on how four images are spread over processes.

    Each iteration sees all four images of the data set, one object in each; every anchor and every
    RoI is sampled, 20 proposals and the object an image; no layer normalises over images and no
    augmentation is random. TSD's M_loc is a mean over foreground, which each process has its own
    of, and is off.
    """
    node = "MODEL.ROI_DOUBLE_HEAD.CONV_HEAD"
    return tiny_cfg(
        Path(output),
        *("DATASETS.TRAIN", ("ddp_train",), "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4),
        *("INPUT.RANDOM_FLIP", "none", "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "GN"),
        *(f"{node}.NORM", "GN", f"{node}.BOTTLENECK_DIM", 32, "SOLVER.WARMUP_ITERS", 0),
        *("SOLVER.BASE_LR", 3e-4, "DATASETS.TEST", ()),
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4416, "MODEL.RPN.POSITIVE_FRACTION", 1.0),
        *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.NMS_THRESH", 1.0),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 21, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
        *("MODEL.ROI_TSD.PC.LOC_WEIGHT", 0.0),
        name=name,
    )


def train_and_report(output: str) -> None:
    folder = Path(output, "data", "coco")
    records = load_coco_json(
        folder / "annotations" / "instances_train.json", str(folder / "train"), "ddp_train"
    )
    records = [{**record, "annotations": record["annotations"][:1]} for record in records]
    DatasetCatalog.register("ddp_train", lambda: records)
    reports = {name: train_ddp(ddp_cfg(name, output)) for name in DDP_CONFIGS}
    if comm.is_main_process():
        Path(output, f"{comm.get_world_size()}.json").write_text(json.dumps(reports))


def train_ddp(cfg: CfgNode) -> dict:
    torch.manual_seed(comm.get_rank())  # DDP must make the processes start from the same weights
    trainer, recorder = Trainer(cfg), LossRecorder()
    for name, weight in trainer.model.named_parameters():
        if name.endswith("bbox_pred.weight") and "roi_heads" in name:
            # Each object is a RoI that needs no correction: box losses are tiny at first.
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    trainer.register_hooks([recorder])
    trainer.train()
    return {
        "losses": recorder.losses,
        "rois": rois_per_image(trainer),
        "without_gradient": [n for n, p in trainer.model.named_parameters() if p.grad is None],
    }


def rois_per_image(trainer: Trainer) -> float:
    kinds = ("fg", "bg")
    return sum(trainer.storage.latest()[f"roi_head/num_{kind}_samples"][0] for kind in kinds)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    from doublehead_d2.data import write_shapes

    write_shapes(tmp_path / "data", num_train=4, num_val=2)
    reports = []
    for processes in (1, 2):
        launch(train_and_report, processes, dist_url="auto", args=(str(tmp_path),))
        reports.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    compare(*reports)
    (tmp_path / "2.json").unlink()
    launch_two_machines(str(tmp_path))
    compare(reports[0], json.loads((tmp_path / "2.json").read_text()))


def launch_machine(rank: int, url: str, output: str) -> None:
    launch(train_and_report, 1, 2, rank, url, args=(output,))


def launch_two_machines(output: str) -> None:
    """Two launches, as on two machines, which meet on this one."""
    url, context = f"tcp://127.0.0.1:{_free_port()}", torch.multiprocessing.get_context("spawn")
    machines = [context.Process(target=launch_machine, args=(r, url, output)) for r in range(2)]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    assert [machine.exitcode for machine in machines] == [0, 0]


def compare(one_process: dict, two_processes: dict) -> None:
    for name, count in DDP_CONFIGS.items():
        alone, shared = one_process[name], two_processes[name]
        assert alone["rois"] == shared["rois"] == 21.0
        assert alone["without_gradient"] == shared["without_gradient"] == []
        for one, two in zip(alone["losses"], shared["losses"], strict=True):
            assert two == pytest.approx(one, abs=1e-5)
            assert all(loss > 0 for loss in one.values()) and len(one) == count
        first, *_, last = (step["total_loss"] for step in alone["losses"])
        assert last != pytest.approx(first, abs=1e-3)


class BoxLosses(nn.Module):
    """The box losses as a module of its own, for DDP to wrap."""

    def __init__(self, opts: list) -> None:
        super().__init__()
        self.heads = small_heads(*opts)

    def forward(self, proposals: list) -> dict[str, torch.Tensor]:
        return self.heads._forward_box(random_features(len(proposals)), proposals)


NODE = "MODEL.ROI_DOUBLE_HEAD"
FOREGROUND = [f"{NODE}.TRAIN_REG_HEAD_ON", "foreground"]
SYNCHRONISED = [f"{NODE}.CONV_HEAD.NORM", "naiveSyncBN"]
CHECKPOINTS = [f"{NODE}.CONV_HEAD.USE_ACT_CHECKPOINT", True]
# Options and, for each process: RoIs of its images, how many of them foreground
CASES = {
    "none in one": (EXT, [((0, 0),), ((6, 4),)]),
    "none in both": (EXT, [((0, 0),), ((0, 0),)]),
    "no foreground in one": (FOREGROUND, [((3, 4), 0), ((6, 4), 2)]),
    "no foreground, synchronised": (FOREGROUND + SYNCHRONISED, [((3, 4), 0), ((6, 4), 2)]),
    "synchronised": (SYNCHRONISED, [((3, 4), 1), ((6, 4), 2)]),
    "checkpoints": (SYNCHRONISED + CHECKPOINTS, [((3, 4), 1), ((6, 4), 2)]),
}


def gradients_of(opts: list, sampled: list[tuple]) -> tuple[dict, dict]:
    """Gradients and buffers after two steps, with each process's own proposals."""
    model = create_ddp_model(BoxLosses(opts).train(), broadcast_buffers=False, device_ids=None)
    for _ in range(2):  # DDP complains about a missing gradient in the next iteration
        with EventStorage():
            losses = model(sampled_proposals(*sampled[comm.get_rank()]))
        model.zero_grad()
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    return gradients, dict(model.module.named_buffers())


class Square(nn.Module):
    """The mean of (w x)^2, whose gradient is twice the mean of x^2 where w is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.w * x).square().mean()}


def gradient_of_parts() -> float:
    """After a step whose parts have a number each: 1, 2 of the first process, 3, 4 of the other."""
    first = 1.0 + 2 * comm.get_rank()
    model = create_ddp_model(Square(), broadcast_buffers=False, device_ids=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = [torch.tensor([first]), torch.tensor([first + 1])]
    AccumulatingTrainer(model, loader, optimizer, parts=2).train(0, 1)
    return model.module.w.grad.item()


def report_process(folder: str) -> None:
    ranks = [comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size()]
    results = {name: gradients_of(*case) for name, case in CASES.items()}
    report = {"ranks": ranks, "results": results, "parts": gradient_of_parts()}
    torch.save(report, Path(folder, f"{comm.get_rank()}.pth"))


@pytest.fixture(scope="module")
def two_processes() -> list[dict]:
    """What two processes of one launch report, which takes longer to start than to run."""
    for folder in once(RUN / "two_processes"):
        folder.mkdir()
        launch(report_process, 2, dist_url="auto", args=(str(folder),))
    return [torch.load(RUN / "two_processes" / f"{rank}.pth") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
@pytest.mark.parametrize("case", list(CASES)[:4])
def test_processes_without_rois_take_part(two_processes: list[dict], case: str) -> None:
    first, second = (report["results"][case][0] for report in two_processes)
    assert all(g is not None and g.isfinite().all() for g in first.values())
    torch.testing.assert_close(first, second)
    _, sampled = CASES[case]
    assert any(g.any() for g in first.values()) == any(sum(counts) for counts, *_ in sampled)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_processes_have_the_gradients_of_all_parts(two_processes: list[dict]) -> None:
    # Twice the mean of 1, 4, 9 and 16
    assert [report["parts"] for report in two_processes] == pytest.approx([15.0] * 2)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_checkpoints_under_synchronised_norms(two_processes: list[dict]) -> None:
    for report in two_processes:
        results = report["results"]
        torch.testing.assert_close(results["checkpoints"], results["synchronised"])


# ------------------------------------------------------------------------------------- command line


def run_train_net(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "train_net.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the fall-back without a GPU")
def test_train_net_trains_with_two_processes_and_resumes(shapes: Path, tmp_path: Path) -> None:
    words = ["--config-file", TINY_EXT, "--num-gpus", "2", "--dist-url", "auto"]
    result = run_train_net(*words, *SHORT, "OUTPUT_DIR", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    notices = [line for line in result.stdout.splitlines() if "using the CPU" in line]
    assert len(notices) == 1
    assert "World size: 2" in result.stdout
    metrics = [json.loads(x) for x in (tmp_path / "out/metrics.json").read_text().splitlines()]
    assert "bbox/AP" in metrics[-1]
    assert any("loss_box_reg_unfocused" in line for line in metrics)
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))

    longer = [*SHORT[:3], "6", *SHORT[4:]]
    result = run_train_net(*words[:2], "--resume", *longer, "OUTPUT_DIR", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Starting training from iteration 4" in result.stdout


@pytest.mark.slow
def test_both_evaluators_score_the_same_model(trained: Path) -> None:
    results = main(
        args_for(
            *("--config-file", str(trained / "config.yaml"), "--eval-only"),
            *("DATASETS.TEST", "('shapes_val', 'shapes_voc_test')"),
            *("OUTPUT_DIR", str(trained / "evaluation")),
        )
    )
    coco, voc = results["shapes_val"]["bbox"], results["shapes_voc_test"]["bbox"]
    # Far above chance; how far after so short a training, versions and threads decide.
    assert coco["AP50"] > 5
    # 11-point interpolation and inclusive pixels move VOC's number by a few points.
    assert voc["AP50"] == pytest.approx(coco["AP50"], abs=10)
    assert voc["AP"] == pytest.approx(coco["AP"], abs=10)
