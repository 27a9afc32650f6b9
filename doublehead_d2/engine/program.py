"""What train_net.py does around a job: a mistake ends in a line, Ctrl-C without a traceback."""

import argparse
import logging
import re
import signal
import sys
import traceback
from typing import Any

from detectron2.engine import default_argument_parser
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from doublehead_d2.data.naming_mapper import RecordError
from doublehead_d2.data.registration import HELP
from doublehead_d2.engine.interrupts import interruptible
from doublehead_d2.engine.launch import launch
from doublehead_d2.engine.train import main
from doublehead_d2.environment import ignore_warnings

# The check before a run reads beginnings alone.
FIND_ALL = (
    "What else cannot be read is found by `python -m doublehead_d2.tools.check_data --decode "
    "--config-file ...`."
)


DIED = (
    "process {} of the training (id {}) {}, and the others were ended; --resume goes on from the "
    "last checkpoint. What nobody has killed, the system kills when memory is short (its log)"
)
WORKER_DIED = r"^DataLoader worker .*(exited unexpectedly|killed by signal)"
WORKER = (
    "a process that loads images has died, mostly of too little memory; --resume goes on from the "
    "last checkpoint, with fewer DATALOADER.NUM_WORKERS or more shared memory (/dev/shm)"
)
LOST = r"(?i)connection (was )?(closed|reset) by|gloo.*(timed out|broken pipe)|socket closed"
LOST_ANOTHER = (
    "this process has lost another one of the training, whose own message, or the system's log, "
    "says why it ended; --resume goes on from the last checkpoint"
)


class MistakeError(Exception):
    """What the user has to mend, said by a process of the job."""


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's options, --dataset, --dry-run, --overwrite and --traceback."""
    parser = default_argument_parser()
    parser.add_argument("--dataset", action="append", metavar="NAME=TEXT", help=HELP)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build and check everything, run a few steps, say what the training would take and "
        "write, and stop; nothing is written",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train into the folder of another training, whose checkpoints and metrics are removed",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code a mistake was noticed"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Train or evaluate in as many processes as `args` ask for, as `launch` with `main`.

    Args:
        args: what :func:`argument_parser` gives.

    Returns:
        the exit status: 1 after a mistake in options, config or files, which is said in a line
        (with `args.traceback` it is raised), and when a process has died; 130 after Ctrl-C, 143
        after SIGTERM, 138 after SIGUSR1, as shells give.

    Raises:
        Exception: whatever is no such mistake.
    """
    # When one process fails, torch warns that it ends the others.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        with interruptible():
            launch(
                _job,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except Exception as error:
        mistake = _mistake(error)
        if args.traceback or mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 1
    return 0


def _job(args: argparse.Namespace) -> dict[str, Any] | None:
    """One process of the job. Another process learns of an error by its text alone."""
    ignore_warnings()
    try:
        return main(args)
    except Exception as error:
        mistake = _mistake(error)
        if args.traceback or mistake is None:
            raise
        raise MistakeError(mistake) from None


def _end_of(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    return f"was killed by {signal.Signals(-exit_code).name}"


def _mistake(error: Exception) -> str | None:
    """What an error says if it is a mistake of the user; None if it may be one of the code.

    The package's own code refuses what the user gave with a ValueError, the system with an OSError.
    """
    if isinstance(error, MistakeError | OSError):
        return str(error)
    if isinstance(error, RecordError):
        return f"{error.line}\n{FIND_ALL}"
    if isinstance(error, ProcessExitedException):
        return DIED.format(error.error_index, error.error_pid, _end_of(error.exit_code))
    text = str(error)
    if isinstance(error, RuntimeError) and re.search(WORKER_DIED, text):
        return f"{' '.join(text.split())}: {WORKER}"
    if isinstance(error, RuntimeError) and re.search(LOST, text):
        return f"{LOST_ANOTHER} ({text.strip().splitlines()[0]})"
    if isinstance(error, ProcessRaisedException):
        found = re.search(rf"^{__name__}\.{MistakeError.__name__}: (.*)", str(error), re.M | re.S)
        return found[1].rstrip() if found else None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_by = frame.f_globals.get("__name__", "")
    is_ours = raised_by.split(".")[0] == __name__.split(".")[0]
    return str(error) if isinstance(error, ValueError) and is_ours else None
