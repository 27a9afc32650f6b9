#!/usr/bin/env python
"""Train or evaluate a model; see `python train_net.py --help` and docs/GETTING_STARTED.md."""

import sys

from doublehead_d2.engine import argument_parser, run

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
