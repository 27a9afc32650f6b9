"""The folder of a training: whose it is, and that one training at a time writes into it."""

import contextlib
import os
import socket
from pathlib import Path
from typing import IO

from detectron2.utils import comm

from doublehead_d2.checkpoint.whole import LAST, checkpoints
from doublehead_d2.files import PART

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
METRICS = "metrics.json"

_locks: list[IO[str]] = []  # of this process


def traces(folder: str) -> list[str]:
    """Files in a folder by which a training can be told."""
    names = [name for name in (LAST, METRICS) if os.path.isfile(os.path.join(folder, name))]
    return names + checkpoints(folder)


def check_folder(folder: str) -> None:
    """Make the folder of a run.

    Raises:
        ValueError: it cannot be made, or not be written to; says why.
    """
    if not folder:
        raise ValueError("OUTPUT_DIR is empty; allowed: a folder to write to")
    probe = os.path.join(folder, f".{os.getpid()}{PART}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, "w") as file:
            file.write("room for a line?\n")
    except OSError as error:
        reason = "it is a file" if os.path.isfile(folder) else error.strerror
        raise ValueError(
            f"OUTPUT_DIR '{folder}' cannot be written to: {reason}; allowed: a folder, or a new "
            "one, in which this user may write"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(probe)


def refuse_used(folder: str, weights: str, *, overwrite: bool) -> None:
    """Refuse a new training in the folder of another one.

    Args:
        folder: OUTPUT_DIR.
        weights: MODEL.WEIGHTS, which are not overwritten before they are read.
        overwrite: the user wants that training's files to go.

    Raises:
        ValueError: there is one, and says what can be done.
    """
    used = traces(folder)
    if used and not overwrite:
        names = f"{', '.join(used[:3])}{' ...' if len(used) > 3 else ''}"
        raise ValueError(
            f"OUTPUT_DIR '{folder}' is the folder of another training ({names}); allowed: --resume "
            "to go on with that one, another OUTPUT_DIR, or --overwrite, which removes its "
            "checkpoints and metrics"
        )
    if os.path.realpath(weights) in {os.path.realpath(os.path.join(folder, x)) for x in used}:
        raise ValueError(
            f"--overwrite would remove MODEL.WEIGHTS '{weights}', which lies in OUTPUT_DIR; "
            "allowed: another OUTPUT_DIR"
        )


def claim(folder: str, *, overwrite: bool = False) -> None:
    """Have the folder for this process's training alone, until :func:`release` or its end.

    Only the main process claims it. Files that a killed training has left unfinished are removed.
    The lock is one of the system, which frees it when the process dies, however it does. On network
    file systems it reaches as far as their locks do.

    Args:
        folder: OUTPUT_DIR, which is there.
        overwrite: remove what another training has left, but for its logs.

    Raises:
        ValueError: another process trains into it; names that.
    """
    if not comm.is_main_process():
        return
    # Not `flock`, which processes that load images would inherit, and hold after a kill.
    file = open(os.path.join(folder, LOCK), "a+")  # noqa: SIM115
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        if not isinstance(error, BlockingIOError | PermissionError):
            return  # the file system has no locks
        raise ValueError(
            f"another training writes into OUTPUT_DIR '{folder}' ({holder}); allowed: another "
            "OUTPUT_DIR, or this one when that has ended"
        ) from None
    _locks.append(file)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    for part in Path(folder).glob(f"*{PART}"):
        part.unlink(missing_ok=True)
    for name in traces(folder) if overwrite else ():
        os.remove(os.path.join(folder, name))


def release() -> None:
    """Let others train into the folders that this process has claimed."""
    while _locks:
        _locks.pop().close()
