#!/usr/bin/env python
"""Train or evaluate a model; see `python train_net.py --help` and docs/GETTING_STARTED.md."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while this imports, in each process of a job, ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from doublehead_d2.engine import argument_parser, run

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
