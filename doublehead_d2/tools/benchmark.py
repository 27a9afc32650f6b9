"""Double-Head detectors against detectron2's Faster R-CNN R50-FPN: seconds, memory, operations.

    python -m doublehead_d2.tools.benchmark --json output/benchmark.json
    python -m doublehead_d2.tools.benchmark --trained output/demo/config.yaml

Everything runs in one process, the models in turn; medians. Without --trained the weights are
random and the images noise. On another machine, or while other programs run, compare the ratios,
not the seconds.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from tabulate import tabulate

from doublehead_d2.benchmark.machine import find_device
from doublehead_d2.benchmark.timing import profile_inference, time_inference, time_training
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
from doublehead_d2.data import check_datasets
from doublehead_d2.engine import Trainer
from doublehead_d2.files import prepare_output, write_json
from doublehead_d2.plots import check_picture, plot_scaling
from doublehead_d2.tools.options import (
    USER_ERRORS,
    add_dataset,
    add_opts,
    add_release_memory,
    conditions,
    config_of,
)

PRECISIONS = ("float32", "bfloat16", "float16")
NUM_TRAINED_IMAGES = 20  # of a trained model's data, measured in turn


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=VARIANTS,
                        metavar="MODEL", help=f"some of: {' '.join(VARIANTS)} (all)")  # fmt: skip
    parser.add_argument("--device", help="(cuda if there is one, else cpu)")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), default=(800, 1216))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1], help="(1)")
    parser.add_argument("--proposals", type=int, nargs="+", default=[1000], help="(1000)")
    parser.add_argument("--survivors", type=float, nargs="+", default=[0.15],
                        help="shares of the proposals above the threshold (0.15)")  # fmt: skip
    parser.add_argument("--train", action="store_true", help="training at 2 images, too")
    parser.add_argument("--trained", metavar="CONFIG", help="measure the detectors in this trained "
                        "Double-Head-Ext on images of its DATASETS.TEST")  # fmt: skip
    parser.add_argument("--precision", choices=PRECISIONS, default="float32",
                        help="that autocast computes in (float32, no autocast)")  # fmt: skip
    parser.add_argument("--profile", action="store_true",
                        help="print the operators that each model spends its time in")  # fmt: skip
    add_dataset(parser)
    add_release_memory(parser)
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them (1)")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw curves over several --proposals or "
                        "--survivors into this picture")  # fmt: skip
    add_opts(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = argument_parser().parse_args(argv)
    try:
        _check(args)
        device = find_device(args.device)
        content = conditions(device, args)
        content |= {name: getattr(args, name) for name in ("precision", "warmup", "repetitions")}
        content["runs"] = []
        for run in _measure_trained(args, device) if args.trained else _measure(args, device):
            content["runs"].append(run)
            if args.json:  # each at once: a long benchmark may be stopped
                write_json(args.json, content)
    except (*USER_ERRORS, torch.cuda.OutOfMemoryError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{content['hardware']}, {content['threads']} threads; {content['versions']}")
    if args.plot:
        plot_scaling(content, args.plot)
    return 0


def _check(args: argparse.Namespace) -> None:
    counts = {"--repetitions": [args.repetitions], "--batch-sizes": args.batch_sizes}
    counts |= {"--proposals": args.proposals, "--image-size": args.image_size}
    for name, values in counts.items():
        if min(values) < 1:
            raise ValueError(f"{name} is {min(values)}; allowed: 1 or more")
    if args.warmup < 0:
        raise ValueError(f"--warmup is {args.warmup}; allowed: 0 or more")
    if len(args.opts) % 2:
        raise ValueError(f"--opts {' '.join(args.opts)}; allowed: pairs, KEY VALUE ...")
    for key, instead in (("MODEL.DEVICE", "--device"), ("MODEL.WEIGHTS", "--trained")):
        if key in args.opts[::2] and not (args.trained and key == "MODEL.WEIGHTS"):
            raise ValueError(f"--opts {key}; allowed: {instead}")
    if not all(0 <= share <= 1 for share in args.survivors):
        raise ValueError(f"--survivors is {args.survivors}; allowed: 0 to 1")
    one = len(set(args.proposals)) == len(set(args.survivors)) == 1
    if args.plot and (one or not _names(args, "inference")):
        raise ValueError(
            "--plot draws curves of inference; allowed: with several --proposals or --survivors"
        )
    tasks = {"inference", "training"} if args.train else {"inference"}
    for name in args.models or ():
        if not tasks.intersection(VARIANTS[name].tasks):
            raise ValueError(f"--models {name} is for training alone; allowed: with --train")
    if args.train and not _names(args, "training"):
        trained = [name for name in VARIANTS if "training" in VARIANTS[name].tasks]
        raise ValueError(f"--train; allowed: with --models some of {' '.join(trained)}")
    if args.trained:
        _check_trained(args)
    elif args.dataset:
        raise ValueError("--dataset is data to measure a trained model on; allowed: with --trained")
    if args.plot:
        check_picture(args.plot)
    paths = [path for path in (args.json, args.plot) if path is not None]
    if len({os.path.abspath(path) for path in paths}) < len(paths):
        raise ValueError(f"--json and --plot are '{args.json}'; allowed: two files")
    for path in paths:
        prepare_output(path)


def _check_trained(args: argparse.Namespace) -> None:
    """No option is given that images and proposals of a trained model leave no room for."""
    default = argument_parser().parse_args([])
    for name in ("train", "plot", "image_size", "proposals", "survivors"):
        if getattr(args, name) != getattr(default, name):
            raise ValueError(
                f"--trained measures inference on the model's own data and proposals; allowed: "
                f"without --{name.replace('_', '-')}"
            )
    for name in args.models or ():
        if name not in TRAINED_VARIANTS:
            raise ValueError(
                f"--models {name} is not in a trained Double-Head-Ext; allowed with --trained: "
                f"{' '.join(TRAINED_VARIANTS)}"
            )


def _names(args: argparse.Namespace, task: str) -> list[str]:
    """The models to measure in a task, the baseline first; none where none is asked for."""
    names = [name for name in args.models or VARIANTS if task in VARIANTS[name].tasks]
    return list(dict.fromkeys([BASELINE, *names])) if names else []


def _measure(args: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    """All settings one after the other; prints a table of each."""
    precision = getattr(torch, args.precision)
    size = tuple(args.image_size)
    rounds = {"repetitions": args.repetitions, "warmup": args.warmup}
    models = {name: build_variant(name, device, args.opts) for name in _names(args, "inference")}
    values = (dict.fromkeys(x) for x in (args.batch_sizes, args.proposals, args.survivors))
    settings = list(itertools.starmap(Setting, itertools.product([size], *values)))
    if len(settings) > 1:  # too many proposals are refused before the first is measured
        largest = Setting(size, max(args.batch_sizes), max(args.proposals))
        inputs = random_inputs(largest)
        for model in models.values():
            prepare(model, inputs, largest)
    for setting in settings if models else ():
        inputs = random_inputs(setting)
        for model in models.values():
            prepare(model, inputs, setting)
        results = time_inference(models, [inputs], **rounds, precision=precision)
        yield _report("inference", setting._asdict(), results)
        if args.profile:
            _print_profiles(models, inputs, precision)
    if args.train:
        models = {name: build_variant(name, device, args.opts) for name in _names(args, "training")}
        setting = Setting(size, batch_size=2)
        classes = models[BASELINE].roi_heads.num_classes
        # As many objects as RoIs of an image are foreground at most, a quarter of the sample: in
        # a trained model proposals find so many; those of a random RPN find none.
        inputs = random_inputs(setting, num_objects=128, num_classes=classes)
        results = time_training(models, [inputs], **rounds, precision=precision)
        # Training samples its own RoIs.
        yield _report("training", {"image_size": size, "batch_size": 2}, results)


def _measure_trained(args: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    """A trained model's detectors on its own data, at each batch size; prints a table of each."""
    cfg = config_of(args.trained, args, "MODEL.DEVICE", device)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; allowed: data to measure the trained model on")
    check_datasets(cfg.DATASETS.TEST)
    precision = getattr(torch, args.precision)
    names = [name for name in _names(args, "inference") if name in TRAINED_VARIANTS]
    models = {name: build_trained(name, cfg) for name in names}
    dataset = cfg.DATASETS.TEST[0]
    loader = Trainer.build_test_loader(cfg, dataset)
    images = [image for batch in itertools.islice(loader, NUM_TRAINED_IMAGES) for image in batch]
    if max(args.batch_sizes) > len(images):
        raise ValueError(
            f"--batch-sizes is {max(args.batch_sizes)}; allowed: up to {len(images)} images"
        )
    for size in dict.fromkeys(args.batch_sizes):
        batches = [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
        results = time_inference(
            models,
            batches,
            repetitions=args.repetitions * len(batches),
            warmup=args.warmup,
            precision=precision,
        )
        yield _report("inference, trained", {"data": dataset, "batch_size": size}, results)
        if args.profile:
            _print_profiles(models, batches[0], precision)


def _print_profiles(
    models: Mapping[str, GeneralizedRCNN], inputs: list[dict], precision: torch.dtype
) -> None:
    for name, model in models.items():
        print(f"\n{name}\n{profile_inference(model, inputs, precision)}", flush=True)


def _report(
    task: str, setting: dict[str, Any], results: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Print the table of one setting; returns what is recorded of it."""
    baseline = results[BASELINE]
    for result in results.values():
        result["ratio"] = result["seconds"] / baseline["seconds"]
        result["memory_ratio"] = result["peak_mib"] / baseline["peak_mib"]
    rows = [{"model": name, **result} for name, result in results.items()]
    print("\n" + ", ".join([task, *(f"{key} {value}" for key, value in setting.items())]))
    print(tabulate(rows, headers="keys", floatfmt=".4g", missingval="-"), flush=True)
    return {"task": task, **setting, "results": results}


if __name__ == "__main__":
    sys.exit(main())
