"""The benchmark measures what it says: which models, how many RoIs, in turn."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ROIAlign
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads

from conftest import REPOSITORY
from doublehead_d2 import model_zoo
from doublehead_d2.benchmark import timing
from doublehead_d2.benchmark.complexity import model_complexity
from doublehead_d2.benchmark.timing import seconds_of, time_inference, time_training
from doublehead_d2.benchmark.variants import (
    BASELINE,
    TRAINED_VARIANTS,
    VARIANTS,
    Setting,
    build_trained,
    build_variant,
    prepare,
    random_inputs,
)
from doublehead_d2.modeling import (
    DoubleHeadConvHead,
    DoubleHeadROIHeads,
    GRCNROIHeads,
    StandardROIHeadsByLevel,
    TSDROIHeads,
)
from doublehead_d2.plots import curves
from doublehead_d2.tools import benchmark as tool
from doublehead_d2.tools import options

SMALL = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.DIM", 16),
    *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.BOTTLENECK_DIM", 8),
    *("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NONLOCAL_DIM", 8),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
]
SETTING = Setting(image_size=(128, 160), num_proposals=100, survivors=0.3)
# Of the 100 RoIs of an image: all, or the survivors where scores are the fc-head's
SEEN = {
    "faster_rcnn": 0,
    "faster_rcnn_pooled": 0,
    "double_head_plain": 100,
    "double_head": 30,
    "mmdet_layout_plain": 100,
    "mmdet_layout": 30,
    "ext_plain": 100,
    "ext": 100,
    "ext_folded": 100,
    "ext_floor": 30,
    "tsd": 30,
    "tsd_all_rois": 100,
    "tsd_samples_2": 30,
    "double_head_tsd": 30,
    "faster_rcnn_r101": 0,
    "detnet": 0,
    "c4": 0,
    "c5": 0,
    "grcn": 30,
    "grcn_all_rois": 100,
    "dc5": 0,
    "vgg16": 0,
    "grcn_vgg16": 30,
}


@pytest.fixture(autouse=True)
def _memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stays as it is."""
    monkeypatch.setattr(options, "keep_freed_memory", lambda: True)


def test_every_variant_has_a_task() -> None:
    assert list(SEEN) == [name for name in VARIANTS if "inference" in VARIANTS[name].tasks]
    assert {task for variant in VARIANTS.values() for task in variant.tasks} == {
        "inference",
        "training",
    }
    assert VARIANTS.keys() >= TRAINED_VARIANTS.keys()


@pytest.mark.parametrize("name", SEEN)
def test_rois_that_reach_the_regression_head(name: str) -> None:
    model = build_variant(name, "cpu", SMALL)
    inputs = random_inputs(SETTING)
    prepare(model, inputs, SETTING)
    result = time_inference({name: model}, [inputs], repetitions=1)[name]
    assert result.get("reg_head_rois", 0) == SEEN[name]  # detectron2's heads count nothing
    assert result["images_per_s"] == pytest.approx(1 / result["seconds"])


KINDS = {
    "double_head_plain": set(),
    "double_head": {"lazy", "chunks", "parallel"},
    "mmdet_layout_plain": set(),
    "mmdet_layout": {"lazy", "chunks", "parallel"},
    "ext_plain": {"lazy", "fused"},
    "ext": {"lazy", "fused", "chunks", "parallel"},
    "ext_folded": {"lazy", "fused", "chunks", "parallel", "folded"},
    "ext_floor": {"lazy", "fused", "chunks", "parallel", "floor"},
    "double_head_foreground": {"lazy", "chunks", "parallel", "foreground"},
    "double_head_checkpoints": {"lazy", "chunks", "parallel", "checkpoints"},
    "double_head_both": {"lazy", "chunks", "parallel", "foreground", "checkpoints"},
    "ext_checkpoints": {"lazy", "fused", "chunks", "parallel", "checkpoints"},
}


def kinds(heads: DoubleHeadROIHeads) -> set[str]:
    """The ways to spare work, or not, that a model is set to."""
    found = {
        "lazy": heads.lazy_reg_head,
        "fused": heads.score_fusion != "cls_head",
        "chunks": heads.reg_head.cpu_chunk < 1 << 30,
        "parallel": all(align.parallel for align in heads.box_pooler.level_poolers),
        "folded": heads.reg_head.fold_bn,
        "floor": heads.score_floor == 0.05,
        "foreground": heads.train_reg_head_on == "foreground",
        "checkpoints": heads.reg_head.use_act_checkpoint,
    }
    return {name for name, is_on in found.items() if is_on}


def test_variants_are_what_they_are_called() -> None:
    pooled = build_variant("faster_rcnn_pooled", "cpu", SMALL).roi_heads
    aligns = pooled.box_pooler.level_poolers
    assert type(pooled) is StandardROIHeads and all(align.parallel for align in aligns)
    aligns = build_variant(BASELINE, "cpu", SMALL).roi_heads.box_pooler.level_poolers
    assert {type(align) for align in aligns} == {ROIAlign}
    heads = {name: build_variant(name, "cpu", SMALL).roi_heads for name in VARIANTS}
    double_heads = {name: x for name, x in heads.items() if isinstance(x, DoubleHeadROIHeads)}
    assert list(double_heads) == list(KINDS)
    for name, expected in KINDS.items():
        assert kinds(double_heads[name]) == expected, name
    tsd = {name: x for name, x in heads.items() if isinstance(x, TSDROIHeads)}
    assert {name: (x.lazy_reg_head, x.samples) for name, x in tsd.items()} == {
        "tsd": (True, 4),
        "tsd_all_rois": (False, 4),
        "tsd_samples_2": (True, 2),
        "double_head_tsd": (True, 4),
    }
    assert type(tsd["double_head_tsd"].reg_head) is DoubleHeadConvHead
    assert type(heads["detnet"]) is StandardROIHeadsByLevel
    grcn = {name: x.lazy_reg_head for name, x in heads.items() if isinstance(x, GRCNROIHeads)}
    assert grcn == {"grcn": True, "grcn_all_rois": False, "grcn_vgg16": True}
    stock = {name: type(heads[name]) for name in ("c4", "c5", "dc5", "vgg16")}
    assert stock == {"c4": Res5ROIHeads, **dict.fromkeys(("c5", "dc5", "vgg16"), StandardROIHeads)}


def test_plain_variants_detect_the_same() -> None:
    inputs = random_inputs(SETTING)
    for name in ("double_head", "mmdet_layout", "ext"):
        detections = []
        for variant in (name, f"{name}_plain"):
            model = build_variant(variant, "cpu", SMALL)
            prepare(model, inputs, SETTING)
            with torch.no_grad():
                detections.append(model.inference(inputs, do_postprocess=False)[0])
        torch.testing.assert_close(*[x.scores for x in detections])
        boxes = [x.pred_boxes.tensor for x in detections]
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-4)


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()

    def seconds_of(run: Callable[[], None], device: torch.device) -> int:
        run()
        return next(clock) ** 3

    monkeypatch.setattr(timing, "seconds_of", seconds_of)
    models = {name: build_variant(name, "cpu", SMALL) for name in (BASELINE, "double_head")}
    inputs = random_inputs(SETTING)
    # Runs take 0, 1, 8, 27, ... seconds: after the 2 of warm-up the baseline's take 8, 64 and 216,
    # the other's 27, 125 and 343.
    results = time_inference(models, [inputs], repetitions=3)
    assert [results[name]["seconds"] for name in models] == [64, 125]
    assert [results[name]["spread"] for name in models] == [216 - 8, 343 - 27]
    assert results[BASELINE]["images_per_s"] == 1 / 64
    results = time_inference(models, [inputs * 2], repetitions=1, warmup=0)
    assert (
        results["double_head"] | {"seconds": 729, "images_per_s": 2 / 729} == results["double_head"]
    )


def test_seconds_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    with monkeypatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: now[-1])
        assert seconds_of(lambda: now.append(7.5), torch.device("cpu")) == 2.5


def test_seconds_on_a_gpu_are_those_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait for the event")

        def elapsed_time(self, end: object) -> float:
            return 1500.0  # ms

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device.index == 1, "not the model's device"

        def synchronize(self) -> None:
            log.append("wait for the stream")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    assert seconds_of(lambda: log.append("run"), torch.device("cuda:1")) == 1.5
    waits = "wait for the stream", "wait for the event"
    assert log == [waits[0], "record", "run", "record", waits[1]]


def test_dc5_is_detectron2s_of_the_zoo() -> None:
    """Parameters and multiply-adds of the facts, by the model of detectron2's config."""
    variant = VARIANTS["dc5"]
    cfg = model_zoo.get_config(variant.config)
    cfg.merge_from_list(list(variant.opts))
    counts = model_complexity(cfg)
    assert counts["parameters"]["total"] == 165_581_468
    assert counts["flops"]["total"] / 1e9 == pytest.approx(365.6, abs=0.1)


def test_training_is_a_step_without_an_update() -> None:
    name = "double_head"
    model = build_variant(name, "cpu", SMALL)
    before = model.roi_heads.reg_predictor.bbox_pred.weight.clone()
    setting = Setting(image_size=(128, 160), batch_size=2)
    inputs = random_inputs(setting, num_objects=5)
    result = time_training({name: model}, [inputs], repetitions=1)[name]
    assert 0 < result["reg_head_rois"] <= 2 * 32 and not model.training
    assert torch.equal(model.roi_heads.reg_predictor.bbox_pred.weight, before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "seen"), [("double_head", "all"), ("double_head_both", "foreground")]
)
def test_training_shows_the_regression_head_what_the_keys_say(name: str, seen: str) -> None:
    model = build_variant(name, "cpu", SMALL)
    setting = Setting(image_size=(128, 160), batch_size=2)
    inputs = random_inputs(setting, num_objects=40)
    result = time_training({name: model}, [inputs], repetitions=1)[name]
    # A quarter of the sample of 32 is foreground at most; 40 objects fill it.
    assert result["reg_head_rois"] == {"all": 64, "foreground": 16}[seen]


def test_multiply_adds_and_memory_are_counted() -> None:
    """Of all RoIs the regression head takes its share of the counted work."""
    inputs = random_inputs(SETTING)
    results = {}
    for name in (BASELINE, "ext", "ext_floor"):
        model = build_variant(name, "cpu", SMALL)
        prepare(model, inputs, SETTING)
        results |= time_inference({name: model}, [inputs], repetitions=1)
    cfg = model_zoo.get_config(VARIANTS["ext"].config)
    cfg.merge_from_list([*SMALL, "MODEL.RPN.POST_NMS_TOPK_TEST", 100])
    a_roi = model_complexity(cfg)["flops"]["reg_head"] / 100 / 1e9
    saved = results["ext"]["gmacs"] - results["ext_floor"]["gmacs"]
    assert saved == pytest.approx(70 * a_roi)
    weights = sum(p.nbytes for p in [*model.parameters(), *model.buffers()]) / 2**20
    maps = 128 * 160 * (3 + 4 / 4) * 4 / 2**20  # the image and the stem's output
    assert results["ext"]["peak_mib"] > weights + maps
    model.roi_heads.reg_head.fold_bn = True
    folded = time_inference({name: model}, [inputs], repetitions=1)[name]["peak_mib"]
    copied = sum(p.nbytes for p in model.roi_heads.reg_head.parameters()) / 2**20
    assert folded > results["ext_floor"]["peak_mib"] + 0.8 * copied


def test_memory_is_the_models_and_the_peak_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_recording_peak", lambda device: nullcontext([3 * 2**20]))
    model = build_variant("ext", "cpu", SMALL)
    weights = sum(p.nbytes for p in [*model.parameters(), *model.buffers()]) / 2**20
    counted = timing._count(model, lambda: None)
    rois = {"box_head_rois": 0, "reg_head_rois": 0}
    assert counted == {"gmacs": 0, "peak_mib": pytest.approx(weights + 3), **rois}


def test_memory_has_the_weights_that_autocast_casts() -> None:
    class Model(torch.nn.Linear):
        device, roi_heads = torch.device("cpu"), None

        def inference(self, x: torch.Tensor) -> torch.Tensor:
            return self(x)

    model, x = Model(1024, 1024, bias=False), torch.ones(1, 1024)
    results = [
        time_inference({"m": model}, [x], repetitions=1, precision=precision)["m"]["peak_mib"]
        for precision in (torch.float32, torch.bfloat16)
    ]
    assert results == [pytest.approx(4, abs=0.5), pytest.approx(4 + 2, abs=0.5)]


def test_most_bytes_by_hand() -> None:
    # 10, 10 + 30, 30, 30 + 5, 5, and a tensor from before is freed
    events = [(1, 10), (2, 30), (1, -10), (1, 5), (2, -30), (7, -100)]
    assert timing._most_bytes(events) == 40
    assert timing._most_bytes([]) == 0


def test_peak_of_tensors() -> None:
    with timing._recording_peak(torch.device("cpu")) as peak:
        tensors = [torch.zeros(2**20), torch.zeros(2**21)]
        del tensors[0]
        tensors.append(torch.zeros(2**18))
        tensors.clear()
        tensors.append(torch.zeros(2**21))
    assert peak == [4 * (2**20 + 2**21)]


def test_backward_pass_is_not_under_autocast() -> None:
    model, seen = build_variant("double_head", "cpu", SMALL), []
    ones = torch.ones(2, 2)
    head = model.roi_heads.box_predictor.cls_score
    head.weight.register_hook(lambda gradient: seen.append((ones @ ones).dtype))
    inputs = random_inputs(Setting(image_size=(128, 160), batch_size=2), num_objects=5)
    head.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    time_training({"a": model}, [inputs], repetitions=1, precision=torch.bfloat16)
    assert set(seen[::2]) == {torch.bfloat16} and set(seen[1::2]) == {torch.float32}


def test_batches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_count", lambda model, run: run() or {})
    model, seen = build_variant(BASELINE, "cpu", SMALL), []
    monkeypatch.setattr(model, "inference", lambda inputs: seen.append(inputs[0]))
    time_inference({BASELINE: model}, [["a"], ["b"]], repetitions=3)
    assert seen == ["a", "a", "b", "a", "a"]  # warm-up, three rounds, the count


def test_precision_is_autocasts() -> None:
    model = build_variant(BASELINE, "cpu", SMALL)
    inputs, seen = random_inputs(SETTING), []
    prepare(model, inputs, SETTING)
    model.roi_heads.box_head.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    time_inference({BASELINE: model}, [inputs], repetitions=1, precision=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}


def test_too_many_proposals_are_refused() -> None:
    model = build_variant(BASELINE, "cpu", SMALL)
    setting = SETTING._replace(num_proposals=100000)
    with pytest.raises(ValueError, match=r"100000 proposals are asked for; allowed: up to the \d+"):
        prepare(model, random_inputs(setting), setting)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_tool_prints_and_writes(kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "results.json"
    words = ["--models", "double_head", "--device", "cpu", "--image-size", "128", "160"]
    words += ["--proposals", "50", "100", "--survivors", "0.2", "--repetitions", "1", "--train"]
    picture = tmp_path / "curves.png"
    words += ["--json", str(path), "--plot", str(picture)]
    words += [] if kept else ["--release-memory", "--profile"]
    assert tool.main([*words, "--opts", *map(str, SMALL)]) == 0
    assert cv2.imread(str(picture)).std() > 1  # not blank
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert [run["task"] for run in content["runs"]] == ["inference", "inference", "training"]
    assert content["precision"] == "float32" and content["repetitions"] == content["warmup"] == 1
    assert content["keeps_freed_memory"] == kept
    assert [run["results"]["double_head"]["reg_head_rois"] for run in content["runs"][:2]] == [
        10,
        20,
    ]
    for run in content["runs"]:
        assert list(run["results"]) == [BASELINE, "double_head"]  # the baseline is always there
        ours, baseline = (run["results"][name] for name in ("double_head", BASELINE))
        assert (baseline["ratio"], baseline["memory_ratio"]) == (1, 1)
        assert ours["ratio"] == ours["seconds"] / baseline["seconds"]
        assert ours["memory_ratio"] == ours["peak_mib"] / baseline["peak_mib"]
    assert ("Self CPU time total" in printed) == (not kept)
    assert "num_proposals 50" in printed and content["versions"] in printed


def test_a_stopped_benchmark_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    results = [{BASELINE: {"seconds": 1.0, "peak_mib": 2.0}}]
    # The second finds none.
    monkeypatch.setattr(tool, "time_inference", lambda *args, **kwargs: results.pop())
    words = ["--models", BASELINE, "--device", "cpu", "--image-size", "128", "160"]
    words += ["--proposals", "50", "60", "--repetitions", "1", "--json", str(path)]
    with pytest.raises(IndexError):
        tool.main([*words, "--opts", *map(str, SMALL)])
    (run,) = json.loads(path.read_text())["runs"]
    assert run["num_proposals"] == 50


def test_too_many_proposals_are_refused_before_the_first_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "time_inference", lambda *args, **kwargs: pytest.fail("measured"))
    words = ["--models", BASELINE, "--device", "cpu", "--image-size", "128", "160"]
    words += ["--proposals", "50", "100000"]
    assert tool.main([*words, "--opts", *map(str, SMALL)]) == 1
    assert "100000 proposals are asked for; allowed: up to" in capsys.readouterr().err


def test_a_setting_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    result = {BASELINE: {"seconds": 1.0, "peak_mib": 2.0}}
    monkeypatch.setattr(tool, "time_inference", lambda *args, **kwargs: result)
    words = ["--models", BASELINE, "--device", "cpu", "--image-size", "128", "160"]
    words += ["--proposals", "50", "60", "50", "--survivors", "0.1", "0.1", "--json", str(path)]
    assert tool.main([*words, "--opts", *map(str, SMALL)]) == 0
    assert [run["num_proposals"] for run in json.loads(path.read_text())["runs"]] == [50, 60]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a small "trained" Double-Head-Ext, its weights beside it."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = model_zoo.get_config("Shapes-Detection/double_head_ext_rcnn_tiny.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.DATASETS.TEST = ("benchmark_shapes",)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "config.yaml"


@pytest.fixture
def images(tmp_path: Path) -> Iterator[None]:
    """A registered data set of three pictures."""
    records = []
    for i in range(3):
        path = str(tmp_path / f"{i}.png")
        cv2.imwrite(path, np.full((96, 128, 3), 40 * i, np.uint8))
        records.append({"file_name": path, "image_id": i, "height": 96, "width": 128})
    DatasetCatalog.register("benchmark_shapes", lambda: records)
    MetadataCatalog.get("benchmark_shapes").thing_classes = ["a", "b", "c"]
    yield
    DatasetCatalog.remove("benchmark_shapes")
    MetadataCatalog.remove("benchmark_shapes")


@pytest.mark.slow
def test_detectors_of_a_trained_model_have_its_weights(trained: Path) -> None:
    cfg = model_zoo.read_config(trained)
    # What the trained model is set to, which must not slow or speed up others
    cfg.MODEL.ROI_DOUBLE_HEAD.SCORE_FLOOR = 0.01
    cfg.MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.FOLD_BN = True
    models = {name: build_trained(name, cfg) for name in TRAINED_VARIANTS}
    weights = torch.load(cfg.MODEL.WEIGHTS)["model"]
    assert type(models[BASELINE].roi_heads) is StandardROIHeads
    for name, model in models.items():
        state = model.state_dict()
        assert state.keys() == weights.keys() or name == BASELINE
        for key, value in state.items():
            assert torch.equal(value, weights[key]), (name, key)
    for name in TRAINED_VARIANTS.keys() - {BASELINE}:
        assert kinds(models[name].roi_heads) == KINDS[name], name
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.02
    assert build_trained("ext_floor", cfg).roi_heads.score_floor == 0.02


@pytest.mark.slow
def test_tool_measures_a_trained_model(
    trained: Path,
    images: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "trained.json"
    calls, profiled = [], []

    def spy(models: dict, batches: list, **kwargs: object) -> dict:
        calls.append(kwargs)
        # Half precision takes some CPUs a minute here; that it is used is tested above.
        return time_inference(models, batches, **{**kwargs, "precision": torch.float32})

    monkeypatch.setattr(tool, "time_inference", spy)
    monkeypatch.setattr(tool, "profile_inference", lambda *args: profiled.append(args[2]) or "")
    words = ["--trained", str(trained), "--device", "cpu", "--precision", "bfloat16"]
    words += ["--repetitions", "1", "--profile"]
    assert tool.main([*words, "--batch-sizes", "1", "2", "--json", str(path)]) == 0
    # Three images make three batches, or a whole one of two
    others = {"warmup": 1, "precision": torch.bfloat16}
    assert calls == [{"repetitions": n, **others} for n in (3, 1)]
    assert profiled == [torch.bfloat16] * 2 * len(TRAINED_VARIANTS)
    runs = json.loads(path.read_text())["runs"]
    assert [run["batch_size"] for run in runs] == [1, 2]
    for run in runs:
        assert list(run["results"]) == list(TRAINED_VARIANTS)
        assert run["data"] == "benchmark_shapes"
    assert "inference, trained" in capsys.readouterr().out
    assert tool.main([*words, "--batch-sizes", "4"]) == 1
    assert "--batch-sizes is 4; allowed: up to 3 images" in capsys.readouterr().err
    assert tool.main([*words, "--opts", "DATASETS.TEST", "()"]) == 1
    assert "DATASETS.TEST is empty; allowed: data to measure" in capsys.readouterr().err


def test_only_a_trained_ext_has_them_all() -> None:
    cfg = model_zoo.get_config("Shapes-Detection/double_head_rcnn_tiny.yaml")
    with pytest.raises(ValueError, match="SCORE_FUSION 'cls_head'; allowed: .* Double-Head-Ext"):
        build_trained("ext", cfg)


def test_weights_of_another_model_are_refused(trained: Path, tmp_path: Path) -> None:
    cfg = model_zoo.read_config(trained)
    weights = torch.load(cfg.MODEL.WEIGHTS)["model"]
    for key in list(weights):
        if key.startswith("roi_heads.reg_predictor"):
            del weights[key]
    cfg.MODEL.WEIGHTS = str(tmp_path / "without.pth")
    torch.save({"model": weights}, cfg.MODEL.WEIGHTS)
    with pytest.raises(ValueError, match="without.pth' lacks 4 tensors .*, roi_heads.reg_pred"):
        build_trained("ext", cfg)
    build_trained(BASELINE, cfg)  # which has all of its own


def test_inference_is_not_timed_where_none_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "training.json"
    words = ["--models", "double_head_both", "--train", "--image-size", "128", "160"]
    words += ["--device", "cpu", "--repetitions", "1", "--json", str(path)]
    assert tool.main([*words, "--opts", *map(str, SMALL)]) == 0
    (run,) = json.loads(path.read_text())["runs"]
    assert run["task"] == "training"


def test_curves_join_runs_that_differ_in_the_axis_alone() -> None:
    def run(proposals: int, survivors: float, seconds: float) -> dict:
        setting = {"batch_size": 1, "num_proposals": proposals, "survivors": survivors}
        return {**setting, "results": {"a": {"seconds": seconds}}}

    runs = [run(200, 0.1, 3.0), run(100, 0.1, 2.0), run(100, 0.5, 4.0)]
    assert curves(runs, "num_proposals") == {
        "a, survivors 0.1": [(100, 2.0), (200, 3.0)],
        "a, survivors 0.5": [(100, 4.0)],
    }
    assert curves(runs[1:], "survivors") == {"a": [(0.1, 2.0), (0.5, 4.0)]}


def recorded(name: str) -> dict:
    return json.loads((REPOSITORY / "dev" / "benchmarks" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def benchmarks() -> str:
    return (REPOSITORY / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")


def test_docs_have_the_recorded_inference(benchmarks: str) -> None:
    ordinary, kept = (recorded(f"inference_cpu{x}") for x in ("_released_memory", ""))
    assert (ordinary["keeps_freed_memory"], kept["keeps_freed_memory"]) == (False, True)
    assert f"{kept['hardware']}, {kept['versions']}" in benchmarks
    assert f"of {kept['repetitions']} rounds" in benchmarks
    (run,), (run_kept,) = ordinary["runs"], kept["runs"]
    assert set(run_kept["results"]) <= set(SEEN)  # a variant is recorded once it is measured
    for name, result in run_kept["results"].items():
        cells = [f"{result['gmacs']:.0f}", f"{result.get('reg_head_rois', 0)}"]
        cells += [f"{result['peak_mib']:.0f}"]
        for row in (run["results"].get(name), result):
            cells.append(f"{row['seconds']:.2f} ({row['ratio']:.2f})" if row else "–")
        assert f"| {' | '.join(cells)} |" in benchmarks, name


def test_readme_has_the_recorded_inference() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (run,) = recorded("inference_cpu")["runs"]
    ratio = {name: f"{result['ratio']:.2f}" for name, result in run["results"].items()}
    assert f"| {ratio['mmdet_layout']} | {ratio['mmdet_layout_plain']} |" in readme
    ext = f"{ratio['ext']} (with a score floor {ratio['ext_floor']})"
    assert f"| {ext} | {ratio['ext_plain']} |" in readme
    assert f"takes {ratio['double_head']} (plain {ratio['double_head_plain']})" in readme


def test_docs_have_the_recorded_curves(benchmarks: str) -> None:
    records = [recorded(f"{name}_cpu") for name in ("proposals", "survivors")]
    records += [recorded(f"inference_cpu_{name}") for name in ("batch8", "bfloat16")]
    assert [record["precision"] for record in records] == ["float32"] * 3 + ["bfloat16"]
    proposals, survivors, batches, half = (record["runs"] for record in records)
    assert [run["num_proposals"] for run in proposals] == [100, 300, 1000, 2000]
    assert [run["survivors"] for run in survivors] == [0.05, 0.15, 0.3, 0.5, 1.0]
    assert [run["batch_size"] for run in batches] == [8]
    for name in {name for run in batches for name in run["results"]} - {BASELINE}:
        results = [run["results"].get(name) for run in (*proposals, *survivors, *batches, *half)]
        cells = [f"{result['ratio']:.2f}" if result else "–" for result in results]
        assert f"| {' | '.join(cells)} |" in benchmarks, name


def test_docs_have_the_recorded_trained_model(benchmarks: str) -> None:
    results = recorded("trained_cpu")["runs"][0]["results"]
    (line,) = (line for line in benchmarks.splitlines() if line.startswith("In the demo's trained"))
    ratios = [f"{result['ratio']:.2f}" for name, result in results.items() if name != BASELINE]
    assert re.findall(r" (\d+\.\d\d)(?=;| times)", line) == ratios
    assert f"Faster R-CNN's {1000 * results[BASELINE]['seconds']:.0f} ms." in line


def test_every_record_has_its_command() -> None:
    folder = REPOSITORY / "dev" / "benchmarks"
    commands = (folder / "README.md").read_text()
    for path in folder.glob("*.*"):
        assert path.name == "README.md" or f"| `{path.stem}" in commands, path


def test_docs_have_the_recorded_training(benchmarks: str) -> None:
    *_, run = recorded("training_cpu")["runs"]
    assert run["task"] == "training"
    for name, result in run["results"].items():
        cells = [f"{result['gmacs']:.0f}", f"{result.get('reg_head_rois', 0)}"]
        cells += [f"{result['peak_mib']:.0f} ({result['memory_ratio']:.2f})"]
        cells += [f"{result['seconds']:.1f} ({result['ratio']:.2f})"]
        assert f"| {' | '.join(cells)} |" in benchmarks, name


def test_docs_have_the_recorded_tsd_and_detnet(benchmarks: str) -> None:
    inference, training = recorded("tsd_detnet_cpu"), recorded("tsd_detnet_training_cpu")
    assert f"{inference['hardware']}; {inference['versions']}" in benchmarks
    tasks = inference["runs"][0]["results"], training["runs"][0]["results"]
    for name in tasks[0]:
        cells = []
        for result in (task.get(name) for task in tasks):
            cells += (
                [
                    f"{result['gmacs']:.0f}",
                    f"{result['peak_mib']:.0f} ({result['memory_ratio']:.2f})",
                    f"{result['seconds']:.{2 if result is tasks[0].get(name) else 1}f} "
                    f"({result['ratio']:.2f})",
                ]
                if result
                else ["–"] * 3
            )
        assert f"| {' | '.join(cells)} |" in benchmarks, name


def test_docs_have_the_recorded_ways(benchmarks: str) -> None:
    kept, released = recorded("conv_head_cpu"), recorded("conv_head_cpu_1000")
    assert (kept["keeps_freed_memory"], released["keeps_freed_memory"]) == (True, False)
    runs = [*kept["runs"], *released["runs"]]
    assert [run["rois"] for run in runs] == [150, 150, 1000, 1000]
    for way in runs[0]["results"]:
        results = [run["results"].get(way) for run in runs]
        cells = [f"{result['ratio']:.2f}" if result else "–" for result in results]
        difference = max(result["difference"] for result in results if result)
        assert f"| {way} | {' | '.join(cells)} | {difference:.0e} |" in benchmarks


def test_docs_have_the_recorded_floors(benchmarks: str) -> None:
    for row in recorded("score_floor_shapes")["floors"]:
        milliseconds = 1000 * row["seconds"]
        cells = f"{row['floor']:g} | {row['AP']:.2f} | {row['RoIs']:.1f} | {milliseconds:.1f}"
        assert f"| {cells} |" in benchmarks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repetitions", "0"], "--repetitions is 0; allowed: 1 or more"),
        (["--survivors", "1.5"], r"--survivors is \[1.5\]; allowed: 0 to 1"),
        (["--proposals", "10", "0"], "--proposals is 0; allowed: 1 or more"),
        (["--plot", "a.png"], "with several --proposals or --survivors"),
        (["--plot", "a.png", "--proposals", "9", "9"], "with several --proposals or --survivors"),
        (
            ["--plot", "a.png", "--proposals", "9", "8", "--train", "--models", "double_head_both"],
            "--plot draws curves of inference",
        ),
        (["--models", "double_head_both"], "double_head_both is for training alone; allowed: with"),
        (["--models", "ext_floor", "--train"], "--train; allowed: with --models some of faster"),
        (["--trained", "a.yaml", "--train"], "--trained measures inference .* without --train"),
        (["--trained", "a.yaml", "--proposals", "10"], "allowed: without --proposals"),
        (["--trained", "a.yaml", "--survivors", "0.1"], "allowed: without --survivors"),
        (["--trained", "a.yaml", "--image-size", "96", "96"], "allowed: without --image-size"),
        (["--trained", "a.yaml", "--models", "mmdet_layout"], "with --trained: faster_rcnn "),
        (
            ["--plot", "a.jpeq", "--proposals", "10", "20"],
            "'a.jpeq' ends in 'jpeq'; allowed: .*png",
        ),
        (["--json", "."], "'.' is a folder; allowed: a file to write"),
        (["--json", "README.md/a.json"], "'README.md/a.json' lies below a file; allowed: below a"),
        (["--json", ""], "the name of a file to write is empty"),
        (
            ["--proposals", "9", "8", "--json", "a.png", "--plot", "./a.png"],
            "--json and --plot are 'a.png'; allowed: two files",
        ),
        (["--warmup", "-1"], "--warmup is -1; allowed: 0 or more"),
        (["--opts", "MODEL.MASK_ON"], "--opts MODEL.MASK_ON; allowed: pairs, KEY VALUE"),
        (["--opts", "MODEL.DEVICE", "cuda"], "--opts MODEL.DEVICE; allowed: --device"),
        (["--opts", "MODEL.WEIGHTS", "a.pth"], "--opts MODEL.WEIGHTS; allowed: --trained"),
        (["--trained", "LICENSE"], "'LICENSE' is no "),
        (["--device", "gpu"], "--device is 'gpu'; allowed here: cpu"),
        (["--device", "meta"], "--device is 'meta'; allowed here: cpu"),
        (["--opts", "MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_tool_refuses(
    words: list, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert tool.main(["--device", "cpu", *words]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and not captured.out
