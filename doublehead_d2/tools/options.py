"""What several tools have in common: options, the machine on record, a user's mistakes."""

import argparse
import os
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from doublehead_d2 import model_zoo
from doublehead_d2.benchmark.machine import machine
from doublehead_d2.config import merge_opts
from doublehead_d2.data.check import check_datasets
from doublehead_d2.data.registration import HELP, add_datasets
from doublehead_d2.engine.memory import keep_freed_memory

# What a wrong option, config or file ends in.
USER_ERRORS = (ValueError, OSError)


def add_opts(parser: argparse.ArgumentParser) -> None:
    """Add --opts, config changes to the end of the command line."""
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config changes, KEY VALUE ..., last"
    )


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add --dataset, which :func:`config_of` obeys."""
    parser.add_argument("--dataset", action="append", metavar="NAME=TEXT", help=HELP)


def add_images(
    parser: argparse.ArgumentParser, drawn: str, files: str = "image files"
) -> argparse._MutuallyExclusiveGroup:
    """Add --input, --dataset and --num-images, of which :func:`records_of` gives the images.

    Args:
        parser: of a tool that draws.
        drawn: what becomes of a data set, in a few words.
        files: what --input takes.

    Returns:
        the group of them, one of which must be given.
    """
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="IMAGE", help=files)
    source.add_argument(
        "--dataset",
        action="append",
        metavar="NAME",
        help=f"{drawn}: the name of a registered data set, also of one in the config's "
        f"DATASETS.REGISTER, or {HELP}",
    )
    parser.add_argument("--num-images", type=int, default=16, help="of each --dataset (16)")
    return source


def records_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """detectron2's records of the images that :func:`add_images` names; of files their names.

    Raises:
        ValueError, FileNotFoundError: a data set that is not registered, or not there.
    """
    if args.input:
        return [{"file_name": path} for path in args.input]
    names = [text.partition("=")[0] for text in args.dataset]
    check_datasets(names)
    return [record for name in names for record in DatasetCatalog.get(name)[: args.num_images]]


def config_of(path: str, args: argparse.Namespace, *opts: str) -> CfgNode:
    """The config that a tool's options ask for.

    Args:
        path: of a YAML file, or a name of the zoo.
        args: with the options of :func:`add_opts` and, if the tool has it, of :func:`add_dataset`.
        opts: more config changes.

    Raises:
        ValueError: as `model_zoo.get_config`, `add_datasets` and `merge_opts`.
    """
    cfg = model_zoo.get_config(path)
    given = getattr(args, "dataset", None) or ()
    add_datasets(cfg.DATASETS.REGISTER, [text for text in given if "=" in text])
    merge_opts(cfg, [*args.opts, *opts])
    return cfg


def add_release_memory(parser: argparse.ArgumentParser) -> None:
    """Add --release-memory, which :func:`conditions` obeys."""
    parser.add_argument(
        "--release-memory",
        action="store_true",
        help="leave the C library as it is, as in a process that is not one of this project's "
        "tools, instead of keeping freed memory",
    )


def conditions(device: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a measurement is made under, for its record; on a CPU, keeps freed memory.

    Args:
        device: as MODEL.DEVICE.
        args: with the option of :func:`add_release_memory`.
    """
    # What torch's profiler prints is of no use here.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    found: dict[str, Any] = {**machine(device), "threads": torch.get_num_threads()}
    if device == "cpu":
        found["keeps_freed_memory"] = not args.release_memory and keep_freed_memory()
    else:  # what float32 is in products of convolutions and of matrices
        found["tf32"] = [
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        ]
    return found
