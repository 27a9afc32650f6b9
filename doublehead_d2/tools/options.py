"""What several tools have in common: options, the machine on record, a user's mistakes."""

import argparse
import os
from typing import Any

import torch

from doublehead_d2.benchmark.machine import machine
from doublehead_d2.engine.memory import keep_freed_memory

# What a wrong option, config or file ends in.
USER_ERRORS = (ValueError, OSError)


def add_opts(parser: argparse.ArgumentParser) -> None:
    """Add --opts, config changes to the end of the command line."""
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config changes, KEY VALUE ..., last"
    )


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
