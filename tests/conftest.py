"""What the tests share: an own place for data sets, small shapes data, one trained model."""

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Server

# Processes that tests start import this file, too: they share the first one's place.
INHERITED = "DOUBLEHEAD_D2_TEST_DATASETS"
if INHERITED not in os.environ:
    os.environ[INHERITED] = tempfile.mkdtemp(prefix="doublehead_d2_datasets_")
    atexit.register(shutil.rmtree, os.environ[INHERITED], ignore_errors=True)
DATASETS = Path(os.environ[INHERITED])
# detectron2 and this package read the place of data sets when they are imported.
os.environ["DETECTRON2_DATASETS"] = str(DATASETS)

REPOSITORY = Path(__file__).parent.parent
TINY_EXT = "Shapes-Detection/double_head_ext_rcnn_tiny.yaml"


@pytest.fixture(scope="session")
def shapes() -> Path:
    """The built-in data sets under their own names, with few images."""
    from doublehead_d2.data import write_shapes

    write_shapes(DATASETS / "shapes", num_train=240, num_val=40)
    return DATASETS / "shapes"


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
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a short training of the demo's config, some 60 seconds on two cores."""
    from doublehead_d2.engine import argument_parser, main

    output = tmp_path_factory.mktemp("trained")
    schedule = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "320", "SOLVER.WARMUP_ITERS", "30"]
    command = ["--config-file", TINY_EXT, "OUTPUT_DIR", str(output), *schedule]
    main(argument_parser().parse_args(command))
    return output
