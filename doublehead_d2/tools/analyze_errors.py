"""Where a detector's errors are, in each of its modes, and beside another detector.

    python -m doublehead_d2.tools.analyze_errors output/demo/config.yaml
    python -m doublehead_d2.tools.analyze_errors output/ext/config.yaml output/single_fc/config.yaml
    python -m doublehead_d2.tools.analyze_errors --dataset shapes_val --detections results.json

One pass over the data scores all modes. Writes AP and AR by class, precision and recall over score
thresholds, confusion matrices and the kinds of error as errors.json and errors.md, with pictures.
Needs hotcoco: pip install "hotcoco>=1.3".
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from doublehead_d2.analysis.error_runs import (
    check_model,
    detect,
    read_dataset,
    read_detections,
)
from doublehead_d2.analysis.error_tables import markdown
from doublehead_d2.analysis.errors import (
    BACKGROUND_IOU,
    IOU,
    Objects,
    Record,
    analyse,
    differences,
    require_hotcoco,
)
from doublehead_d2.data.registration import HELP, add_datasets
from doublehead_d2.files import prepare_output, write_json
from doublehead_d2.plots import plot_errors
from doublehead_d2.tools.options import USER_ERRORS, add_opts, config_of


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.analyze_errors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG",
                        help="YAML file or name of the zoo of a trained model, or two")  # fmt: skip
    parser.add_argument("--detections", nargs="+", metavar="JSON", default=[],
                        help="one or two files in COCO's format of results, no CONFIG")  # fmt: skip
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME",
                        help="the name of a registered data set (the first of the first config's "
                        f"DATASETS.TEST), or {HELP.rpartition('; ')[0]}")  # fmt: skip
    parser.add_argument("--score-threshold", type=float,
                        help="of the confusion matrices (that of each one's best F1)")  # fmt: skip
    parser.add_argument("--iou", type=float, default=IOU,
                        help=f"from which a detection finds an object ({IOU:g})")  # fmt: skip
    parser.add_argument("--output", default="output/errors", help="folder (output/errors)")
    add_opts(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = argument_parser().parse_args(argv)
    try:
        _check(args)
        require_hotcoco()
        path = os.path.join(args.output, "errors.json")
        prepare_output(path)
        content = _of_files(args) if args.detections else _of_models(args)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    write_json(path, content)
    pictures = plot_errors(content, args.output)
    text = markdown(content, [os.path.basename(x) for x in pictures if x.endswith(".png")])
    with open(os.path.join(args.output, "errors.md"), "w", encoding="utf-8") as f:
        f.write(text)
    print(text.partition("\n![")[0])
    print(f"All of it, by class too, is in {args.output}: errors.md, errors.json and pictures.")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.detections and (args.configs or not args.dataset):
        raise ValueError("--detections stands instead of CONFIG; allowed: with --dataset alone")
    for what, given in (("CONFIG", args.configs), ("--detections", args.detections)):
        if len(given) > 2:
            raise ValueError(f"{what} names {len(given)} files; allowed: one or two")
    if len(args.dataset) > 1:
        raise ValueError(f"--dataset is given {len(args.dataset)} times; allowed: once")
    if not (args.configs or args.detections):
        raise ValueError("nothing to analyse; allowed: one or two CONFIG, or --detections")
    threshold = args.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--score-threshold is {threshold:g}; allowed: 0 to 1")
    if not BACKGROUND_IOU < args.iou < 1:
        raise ValueError(f"--iou is {args.iou:g}; allowed: above {BACKGROUND_IOU:g} and below 1")


def _of_files(args: argparse.Namespace) -> dict[str, Any]:
    """The analysis of stored detections."""
    add_datasets({}, [text for text in args.dataset if "=" in text])
    dataset = _name(args.dataset)
    objects = read_dataset(dataset, os.path.join(args.output, "data"))
    found = [read_detections(path, objects) for path in args.detections]
    runs = [
        {"name": name, "model": name, "mode": "stored", "configured": True}
        | analyse(objects, detections, args.score_threshold, args.iou)
        for name, detections in zip(_distinct(args.detections), found, strict=True)
    ]
    return _content(dataset, args.iou, objects, [[run] for run in runs], [])


def _of_models(args: argparse.Namespace) -> dict[str, Any]:
    """The analysis of models; all are checked before the first one runs."""
    cfgs, notes = _configs(args)
    by_model: list[list[Record]] = []
    for name, cfg in zip(_distinct(args.configs), cfgs, strict=True):
        detected = detect(cfg, os.path.join(args.output, "inference", name.replace(os.sep, "_")))
        objects = detected.objects
        by_model.append([])
        for mode, path in detected.files.items():
            if len(cfgs) == 1:
                label = mode
            else:
                label = name if len(detected.files) == 1 else f"{name}, {mode}"
            run: Record = {"name": label, "model": name, "mode": mode, "detections_file": path}
            run["configured"] = mode == detected.configured
            found = read_detections(path, objects)
            by_model[-1].append(run | analyse(objects, found, args.score_threshold, args.iou))
    return _content(cfgs[0].DATASETS.TEST[0], args.iou, objects, by_model, notes)


def _configs(args: argparse.Namespace) -> tuple[list[CfgNode], list[str]]:
    """The configs of the models, all on one data set, and notes.

    Raises:
        ValueError: a model that cannot be analysed, or two of different classes.
    """
    cfgs = [config_of(path, args, "OUTPUT_DIR", args.output) for path in args.configs]
    if not (args.dataset or cfgs[0].DATASETS.TEST):
        raise ValueError("DATASETS.TEST is empty; allowed: data to analyse, or --dataset")
    lists = [list(cfg.DATASETS.CLASS_NAMES) for cfg in cfgs]
    if all(lists) and lists[0] != lists[-1]:
        raise ValueError(
            f"'{args.configs[0]}' has the classes {lists[0]}, '{args.configs[1]}' has {lists[1]}; "
            "allowed: two models of the same classes in the same order"
        )
    dataset = _name(args.dataset) if args.dataset else cfgs[0].DATASETS.TEST[0]
    notes: list[str] = []
    for place, cfg in enumerate(cfgs):
        cfg.DATASETS.TEST = (dataset,)
        cfgs[place], found = check_model(cfg)
        notes += found
    thresholds = [cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST for cfg in cfgs]
    if len(set(thresholds)) > 1:
        notes.append(
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST is {:g} and {:g}: the model of the lower one has "
            "more detections, and AP with them.".format(*thresholds)
        )
    return cfgs, list(dict.fromkeys(notes))


def _content(
    dataset: str,
    iou: float,
    objects: Objects,
    by_model: list[list[Record]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """What is written: the runs, and how they differ."""
    pairs = []
    for runs in by_model:  # modes of a model from the configured one
        reference = next(run for run in runs if run["configured"])
        pairs += [(run, reference) for run in runs if run is not reference]
    if len(by_model) == 2:  # the first model from the second, in the same mode if it has it
        for run in by_model[0]:
            others = {other["mode"]: other for other in by_model[1]}
            configured = next(other for other in by_model[1] if other["configured"])
            pairs.append((run, others.get(run["mode"], configured)))
    crowds = sum(x["iscrowd"] for x in objects.coco["annotations"])
    return {
        "data": dataset,
        "images": len(objects.images),
        "objects": len(objects.coco["annotations"]) - crowds,
        "crowds": crowds,
        "classes": objects.names,
        "iou": iou,
        "units": "AP, AR, precision, recall, F1 and dAP in percent; dAP: points of AP at the IoU",
        "hotcoco": require_hotcoco().__version__,
        "notes": list(notes),
        "runs": [run for runs in by_model for run in runs],
        "differences": [
            {"run": a["name"], "reference": b["name"], "values": differences(a, b)}
            for a, b in pairs
        ],
    }


def _name(given: Sequence[str]) -> str:
    """Of --dataset, which is NAME or NAME=TEXT."""
    return given[0].partition("=")[0]


def _distinct(paths: Sequence[str]) -> list[str]:
    """Short names of files: a config.yaml goes by its folder; whole paths where these agree."""
    names = []
    for path in paths:
        folder, file = os.path.split(os.path.abspath(path))
        stem = os.path.splitext(file)[0]
        names.append(os.path.basename(folder) if stem == "config" else stem)
    if len(set(names)) < len(names):
        names = [os.path.splitext(path)[0] for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


if __name__ == "__main__":
    sys.exit(main())
