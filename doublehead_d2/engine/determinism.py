"""Trainings that can be repeated to the bit."""

import logging
import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read by cuBLAS when it first multiplies matrices

logger = logging.getLogger(__name__)


def make_deterministic() -> None:
    """Have torch use deterministic algorithms in this process, as far as there are some.

    It is the process that is changed, for good; so this is for programs. In a `train_net.py` of
    your own: after `default_setup`, with a SEED of 0 or more, and before a model is built.
    torch warns of an operation that has no such algorithm where it is used.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # which would choose by measured time
    logger.info("SOLVER.DETERMINISTIC: deterministic algorithms wherever torch has them.")
