"""AP over the balance weights of models that are trained already (Figure 8).

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Section 5.2; issue 22.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from doublehead_d2.analysis.figure_runs import load, stamp
from doublehead_d2.analysis.lambda_grid import LambdaPoint, lambda_grid, lambdas_of
from doublehead_d2.analysis.study import evaluate
from doublehead_d2.evaluation import all_modes
from doublehead_d2.files import write_json

METRIC = "AP"
HEADS = "DoubleHeadROIHeads"  # the ones that have λ


def grid_content(models: Sequence[tuple[str, CfgNode]], folder: Path) -> dict[str, Any]:
    """Score every model in every mode that its λ allow, those that are not scored yet.

    Args:
        models: names and configs, with weights and one data set in DATASETS.TEST; those without two
            heads of λ are left out.
        folder: a file a model is kept in it, for the next run.

    Returns:
        what `plots.plot_lambda_grid` draws.

    Raises:
        ValueError: no model has two heads, or two models have the same λ.
    """
    points = []
    for name, cfg in models:
        if cfg.MODEL.ROI_HEADS.NAME != HEADS:
            continue
        pair = lambdas_of(cfg)
        path = folder / "lambda_grid" / "{:g}_{:g}.json".format(*pair)
        key = [stamp(cfg.MODEL.WEIGHTS), cfg.dump()]
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept.get("model") != key:
            kept = {"model": key, METRIC: _score(cfg, path.with_suffix(""))}
            write_json(path, kept)
        points.append(LambdaPoint(name, *pair, kept[METRIC]))
    if not points:
        raise ValueError(f"no model for the grid of λ; allowed: MODEL.ROI_HEADS.NAME '{HEADS}'")
    return lambda_grid(points, data=models[0][1].DATASETS.TEST[0], metric=METRIC)


def _score(cfg: CfgNode, folder: Path) -> dict[str, float]:
    """AP in percent by mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    model: Any = load(cfg)
    modes, _ = all_modes(model.roi_heads)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own tables
        scores = evaluate(cfg, model, modes)
    return {mode: x[METRIC] for mode, x in scores.items()}
