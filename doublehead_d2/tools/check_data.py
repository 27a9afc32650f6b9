"""Say what is in data sets, what is wrong with them, and what training does about it.

    python -m doublehead_d2.tools.check_data shapes_train shapes_val
    python -m doublehead_d2.tools.check_data --dataset mine=coco:annotations.json:images --decode
    python -m doublehead_d2.tools.check_data --config-file output/demo/config.yaml --json found.json

Annotations are read whole, of images the headers; --decode reads all of them as training does. The
exit status is 1 if a training would be refused, with --strict also if there is a note.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from doublehead_d2.data import kinds
from doublehead_d2.data.check import check_datasets
from doublehead_d2.data.findings import Findings, Use
from doublehead_d2.data.kinds import Kind
from doublehead_d2.data.registration import add_datasets
from doublehead_d2.data.report import DatasetReport, Side, compare, report_on
from doublehead_d2.engine.run_data import compare_data, use_of
from doublehead_d2.evaluation.build import check_evaluator
from doublehead_d2.files import prepare_output, write_json
from doublehead_d2.tools.options import USER_ERRORS, add_dataset, add_opts, config_of

SEVERITIES = ("fault", "note", "info")
SHOWN = 3  # examples of a kind, and class names of a data set before "..." in the text
MOST_CLASSES = 20


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.check_data",
        description="Say what is in data sets, what is wrong with them, and what training does "
        "about it. The exit status is 1 if a training would be refused.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered data sets")
    add_dataset(parser)
    parser.add_argument(
        "--config-file",
        help="YAML file or name of the zoo: without names, its DATASETS.TRAIN and DATASETS.TEST "
        "are looked at, as its model uses them",
    )
    parser.add_argument("--decode", action="store_true", help="read images whole, not headers")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on notes, too")
    parser.add_argument("--json", metavar="FILE", help="write what was found for programs")
    add_opts(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = argument_parser().parse_args(argv)
    try:
        if args.json:
            prepare_output(args.json)
        reports, more = _look(args)
        _print(reports, more)
        if args.json:
            write_json(args.json, _as_json(reports, more))
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    found = [kind for findings in _all(reports, more) for kind in findings.groups]
    refused = any(kind.refuses for kind in found)
    noted = any(kind.severity == "note" for kind in found)
    _print_verdict(refused, noted)
    return int(refused or (args.strict and noted))


def _look(args: argparse.Namespace) -> tuple[dict[str, DatasetReport], list[Findings]]:
    """What the options ask for: each data set, and what is found between them."""
    given = [text for text in args.dataset or () if "=" in text]
    names = [*args.names, *(text.partition("=")[0] for text in args.dataset or ())]
    if args.config_file is None:
        if args.opts:
            raise ValueError("--opts are changes of a config; allowed: with --config-file")
        if not names:
            raise ValueError("nothing to look at; give names, --dataset or --config-file")
        add_datasets({}, given)
        check_datasets(names)
        uses = {name: _any_use(name) for name in names}
        sides = [Side(f"'{name}'", [name]) for name in uses]
        reports = report_on(uses, decode=args.decode, progress=_progress)
        return reports, compare(reports, list(itertools.combinations(sides, 2)), _progress)
    cfg = config_of(args.config_file, args)
    train, test = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    is_run = not args.names  # what --dataset names is there for the config to use
    names = list(dict.fromkeys(train + test)) if is_run else names
    if not names:
        raise ValueError("DATASETS.TRAIN and DATASETS.TEST are empty; allowed: a data set")
    check_datasets(names)
    uses = {name: _use(cfg, name) for name in names}
    reports = report_on(uses, decode=args.decode, progress=_progress)
    if not is_run:
        sides = [Side(f"'{name}'", [name]) for name in uses]
        return reports, compare(reports, list(itertools.combinations(sides, 2)), _progress)
    pair = (Side("DATASETS.TRAIN", train), Side("DATASETS.TEST", test))
    more = compare(reports, [pair] if train and test else [], _progress)
    return reports, [*more, _run_of(cfg, reports)]


def _any_use(name: str) -> Use:
    """Both uses, as nobody has said which."""
    return Use(training=True, evaluation=MetadataCatalog.get(name).get("evaluator_type") or "")


def _use(cfg: CfgNode, name: str) -> Use:
    training, evaluation = name in cfg.DATASETS.TRAIN, name in cfg.DATASETS.TEST
    both = not (training or evaluation)
    return use_of(cfg, name, training or both, evaluation or both)


def _run_of(cfg: CfgNode, reports: Mapping[str, DatasetReport]) -> Findings:
    """What the check before a run says of its data sets together."""
    findings = Findings("The run", reports=True)
    eval_only = not cfg.DATASETS.TRAIN
    for name in cfg.DATASETS.TEST:
        try:
            check_evaluator(name)
        except ValueError as error:
            findings.add(kinds.NO_EVALUATOR, str(error))
    try:
        contents = {name: report.contents for name, report in reports.items()}
        for note in compare_data(cfg, contents, eval_only=eval_only):
            findings.add(kinds.OTHER_NAMES, note)
    except ValueError as error:
        findings.add(kinds.OTHER_CLASSES, str(error))
    return findings


def _progress(things: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    # disable=None: not where nobody looks at it.
    return tqdm(things, total=total, desc=what, disable=None, leave=False)


def _all(reports: Mapping[str, DatasetReport], more: Sequence[Findings]) -> list[Findings]:
    return [*(report.findings for report in reports.values()), *more]


def _sorted(findings: Findings) -> list[Kind]:
    return sorted(findings.groups, key=lambda kind: SEVERITIES.index(kind.severity))


def _print(reports: Mapping[str, DatasetReport], more: Sequence[Findings]) -> None:
    for report in reports.values():
        print(report.findings.where)
        for line in _summary(report):
            print(f"  {line}")
        _print_findings(report.findings)
    for findings in more:
        if findings.groups:
            print(findings.where)
            _print_findings(findings)


def _summary(report: DatasetReport) -> list[str]:
    """What is in a data set, in lines."""
    census, classes = report.contents.census, report.contents.classes
    if not report.is_whole:
        return ["what is in it cannot be told: a fault keeps from reading it"]
    lines = [f"{census.images:,} images"]
    if sizes := census.image_sizes():
        texts = [f"{width:g} x {height:g}" for width, height in sizes]
        lines[0] += ", the least {}, the median {}, the greatest {}".format(*texts)
    crowds = f" ({census.crowds:,} of them crowds)" if census.crowds else ""
    counts = [f"{name} {census.by_class[i]:,}" for i, name in enumerate(classes[:MOST_CLASSES])]
    counts += ["..."] if len(classes) > MOST_CLASSES else []
    lines.append(
        f"{census.objects:,} objects{crowds} of {len(classes)} classes: {', '.join(counts)}"
    )
    if sides := census.sides():
        by_size = ", ".join(f"{census.by_size[x]:,} {x}" for x in ("small", "medium", "large"))
        texts = [f"{side:.1f}" for side in sides]
        lines.append(
            f"boxes by COCO's sizes: {by_size}; square root of the area "
            "{} at least, {} in the median, {} at most".format(*texts)
        )
    return lines


def _print_findings(findings: Findings) -> None:
    if not findings.groups:
        print("  nothing to say\n")
        return
    rows = [
        (kind, kind.severity, f"{findings.groups[kind].count:,}", kind.title, kind.training)
        for kind in _sorted(findings)
    ]
    width = max(len(row[2]) for row in rows)
    print(f"  {'':5} {'':{width}}  what: what training does with it (why), and the first")
    for kind, severity, count, title, training in rows:
        print(f"  {severity:5} {count:>{width}}  {title}: {training} ({kind.why})")
        for example in findings.groups[kind].first[:SHOWN]:
            print(f"  {'':5} {'':{width}}    {example}")
    print()


def _print_verdict(refused: bool, noted: bool) -> None:
    if refused:
        print("A training is refused until the faults are mended.")
    elif noted:
        print("A training takes it; the notes deserve a look.")
    else:
        print("A training takes it.")


def _as_json(reports: Mapping[str, DatasetReport], more: Sequence[Findings]) -> dict[str, Any]:
    """All that was found, with keys for programs."""
    return {
        "refused": any(findings.refuses for findings in _all(reports, more)),
        "datasets": [
            {"name": name, **_census_json(report), "findings": _findings_json(report.findings)}
            for name, report in reports.items()
        ],
        "between": [
            {"where": findings.where, "findings": _findings_json(findings)} for findings in more
        ],
    }


def _census_json(report: DatasetReport) -> dict[str, Any]:
    census = report.contents.census
    return {
        "is_whole": report.is_whole,
        "images": census.images,
        "objects": census.objects,
        "crowds": census.crowds,
        "classes": {x: census.by_class[i] for i, x in enumerate(report.contents.classes)},
        "image_sizes": census.image_sizes(),
        "boxes_by_size": dict(census.by_size),
        "box_sides": census.sides(),
    }


def _findings_json(findings: Findings) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind.key,
            "severity": kind.severity,
            "title": kind.title,
            "count": findings.groups[kind].count,
            "training": kind.training,
            "why": kind.why,
            "first": findings.groups[kind].first,
        }
        for kind in _sorted(findings)
    ]


if __name__ == "__main__":
    sys.exit(main())
