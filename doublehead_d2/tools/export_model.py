"""Export a detector to a file that runs without this package, and compare the two.

    python -m doublehead_d2.tools.export_model output/demo/config.yaml --output model.onnx \\
        --images photos/*.jpg

docs/EXPORT.md shows how to run the file.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from doublehead_d2.export import FORMATS, Exporter, Parity, check_export, format_of
from doublehead_d2.files import prepare_output
from doublehead_d2.inference.images import read_bgr
from doublehead_d2.tools.options import USER_ERRORS, add_opts, config_of


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.export_model",
        description="Export a detector to one file that runs without this package and without "
        "detectron2: ONNX, or a TorchScript trace. The file is run on pictures and left only if it "
        "detects what the model detects: as many, of the same classes, boxes to 0.001 pixels and "
        "scores to 0.0001.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file or name of the zoo")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="of the file (by default told by its suffix)"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="pictures to compare on, beside five drawn ones; best of several sizes, with objects",
    )
    add_opts(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code: 1 where no file was left."""
    args = argument_parser().parse_args(argv)
    try:
        _export(args)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _export(args: argparse.Namespace) -> None:
    file_format = format_of(args.output, args.format)
    cfg = config_of(args.config, args)
    check_export(cfg, file_format)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"{args.config} names no weights; add `--opts MODEL.WEIGHTS path/to/model.pth`"
        )
    prepare_output(args.output)
    for _ in _read(args.images):  # before the minutes that a large model takes
        pass
    exporter = Exporter(cfg, file_format)
    parity = exporter.export(args.output, _read(args.images))
    names = ", ".join(exporter.info["class_names"][:5])
    more = len(exporter.info["class_names"]) - 5
    print(
        f"{args.output}: {file_format}, {os.path.getsize(args.output) / 1e6:.1f} MB; classes "
        + names
        + (f" and {more} more" if more > 0 else "")
    )
    print(_verdict(parity, len(args.images)))


def _read(paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    for path in paths:
        yield path, read_bgr(path)


def _verdict(parity: Parity, given: int) -> str:
    drawn = parity.pictures - given
    on = f"{given} given pictures and {drawn} drawn ones"
    if not given:
        on = f"{drawn} drawn pictures alone (--images takes others)"
    if not parity.detections:
        return (
            f"runs on {on}, and like PyTorch's model detects nothing in them: boxes and scores "
            "were not compared; give pictures with objects by --images"
        )
    return (
        f"agrees with PyTorch's model on {on}: {parity.detections} detections, "
        f"boxes to {parity.boxes:.1e} pixels, scores to {parity.scores:.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
