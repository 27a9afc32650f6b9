"""What MODEL.ROI_DOUBLE_HEAD.SCORE_FLOOR costs in AP and saves in time, on a trained model.

    python -m doublehead_d2.tools.score_floor --config-file output/demo/config.yaml

Evaluates the model on the first of DATASETS.TEST once with each floor, and times its forward passes
there, the floors in turn image by image. Prints a table and writes JSON.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from doublehead_d2.benchmark.timing import time_inference
from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.data import check_datasets
from doublehead_d2.engine import Trainer
from doublehead_d2.files import prepare_output, write_json
from doublehead_d2.tools.options import (
    USER_ERRORS,
    add_dataset,
    add_opts,
    add_release_memory,
    conditions,
    config_of,
)

FLOORS = [0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.05]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.score_floor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, help="of a trained model with fused scores")
    parser.add_argument("--floors", type=float, nargs="+", default=FLOORS,
                        help=f"({' '.join(map(str, FLOORS))})")  # fmt: skip
    parser.add_argument("--num-images", type=int, default=50, help="that are timed (50)")
    add_release_memory(parser)
    parser.add_argument("--output", default="output/score_floor", help="(output/score_floor)")
    add_dataset(parser)
    add_opts(parser)
    args = parser.parse_args(argv)
    try:
        cfg = config_of(args.config_file, args, "OUTPUT_DIR", args.output)
        if args.num_images < 1:
            raise ValueError(f"--num-images is {args.num_images}; allowed: 1 or more")
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty; allowed: data to score the model on")
        cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
        check_datasets(cfg.DATASETS.TEST)
        path = os.path.join(args.output, "score_floor.json")
        prepare_output(path)
        content = conditions(cfg.MODEL.DEVICE, args)
        rows = measure(cfg, args.floors, args.num_images)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    content |= {"data": cfg.DATASETS.TEST[0], "num_images": args.num_images, "floors": rows}
    print(tabulate(rows, headers="keys", floatfmt=".4g"))
    write_json(path, content)
    return 0


def measure(cfg: CfgNode, floors: Sequence[float], num_images: int) -> list[dict[str, Any]]:
    """Box AP, share of RoIs that reach the regression head and seconds an image, by floor.

    Args:
        cfg: of a trained model with the weights in MODEL.WEIGHTS.
        floors: values of MODEL.ROI_DOUBLE_HEAD.SCORE_FLOOR.
        num_images: timed images of the first test data set.

    Raises:
        ValueError: a floor that the config does not allow, a model without weights, or one that is
            no Double-Head.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty; allowed: the weights of a trained model")
    if cfg.MODEL.ROI_HEADS.NAME != "DoubleHeadROIHeads":
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{cfg.MODEL.ROI_HEADS.NAME}'; allowed: 'DoubleHeadROIHeads'"
        )
    models: dict[str, Any] = {}
    for floor in floors:
        cfg = cfg.clone()
        cfg.MODEL.ROI_DOUBLE_HEAD.SCORE_FLOOR = floor
        models[str(floor)] = model = Trainer.build_model(cfg).eval()
        DoubleHeadCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    rows: list[dict[str, Any]] = []
    num_scored = len(DatasetCatalog.get(cfg.DATASETS.TEST[0]))
    for name, model in models.items():
        before = model.roi_heads.rois_shown["reg_head"]
        scores = Trainer.test(cfg, model)["bbox"]
        rois = (model.roi_heads.rois_shown["reg_head"] - before) / num_scored
        rows.append({"floor": float(name), "AP": scores["AP"], "RoIs": rois})
    loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    batches = list(itertools.islice(loader, num_images))
    for row, times in zip(
        rows, time_inference(models, batches, repetitions=len(batches)).values(), strict=True
    ):
        row["seconds"] = times["seconds"]
    return rows


if __name__ == "__main__":
    sys.exit(main())
