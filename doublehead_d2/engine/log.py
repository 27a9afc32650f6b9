"""The log of a job: all of it in OUTPUT_DIR/log.txt, on the terminal what is not told at length."""

import logging
import re
import sys

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

ESCAPE_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# How detectron2's messages of many lines begin; an error is told by whoever started the job.
REPORTS = (
    "Environment info:",
    "Command line arguments:",
    "Contents of args.config_file",
    "Running with full config:",
    "Model:\n",
    "Full config saved to",  # which the report of our own says, too
    "Exception during training:",
    "Following weights matched with",
)
# How fvcore tells of weights that do not fit, tensor by tensor; our checkpointer sums it up.
LOADING = (
    "Skip loading parameter",
    "Some model parameters or buffers are not found in the checkpoint",
    "The checkpoint state_dict contains keys that are not used by the model",
)

_handlers: list[logging.Handler] = []  # of the latest job


def start_logging(folder: str) -> None:
    """Log to the terminal and to `folder`/log.txt in place of `default_setup`, which adds nothing.

    What was logged to by an earlier job of this process, or to the terminal by others, ends, so
    that nothing is said twice.
    """
    rank = comm.get_rank()
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_about_building)
    # As default_setup calls it: the calls are cached by their arguments.
    calls: tuple[dict[str, str], ...] = ({"name": "fvcore"}, {}, {"name": "doublehead_d2"})
    loggers = [logging.getLogger(call.get("name", "detectron2")) for call in calls]
    for logger in loggers:
        for handler in list(logger.handlers):
            if handler in _handlers or getattr(handler, "stream", None) is sys.stdout:
                logger.removeHandler(handler)
    _handlers.clear()
    setup_logger.cache_clear()
    for logger, call in zip(loggers, calls, strict=True):
        kept = list(logger.handlers)
        setup_logger(folder, distributed_rank=rank, **call)
        for handler in (new for new in logger.handlers if new not in kept):
            _adapt(handler)
            _handlers.append(handler)


class _WithoutEscapeCodes(logging.Formatter):
    """Formats as another formatter, less the colours."""

    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return ESCAPE_CODE.sub("", self._formatter.format(record))


class _Once(logging.Filter):
    """What detectron2 says of its loaders is the same at each evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        # The colourful formatter abbreviates the name in the record itself.
        if not record.name.startswith(("detectron2.data", "d2.data")):
            return True
        is_new = said not in self._said
        self._said.add(said)
        return is_new


def _adapt(handler: logging.Handler) -> None:
    """No reports on the terminal, and colours nowhere else."""
    assert isinstance(handler, logging.StreamHandler), f"unknown handler {handler}"
    on_terminal = handler.stream is sys.stdout
    if on_terminal:
        handler.addFilter(_is_no_report)
        handler.addFilter(_Once())
    if not (on_terminal and sys.stdout.isatty()):
        handler.setFormatter(_WithoutEscapeCodes(handler.formatter))


def _is_about_building(record: logging.LogRecord) -> bool:
    """detectron2 asks torch where CUDA is for its report; without a GPU torch complains of that."""
    return not record.getMessage().startswith("No CUDA runtime is found")


def _is_no_report(record: logging.LogRecord) -> bool:
    # The colourful formatter abbreviates the name in the record itself.
    reports = {"detectron2": REPORTS, "d2": REPORTS, "fvcore": LOADING}
    name = record.name.split(".")[0]
    return not record.getMessage().startswith(reports.get(name, ()))
