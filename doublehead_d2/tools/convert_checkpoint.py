"""Convert published weights: python -m doublehead_d2.tools.convert_checkpoint IN OUT"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from doublehead_d2.checkpoint.reading import convert_file
from doublehead_d2.checkpoint.sources import SOURCES


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a file and say what to use it with; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.convert_checkpoint",
        description=f"Converts to detectron2's keys a checkpoint of {_known()}. Configs that fit "
        "are below configs/Imported; with their names (MODEL.WEIGHTS doublehead://...) none of "
        "this is needed.",
    )
    parser.add_argument("input", metavar="IN", help="the original file (.pth)")
    parser.add_argument("output", metavar="OUT", help="the file to write (.pth)")
    parser.add_argument(
        "--source",
        choices=("auto", *SOURCES),
        default="auto",
        help="the code that wrote IN (default: told by its keys)",
    )
    args = parser.parse_args(argv)
    logger, handler = logging.getLogger("doublehead_d2"), logging.StreamHandler(sys.stdout)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)  # what was converted and what was dropped
    try:
        _check_output(args.output)
        record = convert_file(args.input, args.output, args.source)
    except (ValueError, OSError, RuntimeError) as error:  # torch's word for a full disk
        print(error, file=sys.stderr)
        return 1
    finally:
        logger.removeHandler(handler)
    print(_use(record))
    return 0


def _known() -> str:
    return " or ".join(f"{source.model} of {source.title}" for source in SOURCES.values())


def _use(record: dict[str, Any]) -> str:
    """What to use a converted file with."""
    source = SOURCES[record["source"]]
    fitting = list(source.published.values())
    if not fitting:
        if source.config:
            return f"Use it as MODEL.WEIGHTS with {source.config}."
        return "Converted; no config of the zoo is made for it."
    # Another depth is a key, a mask head has several.
    best = min(fitting, key=lambda p: (p.masks != record["masks"], p.depth != record["depth"]))
    changes = ""
    if best.depth != record["depth"]:
        changes += f" and MODEL.RESNETS.DEPTH {record['depth']}"
    if best.detector and record["num_classes"] != best.num_classes:
        changes += f" and MODEL.ROI_HEADS.NUM_CLASSES {record['num_classes']}"
    return f"Use it as MODEL.WEIGHTS with {best.config}{changes}."


def _check_output(path: str) -> None:
    if not path.endswith(".pth"):
        raise ValueError(f"OUT is '{path}'; allowed: a name ending in .pth, which detectron2 loads")
    if os.path.lexists(path):
        raise ValueError(f"OUT is '{path}', which exists; remove it or choose another name")


if __name__ == "__main__":
    sys.exit(main())
