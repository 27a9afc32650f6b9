"""Parameters and FLOPs of systems: python -m doublehead_d2.tools.complexity [CONFIG ...]"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from doublehead_d2 import model_zoo
from doublehead_d2.benchmark.complexity import model_complexity
from doublehead_d2.files import prepare_output, write_json
from doublehead_d2.tools.options import USER_ERRORS

# Beside the sum and these, a system has its box heads.
NO_BOX_HEADS = ("total", "backbone", "rpn", "mask_head", "keypoint_head")


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.complexity",
        description="Counts parameters and FLOPs (multiply-adds) of systems by part. Needs neither "
        "weights nor data nor a GPU.",
    )
    parser.add_argument(
        "configs",
        nargs="*",
        metavar="CONFIG",
        help="names of the zoo or YAML files (default: the whole zoo)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all parts of all systems to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code: 1 where a config or FILE is none."""
    args = argument_parser().parse_args(argv)
    names = args.configs or model_zoo.list_configs()
    try:
        # All that may be wrong is looked at before the first is counted.
        paths = {n: n if os.path.isfile(n) else model_zoo.get_config_file(n) for n in names}
        if args.json:
            prepare_output(args.json)
        results = {
            name: model_complexity(model_zoo.read_config(path)) for name, path in paths.items()
        }
        if args.json:
            write_json(args.json, results)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    print(format_table(results))
    return 0


def format_table(results: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """An aligned table: parameters in M = 10^6 and GFLOPs, of the system and its box heads.

    Args:
        results: what `model_complexity` returns, by config.
    """
    parts = dict.fromkeys(part for counts in results.values() for part in counts["flops"])
    columns = ["total", *(part for part in parts if part not in NO_BOX_HEADS)]
    rows = [
        ["config", *(f"{c} M" for c in columns), *(f"{c} GFLOPs" for c in columns)],
    ]
    for name, counts in results.items():
        parameters = [_number(counts["parameters"].get(c), 10**6, ".2f") for c in columns]
        flops = [_number(counts["flops"].get(c), 10**9, ".2f") for c in columns]
        rows.append([name, *parameters, *flops])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _number(value: int | None, unit: int, style: str) -> str:
    return "-" if value is None else format(value / unit, style)


if __name__ == "__main__":
    sys.exit(main())
