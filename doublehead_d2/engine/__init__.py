"""Launching, setting up and running training and evaluation."""

from doublehead_d2.engine.launch import launch
from doublehead_d2.engine.program import argument_parser, run
from doublehead_d2.engine.setup import check_run, complete_config, setup
from doublehead_d2.engine.train import main
from doublehead_d2.engine.trainer import Trainer

__all__ = [
    "Trainer",
    "argument_parser",
    "check_run",
    "complete_config",
    "launch",
    "main",
    "run",
    "setup",
]
