"""Ctrl-C, and the signals that `kill`, containers and schedulers send instead of it."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SECONDS_TO_END = 30  # for processes that were interrupted, before they are killed


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While this lasts, SIGINT and SIGTERM raise a KeyboardInterrupt that holds their number.

    A signal that whoever started this process had it ignore is ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt_once() -> None:
    """From now on SIGINT interrupts this process, and a further one is ignored.

    A terminal sends one to all processes of a job, and the first of them, which cannot know of
    that, another: it must not interrupt what a process does about the first.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)


@contextlib.contextmanager
def processes_end_with_this_one() -> Iterator[None]:
    """Let processes that are started meanwhile end when this one is interrupted.

    A signal to this process alone does not reach them. They may end in their own way; those that
    do not within `SECONDS_TO_END`, or that a second interruption finds, are killed.
    """
    before = multiprocessing.active_children()
    try:
        yield
    except KeyboardInterrupt:
        started = [child for child in multiprocessing.active_children() if child not in before]
        try:
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # then they ignore it, too
            for process in started:
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGTERM if ignored else signal.SIGINT)
            end = time.monotonic() + SECONDS_TO_END
            for process in started:
                process.join(max(0.0, end - time.monotonic()))
        finally:
            for process in started:
                process.kill()
                process.join()
        raise
