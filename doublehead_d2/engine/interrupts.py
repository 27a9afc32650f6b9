"""Ctrl-C, and the signals that `kill`, containers and schedulers send instead of it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType

SECONDS_TO_END = 60  # for processes that were interrupted, before they are killed
SECONDS_AFTER_FAILURE = 5  # for the other processes, when one of them has failed
SECONDS_OF_ONE = 2.0  # in which signals are one and the same, sent by a terminal and by a launcher

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class _Asked:
    """Whether this process was asked to end."""

    process = 0  # its id; those that it forks inherit the handlers
    number = 0  # of the first signal
    time = 0.0
    waits = False  # the first one does not interrupt; whoever set this looks at `number`
    spared = False  # of a forked process: it was asked once


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While this lasts, SIGINT, SIGTERM and SIGUSR1 raise a KeyboardInterrupt with their number.

    A signal that whoever started this process had it ignore is ignored. Further ones within
    `SECONDS_OF_ONE` are the same: a terminal sends one to all processes of a job, and the launcher,
    which cannot know of that, another. See also :func:`wait_with_interrupts`.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heed_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Asked.number = 0


def heed_signals() -> None:
    """As :func:`interruptible`, from now on."""
    _Asked.process, _Asked.number, _Asked.waits = os.getpid(), 0, False
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _heed)


def wait_with_interrupts(waits: bool) -> None:
    """Have the first signal wait for who asks :func:`asked_to_end`, or interrupt at once."""
    _Asked.waits = waits


def asked_to_end() -> int:
    """The number of the signal that asked this process to end; 0 without one."""
    return _Asked.number


def count_as_asked(number: int) -> None:
    """This process ends because another one was asked: a late signal of its own is the same."""
    if not _Asked.number:
        _Asked.number, _Asked.time = number, time.monotonic()


def _heed(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _Asked.process:
        _heed_in_fork(number)
        return
    now, is_first = time.monotonic(), not _Asked.number
    if not is_first and now - _Asked.time < SECONDS_OF_ONE:
        return
    _Asked.number, _Asked.time = _Asked.number or number, now
    if not (is_first and _Asked.waits):
        raise KeyboardInterrupt(number)


def live_on(worker: int) -> None:
    """For `worker_init_fn` of a torch `DataLoader`, whose workers end at their first SIGTERM.

    Sent to a whole job, it would take the images from the step that the main process finishes.
    """
    if _Asked.process:
        signal.signal(signal.SIGTERM, _heed)


def _heed_in_fork(number: int) -> None:
    """In a process that loads images: the step that the main one is to finish needs it."""
    if number != signal.SIGTERM:
        return
    if _Asked.spared:  # torch ends them so when they do not by themselves
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _Asked.spared = True


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


@contextlib.contextmanager
def killed_after_failure(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """When one of the processes has failed, kill those that have not ended some seconds later.

    They wait for the one that has failed; torch asks them to end, which may be in vain.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            ended = [x for x in processes if multiprocessing.connection.wait([x.sentinel], 0)]
            # Whoever waits for them reads their exit codes first: two at a time may miss them.
            if ended and not over.wait(1.0) and any(x.exitcode for x in ended):
                over.wait(SECONDS_AFTER_FAILURE)
                for process in processes:
                    process.kill()  # nothing, if it has ended
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
