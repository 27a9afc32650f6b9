"""The papers' tables on the built-in shapes: 1 and 3, TSD's, DetNet's and G-RCN's rows, the order.

At a size that a CPU can train. Trains every row once per seed (of Table 3 one Double-Head-Ext), all
but DetNet's from one ResNet, FPN and RPN that are trained first (in place of ImageNet's weights);
the ResNet then stays frozen. Rows without FPN start from a ResNet of their own, frozen up to Conv4.
DetNet and the ResNet beside it are trained from nothing. Rows named whole_ start from the demo's
backbone and train it, too; those that end in the name of a variation change one thing. The data is
shapes_hard, that of rows named whole_ and of rows without FPN shapes, that of rows ending in
_colors shapes_colors. Scores Ext models with every fusion in one pass, and writes results.json and
tables.md. Finished runs are kept: it can be stopped and started again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from doublehead_d2.analysis import order_trial, paper_tables
from doublehead_d2.analysis.study import (
    RESULT_FILE,
    STARTS,
    backbone_of,
    run,
    study_config,
)
from doublehead_d2.config import check_config
from doublehead_d2.data import check_datasets, write_shapes
from doublehead_d2.data.shapes.builtin import shapes_root
from doublehead_d2.data.shapes.layouts import KINDS
from doublehead_d2.files import write_json
from doublehead_d2.tools.options import USER_ERRORS, add_opts

MODULE = "doublehead_d2.tools.reproduce_tables"
SETTINGS_FILE = "settings.json"
ROWS = list(
    dict.fromkeys(
        [
            *paper_tables.TABLE_1,
            paper_tables.EXT,
            *paper_tables.TSD,
            *paper_tables.BACKBONES,
            *paper_tables.GRCN,
            *order_trial.CONFIGS,
        ]
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--output", default="output/tables", help="folder (output/tables)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    default = [row for row in ROWS if row not in order_trial.VARIED]
    parser.add_argument("--rows", nargs="+", default=default, choices=ROWS, metavar="ROW",
                        help=f"some of: {' '.join(ROWS)} (all but those that vary the trial of the "
                             f"order, _{' _'.join(order_trial.VARIATIONS)})")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (1)")
    parser.add_argument("--run", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    add_opts(parser)
    args = parser.parse_args(argv)
    output = Path(args.output)
    if args.run:
        run(args.run[0], int(args.run[1]), output, args.opts)
        return 0
    if args.jobs < 1 or min(args.seeds) < 0:
        parser.error("--jobs must be 1 or more, --seeds 0 or more")
    try:
        # Bad options fail here, not in every run.
        # Rows that start from nothing stand for themselves.
        firsts = dict.fromkeys(backbone_of(row) or row for row in args.rows)
        for first in firsts:
            check_config(study_config(first, 0, output, args.opts))
        _keep_settings(output, args.opts)
        configs = [study_config(row, 0, output, args.opts) for row in (*firsts, *args.rows)]
        for name in sorted({x for c in configs for x in (*c.DATASETS.TRAIN, *c.DATASETS.TEST)}):
            _have_data(name)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1

    backbones = [(first, 0) for first in firsts if first not in args.rows]
    failed = _run_all(backbones, output, 1, args.opts)
    if not failed:
        # Seed by seed, so that a study that is stopped early compares equals.
        seeds, rows = dict.fromkeys(args.seeds), dict.fromkeys(args.rows)
        runs = [(row, seed) for seed in seeds for row in rows]
        failed = _run_all(runs, output, args.jobs, args.opts)
    print(write_tables(output))
    for name in failed:
        print(f"failed: {name}, see {output / name}/stdout.txt", file=sys.stderr)
    return 1 if failed else 0


def _have_data(name: str) -> None:
    """Write a data set of the built-in shapes if it is not there; others have to be."""
    try:
        check_datasets([name])
    except FileNotFoundError:
        kind = name.removesuffix("_train").removesuffix("_val")
        if kind not in KINDS:
            raise
        write_shapes(shapes_root(kind), kind=kind)


def write_tables(output: Path) -> str:
    """Write results.json and tables.md from the finished runs in `output`; returns the latter."""
    results = [json.loads(p.read_text()) for p in sorted(output.glob(f"*/*/{RESULT_FILE}"))]
    content = {**json.loads((output / SETTINGS_FILE).read_text()), "runs": results}
    write_json(output / "results.json", content)
    text = format_tables(content)
    (output / "tables.md").write_text(text)
    return text


def format_tables(content: Mapping[str, Any]) -> str:
    """All tables, what they say of the papers' claims, and what the runs were made with.

    Args:
        content: of results.json.
    """
    table_1: dict[str, dict[int, dict[str, float]]] = {row: {} for row in paper_tables.TABLE_1}
    ext: dict[str, dict[int, dict[str, float]]] = {mode: {} for mode in paper_tables.EXT_MODES}
    tsd: dict[str, dict[int, dict[str, float]]] = {row: {} for row in paper_tables.TSD}
    backbones: dict[str, dict[int, dict[str, float]]] = {row: {} for row in paper_tables.BACKBONES}
    grcn: dict[str, dict[int, dict[str, float]]] = {row: {} for row in paper_tables.GRCN}
    order: dict[str, dict[int, dict[str, float]]] = {row: {} for row in order_trial.CONFIGS}
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {row: {} for row in order}
    fusions: dict[str, dict[int, dict[str, float]]] = {mode: {} for mode in paper_tables.EXT_MODES}
    facts: dict[str, list[str]] = {"options": [" ".join(content["opts"]) or "none"]}
    for result in content["runs"]:
        for mode, scores in result["scores"].items():
            if result["row"] == paper_tables.EXT:
                ext[mode][result["seed"]] = scores
            for table in (table_1, tsd, backbones, grcn, order):
                if result["row"] in table:
                    table[result["row"]][result["seed"]] = scores
        for mode, scores in result.get("fusions", {}).items():
            fusions[mode][result["seed"]] = scores
        if "curve" in result and result["row"] in curves:
            curves[result["row"]][result["seed"]] = result["curve"]
        is_backbone = result["row"] in STARTS
        name = "iterations of the backbone" if is_backbone else "iterations of a row"
        for key, value in {**result["environment"], name: str(result["iterations"])}.items():
            facts.setdefault(key, []).append(value)
    # Where runs differ, all that they were made with
    lines = [f"- {key}: {'; '.join(dict.fromkeys(found))}\n" for key, found in facts.items()]
    text = paper_tables.report(table_1, ext, tsd, backbones, grcn)
    if any(order.values()):
        text += "\n".join(order_trial.order_report(order, curves, fusions))
    return text + "\n" + "".join(lines)


def _keep_settings(output: Path, opts: Sequence[str]) -> None:
    """Refuse to mix runs of different settings in one folder."""
    path = output / SETTINGS_FILE
    results = sorted(output.glob(f"*/*/{RESULT_FILE}"))
    for result in results:
        stated = order_trial.variation_opts(result.parts[-3])  # the folder of the row
        made_with = json.loads(result.read_text()).get("variation", [])
        if made_with != stated:
            raise ValueError(
                f"{result} was made with {' '.join(made_with) or 'nothing varied'}, its row now "
                f"states {' '.join(stated)}; allowed: the folder without it, or another --output"
            )
    if results:
        found = json.loads(path.read_text())["opts"]
        if found != list(opts):
            raise ValueError(
                f"{output} holds runs with --opts {' '.join(found) or '(none)'}, not "
                f"{' '.join(opts) or '(none)'}; choose another --output"
            )
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, {"opts": list(opts)})


def _run_all(
    runs: Sequence[tuple[str, int]], output: Path, jobs: int, opts: Sequence[str]
) -> list[str]:
    """Run what is not finished, each in a process of its own; returns those that failed."""

    def run_one(row_and_seed: tuple[str, int]) -> str | None:
        row, seed = row_and_seed
        folder = output / row / str(seed)
        if (folder / RESULT_FILE).exists():
            return None
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{row}, seed {seed}: log in {folder}", flush=True)
        command = [sys.executable, "-m", MODULE, "--output", str(output)]
        command += ["--run", row, str(seed), "--opts", *opts]
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        with open(folder / "stdout.txt", "w") as log:
            status = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": threads, **os.environ},  # a user's own number stands
            )
        return f"{row}/{seed}" if status.returncode else None

    with ThreadPoolExecutor(jobs) as pool:
        return [name for name in pool.map(run_one, runs) if name]


if __name__ == "__main__":
    sys.exit(main())
