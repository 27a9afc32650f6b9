"""Write a built-in shapes data set: python -m doublehead_d2.tools.make_shapes"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from doublehead_d2.data.shapes.builtin import shapes_root
from doublehead_d2.data.shapes.layouts import KINDS, write_shapes


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set and say where; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.make_shapes",
        description="Writes a built-in shapes data set in COCO's and in Pascal VOC's layout.",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help=f"folder to make (default: $DETECTRON2_DATASETS/shapes, here {shapes_root()}; "
        "with --hard or --colors shapes_hard or shapes_colors beside it)",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--hard",
        dest="kind",
        action="store_const",
        const="shapes_hard",
        default="shapes",
        help="the harder data of the studies: similar classes, clutter, occlusion, partial objects",
    )
    kinds.add_argument(
        "--colors",
        dest="kind",
        action="store_const",
        const="shapes_colors",
        help="the default images in nine classes: a shape and the colour it has most of",
    )
    parser.add_argument("--num-train", type=int, default=2000, metavar="N", help="default 2000")
    parser.add_argument(
        "--num-val",
        type=int,
        metavar="N",
        help=f"default {KINDS['shapes'].num_val}, with --hard {KINDS['shapes_hard'].num_val}",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--force", action="store_true", help="replace a shapes data set that is there"
    )
    args = parser.parse_args(argv)
    output = args.output or shapes_root(args.kind)
    if args.num_val is None:
        args.num_val = KINDS[args.kind].num_val
    try:
        written = write_shapes(
            output,
            num_train=args.num_train,
            num_val=args.num_val,
            seed=args.seed,
            kind=args.kind,
            force=args.force,
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    root = Path(output).expanduser().resolve()
    counts = f"{args.num_train} training and {args.num_val} validation images"
    print(f"Wrote {counts} to {root}." if written else f"{counts} are already there: {root}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
