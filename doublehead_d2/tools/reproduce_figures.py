"""The figures of the Double-Head paper's argument, of your models on your data.

    python -m doublehead_d2.tools.reproduce_figures --dataset shapes_val \\
        --model Single-FC output/single_fc/config.yaml \\
        --model Single-Conv output/single_conv/config.yaml weights.pth

Why does a fully connected head classify and a convolutional head localise? windows: scores and
regressed boxes of windows around objects over their IoU (Figures 2, 6, 7, A.1, A.3); correlations:
of scores and IoUs (3, A.2); spatial: how alike the positions of a head's map are (4); lambda_grid:
AP over λ of the models given (8); cases: what one head misses or detects twice (A.4, A.5). Every
figure is a PNG and an SVG, with its numbers as JSON beside it; windows and correlations together
give a summary, too, and with --other-trainings one of models of several seeds. A run that was
stopped goes on.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from doublehead_d2.analysis import figure_pass
from doublehead_d2.analysis.argument import check_others, read_summaries, summary, summary_table
from doublehead_d2.analysis.error_runs import check_model
from doublehead_d2.analysis.figure_cases import count_table, draw_cases
from doublehead_d2.analysis.figure_contents import (
    correlation_content,
    correlation_table,
    spatial_content,
    windows_content,
)
from doublehead_d2.analysis.figure_grid import grid_content
from doublehead_d2.analysis.figure_pass import Request
from doublehead_d2.analysis.figure_runs import (
    Pass,
    device_of,
    difficulties_by,
    load,
    merged,
    prepare,
    run_blocks,
    share,
)
from doublehead_d2.analysis.tally import Tally
from doublehead_d2.analysis.windows import WINDOWS, windows_around
from doublehead_d2.data.registration import HELP
from doublehead_d2.files import write_json
from doublehead_d2.plots import (
    plot_all_correlations,
    plot_all_windows,
    plot_lambda_grid,
    plot_rule,
    plot_spatial,
)
from doublehead_d2.tools.options import USER_ERRORS, add_opts, config_of

EXAMPLE = torch.tensor([400.0, 400.0, 500.0, 470.0]), (870, 900)  # a box far from all edges
MODULE = "doublehead_d2.tools.reproduce_figures"
FIGURES = (*figure_pass.FIGURES, "lambda_grid", "cases")
SUMMARISED = {"windows", "correlations"}


class Model(NamedTuple):
    """A model as it is named on the command line."""

    name: str
    cfg: CfgNode


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", action="append", required=True,
                        metavar=("NAME CONFIG", "WEIGHTS"),
                        help="name in the legends, YAML file or name of the zoo, and weights "
                        "(MODEL.WEIGHTS of the config); repeatable")  # fmt: skip
    parser.add_argument("--figures", nargs="+", choices=FIGURES, metavar="FIGURE",
                        default=list(figure_pass.FIGURES),
                        help=f"some of: {' '.join(FIGURES)} (the first three)")  # fmt: skip
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME",
                        help="the name of a registered data set (the first of the first config's "
                        f"DATASETS.TEST), or {HELP.rpartition('; ')[0]}")  # fmt: skip
    parser.add_argument("--proposals-per-object", type=int, default=0, metavar="N",
                        help="a subset of the 14,401 windows around each object, equal in every "
                        "bin of IoU (all)")  # fmt: skip
    parser.add_argument("--num-images", type=int, default=0, help="the first ones (all)")
    parser.add_argument("--baseline", metavar="NAME",
                        help="the model whose AP by class says which are hard "
                        "(the first)")  # fmt: skip
    parser.add_argument("--num-cases", type=int, default=4, help="pictures of each kind (4)")
    parser.add_argument("--seed", type=int, default=0, help="of subset and bootstrap (0)")
    parser.add_argument("--jobs", type=int, default=1,
                        help="processes that share the images, and the GPUs (1)")  # fmt: skip
    parser.add_argument("--other-trainings", nargs="+", default=[], metavar="FOLDER",
                        help="outputs of this tool with the same names and options, of models of "
                        "other seeds: the summary has means and deviations of all")  # fmt: skip
    parser.add_argument("--output", default="output/figures", help="folder (output/figures)")
    parser.add_argument("--part", nargs=3, metavar=("PASS", "NAME", "PART"),
                        help=argparse.SUPPRESS)  # fmt: skip
    add_opts(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = argument_parser().parse_args(words)
    try:
        _check(args)
        others = read_summaries(args.other_trainings)
        models = _models(args)
        check_others(
            dict(zip(args.other_trainings, others, strict=True)),
            data=models[0].cfg.DATASETS.TEST[0],
            proposals_per_object=args.proposals_per_object or WINDOWS,
            seed=args.seed,
            models=[x.name for x in models],
            spatial="spatial" in args.figures,
        )
        if args.part:
            return _run_part(args, models)
        os.makedirs(args.output, exist_ok=True)
        for one in (one for model in models for one in _passes(args, model, models).values()):
            prepare(one)
        written = _draw_passes(args, models, words)
        if SUMMARISED.issubset(args.figures):
            written += _summarise(args, others)
        if "lambda_grid" in args.figures:
            written += _draw_grid(args, models)
        if "cases" in args.figures:
            written += _draw_cases(args, models)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(written))
    return 0


def _check(args: argparse.Namespace) -> None:
    for given in args.model:
        if not 2 <= len(given) <= 3:
            raise ValueError(f"--model {' '.join(given)}; allowed: NAME CONFIG, or with WEIGHTS")
    names = [given[0] for given in args.model]
    if len(set(names)) < len(names):
        raise ValueError(f"--model names {', '.join(names)}; allowed: a different name for each")
    if args.baseline is not None and args.baseline not in names:
        raise ValueError(f"--baseline is '{args.baseline}'; allowed: {', '.join(names)}")
    if len(args.dataset) > 1:
        raise ValueError(f"--dataset is given {len(args.dataset)} times; allowed: once")
    folders = [Path(x).resolve() for x in (args.output, *args.other_trainings)]
    if twice := sorted({str(x) for x in folders if folders.count(x) > 1}):
        raise ValueError(
            f"--other-trainings and --output name {', '.join(twice)} twice; allowed: once"
        )
    if args.other_trainings and not SUMMARISED.issubset(args.figures):
        raise ValueError(
            f"--figures are {' '.join(args.figures)}, which gives no summary for "
            "--other-trainings; allowed: windows and correlations, with or without others"
        )
    least = {"jobs": 1, "proposals_per_object": 0, "num_images": 0, "num_cases": 1, "seed": 0}
    for name, low in least.items():
        if getattr(args, name) < low:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {getattr(args, name)}; allowed: {low} or more")


def _models(args: argparse.Namespace) -> list[Model]:
    """The models with their weights and the one data set.

    Raises:
        ValueError: as `config_of`; there is no data set.
    """
    models: list[Model] = []
    for name, path, *weights in args.model:
        cfg = config_of(path, args, "OUTPUT_DIR", args.output)
        if weights:
            cfg.MODEL.WEIGHTS = weights[0]
        if args.dataset:
            cfg.DATASETS.TEST = (args.dataset[0].partition("=")[0],)
        elif models:
            cfg.DATASETS.TEST = models[0].cfg.DATASETS.TEST
        elif not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty; allowed: data to look at, or --dataset")
        cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
        models.append(Model(name, check_model(cfg)[0]))
    lists = {tuple(MetadataCatalog.get(x.cfg.DATASETS.TEST[0]).thing_classes) for x in models}
    counts = {x.name: x.cfg.MODEL.ROI_HEADS.NUM_CLASSES for x in models}
    if len(set(counts.values())) > 1 or len(lists) > 1:
        raise ValueError(f"numbers of classes are {counts}; allowed: models of the same classes")
    return models


def _passes(args: argparse.Namespace, model: Model, models: Sequence[Model]) -> dict[str, Pass]:
    """What has to be counted for the figures that are asked for, by kind."""
    folder = Path(args.output) / "passes" / _as_folder(model.name)
    asked = {*args.figures}
    passes = {}
    if asked & {"windows", "correlations"}:
        request = Request(("windows", "correlations"), args.proposals_per_object, args.seed)
        passes["windows"] = Pass(
            model.cfg, folder / "windows", request, args.num_images, _baseline(args, models)
        )
    if "spatial" in asked:
        passes["spatial"] = Pass(
            model.cfg, folder / "spatial", Request(("spatial",)), args.num_images
        )
    return passes


def _run_passes(
    args: argparse.Namespace, models: Sequence[Model], words: Sequence[str]
) -> dict[str, dict[str, Tally]]:
    """Run what is not there yet; what was counted, by kind of pass and model."""
    tallies: dict[str, dict[str, Tally]] = {}
    difficulties: list[int] = []
    for model in models:
        for kind, one in _passes(args, model, models).items():
            if kind == "windows" and not difficulties:
                difficulties = difficulties_by(_baseline(args, models), Path(args.output))
            if args.jobs == 1:
                run_blocks(one, difficulties)
            else:
                start = [sys.executable, "-m", MODULE, "--part", kind, model.name]
                share(one, [[*start, str(part), *words] for part in range(args.jobs)])
            tallies.setdefault(kind, {})[model.name] = merged(one)
    return tallies


def _baseline(args: argparse.Namespace, models: Sequence[Model]) -> CfgNode:
    return next(x.cfg for x in models if args.baseline in (None, x.name))


def _run_part(args: argparse.Namespace, models: Sequence[Model]) -> int:
    """One of the processes that share a pass."""
    kind, name, part = args.part
    model = next(x for x in models if x.name == name)
    one = _passes(args, model, models)[kind]
    difficulties = [] if one.baseline is None else difficulties_by(one.baseline, Path(args.output))
    if one.cfg.MODEL.DEVICE != "cpu":
        one.cfg.defrost()
        one.cfg.MODEL.DEVICE = device_of(int(part))
    run_blocks(one, difficulties, int(part), args.jobs, bar=False)
    return 0


def _draw_passes(
    args: argparse.Namespace, models: Sequence[Model], words: Sequence[str]
) -> list[str]:
    """Write the numbers and the figures of all passes; the files."""
    tallies = _run_passes(args, models, words)
    data = models[0].cfg.DATASETS.TEST[0]
    written: list[str] = []
    if "windows" in args.figures:
        content = windows_content(tallies["windows"], data, args.proposals_per_object)
        written += [_write(args, "windows", content), *plot_all_windows(content, args.output)]
        written += plot_rule(*windows_around(*EXAMPLE), os.path.join(args.output, "windows_rule"))
    if "correlations" in args.figures:
        content = correlation_content(tallies["windows"], data, args.seed)
        written.append(_write(args, "correlations", content))
        if "windows" not in args.figures:  # else the summary has them
            print(correlation_table(content, ["all"]))
        written.append(os.path.join(args.output, "correlations.md"))
        with open(written[-1], "w", encoding="utf-8") as f:
            f.write(correlation_table(content) + "\n")
        written += plot_all_correlations(content, args.output)
    if "spatial" in args.figures:
        loaded = {x.name: load(x.cfg) for x in models}
        content = spatial_content(tallies["spatial"], loaded, data)
        written.append(_write(args, "spatial", content))
        written += plot_spatial(content, os.path.join(args.output, "spatial"))
    return written


def _summarise(args: argparse.Namespace, others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write what the figures say in a table, and over trainings; the files."""
    names = [name for name in ("windows", "correlations", "spatial") if name in args.figures]
    contents = [json.loads(Path(args.output, f"{name}.json").read_text("utf-8")) for name in names]
    own = summary(**dict(zip(names, contents, strict=True)), seed=args.seed)
    path, table = _write(args, "summary", own), Path(args.output, "summary.md")
    text = summary_table([own, *others])
    table.write_text(text + "\n", encoding="utf-8")
    print(text)
    return [path, str(table)]


def _draw_grid(args: argparse.Namespace, models: Sequence[Model]) -> list[str]:
    """Figure 8 of the models that have two heads."""
    content = grid_content([(x.name, x.cfg) for x in models], Path(args.output))
    path = _write(args, "lambda_grid", content)
    return [path, *plot_lambda_grid(content, os.path.join(args.output, "lambda_grid"))]


def _draw_cases(args: argparse.Namespace, models: Sequence[Model]) -> list[str]:
    """Figures A.4 and A.5."""
    written = draw_cases(models, Path(args.output), args.num_images, args.num_cases)
    print(count_table(json.loads(Path(written[0]).read_text(encoding="utf-8"))))
    return written


def _write(args: argparse.Namespace, name: str, content: dict[str, Any]) -> str:
    path = os.path.join(args.output, f"{name}.json")
    write_json(path, content)
    return path


def _as_folder(name: str) -> str:
    """A model's name as that of a folder."""
    return "".join(x if x.isalnum() or x in "-_." else "_" for x in name)


if __name__ == "__main__":
    sys.exit(main())
