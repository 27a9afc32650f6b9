#!/usr/bin/env python
"""Train or evaluate a model; see `python train_net.py --help` and docs/GETTING_STARTED.md."""

from doublehead_d2.engine import argument_parser, launch, main

if __name__ == "__main__":
    args = argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
