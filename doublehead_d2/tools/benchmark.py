"""Double-Head detectors against detectron2's Faster R-CNN R50-FPN: seconds, memory, RoIs.

    python -m doublehead_d2.tools.benchmark --json output/benchmark.json

Everything runs in one process, the models in turn, with random weights on images of noise; medians.
On another machine, or while other programs run, compare the ratios, not the seconds.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tabulate import tabulate

from doublehead_d2.analysis.benchmark import (
    BASELINE,
    VARIANTS,
    Setting,
    build_variant,
    prepare,
    random_inputs,
    time_inference,
    time_training,
)
from doublehead_d2.analysis.plots import plot_scaling
from doublehead_d2.checkpoint.files import whole_file
from doublehead_d2.engine.study import machine


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=VARIANTS, default=list(VARIANTS),
                        metavar="MODEL", help=f"some of: {' '.join(VARIANTS)} (all)")  # fmt: skip
    parser.add_argument("--device", help="(cuda if there is one, else cpu)")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), default=(800, 1216))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1], help="(1)")
    parser.add_argument("--proposals", type=int, nargs="+", default=[1000], help="(1000)")
    parser.add_argument("--survivors", type=float, nargs="+", default=[0.15],
                        help="shares of the proposals above the threshold (0.15)")  # fmt: skip
    parser.add_argument("--train", action="store_true", help="training at 2 images, too")
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw curves over several --proposals or "
                        "--survivors into this picture")  # fmt: skip
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config changes, KEY VALUE ..., last"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = argument_parser().parse_args(argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        _check(args)
        runs = _measure(args, device)
    except (AssertionError, KeyError, ValueError, OSError) as error:  # the first two: CfgNode's
        print(error, file=sys.stderr)
        return 1
    content = {**machine(device), "threads": torch.get_num_threads(), "runs": runs}
    print(f"{content['hardware']}, {content['threads']} threads; {content['versions']}")
    if args.json:
        with whole_file(args.json) as path, open(path, "w") as f:
            json.dump(content, f, indent=1)
            f.write("\n")
    if args.plot:
        plot_scaling(runs, args.plot)
    return 0


def _check(args: argparse.Namespace) -> None:
    counts = {"--repetitions": [args.repetitions], "--batch-sizes": args.batch_sizes}
    counts |= {"--proposals": args.proposals, "--image-size": args.image_size}
    for name, values in counts.items():
        if min(values) < 1:
            raise ValueError(f"{name} is {min(values)}; allowed: 1 or more")
    if not all(0 <= share <= 1 for share in args.survivors):
        raise ValueError(f"--survivors is {args.survivors}; allowed: 0 to 1")
    if args.plot and len(args.proposals) == len(args.survivors) == 1:
        raise ValueError("--plot draws curves; allowed: with several --proposals or --survivors")
    for path in filter(None, (args.json, args.plot)):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def _measure(args: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """All settings one after the other; prints a table of each."""
    names = list(dict.fromkeys([BASELINE, *args.models]))
    models = {name: build_variant(name, device, args.opts) for name in names}
    size = tuple(args.image_size)
    runs = []
    for batch_size in args.batch_sizes:
        for proposals in args.proposals:
            for share in args.survivors:
                setting = Setting(size, batch_size, proposals, share)
                inputs = random_inputs(setting)
                for model in models.values():
                    prepare(model, inputs, setting)
                results = time_inference(models, inputs, repetitions=args.repetitions)
                runs.append(_report("inference", setting, results))
    if args.train:
        setting = Setting(size, batch_size=2)
        classes = next(iter(models.values())).roi_heads.num_classes
        inputs = random_inputs(setting, num_objects=20, num_classes=classes)
        results = time_training(models, inputs, repetitions=args.repetitions)
        runs.append(_report("training", setting, results))
    return runs


def _report(task: str, setting: Setting, results: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Print the table of one setting; returns what is recorded of it."""
    baseline = results[BASELINE]
    for result in results.values():
        result["ratio"] = result["seconds"] / baseline["seconds"]
        if "peak_mib" in result:
            result["memory_ratio"] = result["peak_mib"] / baseline["peak_mib"]
    columns = list(dict.fromkeys(key for result in results.values() for key in result))
    rows = [[name, *(result.get(key) for key in columns)] for name, result in results.items()]
    what = setting._asdict()
    if task == "training":  # samples its own RoIs
        what = {key: what[key] for key in ("image_size", "batch_size")}
    print(f"{task}, " + ", ".join(f"{key} {value}" for key, value in what.items()))
    print(tabulate(rows, headers=["model", *columns], floatfmt=".3g"), end="\n\n", flush=True)
    return {"task": task, **what, "results": results}


if __name__ == "__main__":
    sys.exit(main())
