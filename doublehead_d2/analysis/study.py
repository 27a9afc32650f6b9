"""One training of a study of the paper's tables, from config to scores."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from torch import nn

from doublehead_d2 import model_zoo
from doublehead_d2.analysis import order_trial
from doublehead_d2.analysis.ap_by_iou import ap_by_iou
from doublehead_d2.analysis.paper_tables import (
    BACKBONE_METRICS,
    BACKBONES,
    EXT,
    EXT_MODES,
    GRCN,
    GRCN_METRICS,
    METRICS,
)
from doublehead_d2.benchmark.machine import machine
from doublehead_d2.config import fall_back_to_cpu, merge_opts
from doublehead_d2.engine.log import start_logging
from doublehead_d2.engine.memory import keep_freed_memory
from doublehead_d2.engine.schedule import scale_schedule
from doublehead_d2.engine.trainer import Trainer
from doublehead_d2.evaluation import ModesEvaluator, build_evaluator, score_modes
from doublehead_d2.files import write_json

BACKBONE = "backbone"  # the run whose backbone, FPN and RPN all others start from
# Backbones start from nothing and are trained this many times longer.
BACKBONE_SCHEDULE, C5_BACKBONE_SCHEDULE = 6, 4
RESULT_FILE = "result.json"
_EXT_CONFIG = "COCO-Detection/double_head_ext_rcnn_R_50_FPN_paper_1x.yaml"
_C5_CONFIG = "COCO-Detection/faster_rcnn_R_50_C5_1x.yaml"
# The same for the rows without FPN: a ResNet of bottlenecks, which C4 has. It is trained as
# detectron2's DC5, below whose 2-fc head it learns sooner than below the mean of RoIs.
C5_BACKBONE = "backbone_c5"
# The same for networks that learn as a whole: the demo's, trained on the easier shapes.
ORDER_BACKBONE = "backbone_demo"
# Runs whose weights other rows start from
STARTS = (BACKBONE, C5_BACKBONE, ORDER_BACKBONE)
# Configs of rows that are not named as they are in Ablations/
_CONFIGS = {
    BACKBONE: _EXT_CONFIG,
    C5_BACKBONE: _C5_CONFIG,
    EXT: _EXT_CONFIG,
    "faster_rcnn_c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "faster_rcnn_c5": _C5_CONFIG,
    "grcn": "COCO-Detection/grcn_R_50_C5_1x.yaml",
    ORDER_BACKBONE: "Shapes-Detection/double_head_ext_rcnn_tiny.yaml",
    **order_trial.CONFIGS,
}


def run(row: str, seed: int, output: Path, opts: Sequence[str] = ()) -> None:
    """Train one row, score it, and write `output`/`row`/`seed`/result.json.

    Args:
        row: one of `STARTS`, `paper_tables.EXT`, one of `paper_tables.GRCN` or of
            `order_trial.CONFIGS`, or the name of a config in Ablations/.
        seed: of weights, data order and sampling.
        output: folder of the study; rows need the backbone that was trained there.
        opts: config changes, key and value in turn.

    Raises:
        ValueError: as :func:`study_config`.
    """
    folder = output / row / str(seed)
    cfg = scale_schedule(study_config(row, seed, output, opts))
    test_sets = cfg.DATASETS.TEST
    if not cfg.TEST.EVAL_PERIOD:
        cfg.DATASETS.TEST = ()  # scored below, each row in its own way
    cfg.freeze()
    start_logging(str(folder))
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    default_setup(cfg, argparse.Namespace(config_file=""))
    start = time.perf_counter()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)  # a run that was stopped, or is to be longer, goes on
    trainer.train()
    seconds = time.perf_counter() - start

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = test_sets
    scores = evaluate(cfg, trainer.model, EXT_MODES if row == EXT else None)
    saved = BACKBONE_METRICS if row in BACKBONES else dict.fromkeys((*METRICS, *GRCN_METRICS))
    scores = {mode: {m: values[m] for m in saved} for mode, values in scores.items()}
    fusions = evaluate(cfg, trainer.model, EXT_MODES) if row == order_trial.FUSED else {}
    if row in STARTS:
        weights = trainer.model.state_dict()
        kept = {name: value for name, value in weights.items() if not name.startswith("roi_heads.")}
        torch.save({"model": kept}, output / f"{row}.pth")
    result = {
        "row": row,
        "seed": seed,
        "scores": scores,
        "iterations": trainer.max_iter,  # after scale_schedule
        "train_seconds": round(seconds, 1),
        "environment": description(cfg),
    }
    if own := order_trial.variation_opts(row):
        result["variation"] = own
    if fusions:
        result["fusions"] = {x: {m: v[m] for m in METRICS} for x, v in fusions.items()}
    if cfg.TEST.EVAL_PERIOD:
        metrics = folder / "metrics.json"
        result["curve"] = read_curve(metrics, cfg.TEST.EVAL_PERIOD, trainer.max_iter)
    # Last, and at once: its presence says that the run is complete.
    write_json(folder / RESULT_FILE, result)


def backbone_of(row: str) -> str | None:
    """The run whose weights a row starts from; None: it starts from nothing."""
    if row in (*STARTS, *BACKBONES):
        return None
    if row in order_trial.CONFIGS:
        return ORDER_BACKBONE
    return C5_BACKBONE if row in GRCN else BACKBONE


def study_config(row: str, seed: int, output: Path, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a row at the study's size.

    Args:
        row, seed, output, opts: as :func:`run`.

    Raises:
        ValueError: `opts` change what the row's variation is about, or as `merge_opts`.
    """
    own = order_trial.variation_opts(row)
    if undone := {*opts[::2]} & {*own[::2]}:
        raise ValueError(
            f"--opts change {', '.join(sorted(undone))}, which row {row} states itself; allowed: "
            f"other keys, or {order_trial.base_row(row)}"
        )
    # Both heads of Ext learn both tasks, so that the backbone it leaves favours no row.
    cfg = model_zoo.read_config(
        model_zoo.get_config_file(_CONFIGS.get(row, f"Ablations/{row}.yaml"))
    )
    for overlay in _overlays(row):
        model_zoo.merge_config(cfg, model_zoo.get_config_file(overlay))
    if row == C5_BACKBONE:
        cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    merge_opts(cfg, [*own, *opts])
    if order_trial.base_row(row) == order_trial.DOUBLED:
        double_box_losses(cfg)
    fall_back_to_cpu(cfg)
    cfg.SEED = seed
    cfg.OUTPUT_DIR = str(output / row / str(seed))
    if row in (BACKBONE, C5_BACKBONE):  # ORDER_BACKBONE is that already
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.NORM = "BN"
        cfg.SOLVER.MAX_ITER *= BACKBONE_SCHEDULE if row == BACKBONE else C5_BACKBONE_SCHEDULE
    elif backbone := backbone_of(row):
        cfg.MODEL.WEIGHTS = str(output / f"{backbone}.pth")
    return cfg


def _overlays(row: str) -> list[str]:
    """Files in configs/ that bring a row to the study's size."""
    if row == ORDER_BACKBONE:
        return []  # it has that size
    overlays = [
        "Overlay-Shapes-Backbones.yaml" if row in BACKBONES else "Overlay-Shapes-Study.yaml"
    ]
    if row in (C5_BACKBONE, *GRCN):
        overlays.append("Overlay-Shapes-Study-C5.yaml")
    if row in order_trial.CONFIGS:
        overlays.append("Overlay-Shapes-Order.yaml")
    return overlays


def double_box_losses(cfg: CfgNode) -> None:
    """Let both losses of a stock box head weigh twice as much, as ω = 2 does to a double one's.

    detectron2 has no weight for `loss_cls`. For SGD it is the same to halve all other losses and
    the weight decay and to double the learning rate: lr (2a + b + d w) = 2 lr (a + b/2 + d/2 w).
    """
    cfg.MODEL.RPN.LOSS_WEIGHT /= 2  # of both of its losses
    cfg.SOLVER.WEIGHT_DECAY /= 2
    cfg.SOLVER.WEIGHT_DECAY_NORM /= 2
    cfg.SOLVER.BASE_LR *= 2


def read_curve(metrics: Path, period: int, end: int) -> list[tuple[int, float]]:
    """AP in percent by iterations done, from detectron2's log of a training.

    Args:
        metrics: metrics.json. An evaluation in the midst of a training stands under the number of
            the iteration just done, from 0, the last one under the number of iterations.
        period: TEST.EVAL_PERIOD.
        end: number of iterations.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = {
        # Numbers from 0 round up to the next multiple, but to none of 1.
        min(-(-(line["iteration"] + (period == 1)) // period) * period, end): line["bbox/AP"]
        for line in lines
        if "bbox/AP" in line
    }
    return sorted(found.items())


def evaluate(
    cfg: CfgNode, model: nn.Module, modes: dict[str, tuple[str, str]] | None
) -> dict[str, dict[str, float]]:
    """Box scores in percent, by mode; without `modes` as the model is configured, as "box".

    Those of "box" have AP at each IoU, too.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    (dataset,) = cfg.DATASETS.TEST
    if modes is None:
        results = {"box": Trainer.test(cfg, model)["bbox"]}
        annotations = MetadataCatalog.get(dataset).json_file
        results["box"] |= ap_by_iou(annotations, f"{folder}/coco_instances_results.json")
    else:
        evaluator = ModesEvaluator(
            {mode: build_evaluator(dataset, os.path.join(folder, mode)) for mode in modes}
        )
        with score_modes(model, modes):
            by_mode = Trainer.test(cfg, model, [evaluator])
        results = {mode: by_mode[f"bbox_{mode}"] for mode in modes}
    return results


def description(cfg: CfgNode) -> dict[str, str]:
    """Hardware, versions and data that the results of a run depend on."""
    data = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return {
        **machine(cfg.MODEL.DEVICE),
        "data": ", ".join(f"{name} ({len(DatasetCatalog.get(name))} images)" for name in data),
    }
