"""Ways to run the conv-head in inference: seconds, and how much the output changes.

    python -m doublehead_d2.tools.benchmark_conv_head --json output/conv_head.json

Chunks, folded batch norms, channels last, half precision, torch.compile; both published layouts,
random weights and RoI features; in one process, the ways in turn, medians.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from tabulate import tabulate

from doublehead_d2.benchmark.conv_head import LAYOUTS, WAYS, build_conv_head, time_ways
from doublehead_d2.benchmark.machine import find_device
from doublehead_d2.files import prepare_output, write_json
from doublehead_d2.tools.options import add_release_memory, conditions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.benchmark_conv_head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY",
                        help=f"some of: {'; '.join(WAYS)} (on a CPU all but float16, which takes "
                        "30 times as long, on a GPU all but chunks)")  # fmt: skip
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS),
                        help="(both)")  # fmt: skip
    parser.add_argument("--device", help="(cuda if there is one, else cpu)")
    parser.add_argument("--rois", type=int, nargs="+", default=[150, 1000], help="(150 1000)")
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    add_release_memory(parser)
    args = parser.parse_args(argv)
    try:
        for name, values in {"--rois": args.rois, "--repetitions": [args.repetitions]}.items():
            if min(values) < 1:
                raise ValueError(f"{name} is {min(values)}; allowed: 1 or more")
        device = find_device(args.device)
        if args.json is not None:
            prepare_output(args.json)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    # The head takes chunks on a CPU alone.
    left_out = "float16" if device == "cpu" else "chunks of"
    ways = args.ways or [way for way in WAYS if not way.startswith(left_out)]
    content = {**conditions(device, args), "repetitions": args.repetitions}
    print(f"{content['hardware']}, {content['threads']} threads; {content['versions']}")
    content["runs"] = runs = []
    for layout in dict.fromkeys(args.layouts):
        head = build_conv_head(layout).to(device)
        for rois in dict.fromkeys(args.rois):
            x = torch.randn(rois, 256, 7, 7, device=device)
            results = time_ways(head, x, ways, args.repetitions)
            rows = [[way, *result.values()] for way, result in results.items()]
            print(f"\n{layout}, {rois} RoIs")
            headers = ["way", "seconds", "ratio", "difference"]
            print(tabulate(rows, headers=headers, floatfmt=".3g"), flush=True)
            runs.append({"layout": layout, "rois": rois, "results": results})
            if args.json:  # each at once: a long benchmark may be stopped
                write_json(args.json, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
