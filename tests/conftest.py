"""What the tests share: an own place for files, small shapes data, one trained model.

All that a run writes, whatever its number of processes, lies in one folder, which is removed at
its end; after a failure, what pytest keeps of the tests that failed stays.
"""

import atexit
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servers import Server

if TYPE_CHECKING:
    from places import Place

# Processes that tests start import this file, too: they share the first one's place.
INHERITED = "DOUBLEHEAD_D2_TEST_RUN"
FIRST = INHERITED not in os.environ
if FIRST:
    os.environ[INHERITED] = tempfile.mkdtemp(prefix="doublehead_d2_tests_")
RUN = Path(os.environ[INHERITED])
os.environ["TMPDIR"] = tempfile.tempdir = str(RUN)
DATASETS = RUN / "datasets"
# detectron2 and this package read the place of data sets when they are imported.
os.environ["DETECTRON2_DATASETS"] = str(DATASETS)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a process a core

REPOSITORY = Path(__file__).parent.parent
TINY_EXT = "Shapes-Detection/double_head_ext_rcnn_tiny.yaml"

# Bytes that a run may have on disk at a time. It has some 550 MB; a run once filled a disk.
DISK_BUDGET = 1_000_000_000


class DiskWatch:
    """The most bytes that the run's folder held, looked at every second."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def look(self) -> None:
        """Add up what is there now; files vanish meanwhile."""
        total = 0
        for folder, _, names in os.walk(RUN):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except OSError:
                    continue
        self.most = max(self.most, total)

    def end(self) -> None:
        self._ended.set()
        self.look()

    def _watch(self) -> None:
        while not self._ended.wait(1):
            self.look()


disk_watch = DiskWatch() if FIRST else None


def _clean_up() -> None:
    kept = list(RUN.glob("pytest-of-*/*/*"))
    for path in RUN.iterdir():
        if not (kept and path.name.startswith("pytest-of-")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    if not kept:
        shutil.rmtree(RUN, ignore_errors=True)


if FIRST:
    atexit.register(_clean_up)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if disk_watch is not None:
        disk_watch.end()
        if disk_watch.most > DISK_BUDGET:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if disk_watch is not None:
        used = f"{disk_watch.most / 1e6:.0f} MB on disk at a time"
        verdict = "over the" if disk_watch.most > DISK_BUDGET else "of a"
        terminalreporter.write_line(f"{used}, {verdict} budget of {DISK_BUDGET / 1e6:.0f} MB")


def once(folder: Path) -> Iterator[Path]:
    """Give a folder that the first of all test processes fills; the others wait for it.

    Yields an empty folder where it is to be filled, and nothing where it is there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            yield folder
            done.touch()


@contextmanager
def own_loggers() -> Iterator[None]:
    """Leaves the loggers as they were: handlers of a test write to its captured output."""
    loggers = [logging.getLogger(name) for name in ("doublehead_d2", "detectron2", "fvcore")]
    before = [(x, list(x.handlers), x.level, x.propagate) for x in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(autouse=True)
def _own_loggers() -> Iterator[None]:
    with own_loggers():
        yield


@pytest.fixture(scope="session")
def shapes() -> Path:
    """The built-in data sets under their own names, with few images."""
    from doublehead_d2.data import write_shapes

    for folder in once(DATASETS / "shapes"):
        write_shapes(folder, num_train=240, num_val=40)
    return DATASETS / "shapes"


@pytest.fixture
def catalogs() -> Iterator[None]:
    """Takes away what a test has registered in detectron2's catalogs."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def small_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to train on and four to test with, in both layouts; not to be changed."""
    from doublehead_d2.data import write_shapes

    root = tmp_path_factory.mktemp("small") / "shapes"
    write_shapes(root, num_train=6, num_val=4)
    return root


@pytest.fixture
def place(small_shapes: Path, tmp_path: Path, catalogs: None) -> "Place":
    """Makes and registers changed copies of the small shapes."""
    from places import Place

    return Place(small_shapes, tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    # It looks every few milliseconds whether to stop.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def trained(shapes: Path) -> Path:
    """Output folder of a short training of the demo's config, some minutes of a core."""
    from doublehead_d2.engine import argument_parser, main

    schedule = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "160", "SOLVER.WARMUP_ITERS", "30"]
    for output in once(RUN / "trained"):
        command = ["--config-file", TINY_EXT, "OUTPUT_DIR", str(output), *schedule]
        with own_loggers():
            main(argument_parser().parse_args(command))
    return RUN / "trained"
