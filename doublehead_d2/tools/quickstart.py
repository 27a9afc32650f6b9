"""From nothing to a trained detector: what `make demo` runs.

Writes the built-in shapes data, trains and evaluates on it, draws predictions beside ground truth,
and says where everything is. What is done already is skipped; an interrupted training goes on.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger

from doublehead_d2 import model_zoo
from doublehead_d2.engine import argument_parser as train_argument_parser
from doublehead_d2.engine import run as train
from doublehead_d2.engine.run_folder import traces
from doublehead_d2.tools import demo, make_shapes

CONFIG = "Shapes-Detection/double_head_ext_rcnn_tiny.yaml"
PICTURES = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code, of a training that ends early that of train_net.py."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.quickstart", description=__doc__
    )
    parser.add_argument("--config-file", default=CONFIG, help=f"what to train ({CONFIG})")
    parser.add_argument("--output", default="output/demo", help="folder to write to (output/demo)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=[], help="config changes, KEY VALUE ..."
    )
    args = parser.parse_args(argv)
    setup_logger(name="doublehead_d2")

    if make_shapes.main([]):
        return 1
    if is_trained(args.output):
        print(f"{args.output}/model_final.pth is there already: not training again")
    else:
        resume = ["--resume"] if traces(args.output) else []
        command = ["--config-file", args.config_file, *resume, "OUTPUT_DIR", args.output]
        status = train(train_argument_parser().parse_args(command + args.opts))
        if status:
            return status

    config = os.path.join(args.output, "config.yaml")
    pictures = os.path.join(args.output, "predictions")
    code = 0
    if is_drawn(pictures):
        print(f"{pictures} is there already: not drawing again")
    else:
        dataset = model_zoo.get_config(config).DATASETS.TEST[0]
        words = ["--config-file", config, "--dataset", dataset, "--output", pictures]
        code = demo.main([*words, "--num-images", str(PICTURES)])
    print(summary(args.output))
    return code


def is_trained(output: str) -> bool:
    """Whether the folder `output` holds a final model and its evaluation."""
    if not os.path.isfile(os.path.join(output, "model_final.pth")):
        return False
    try:
        final_ap(output)
    except ValueError:  # stopped during the evaluation
        return False
    return True


def is_drawn(pictures: str) -> bool:
    """Whether the folder `pictures` holds all pictures; an interrupted demo leaves fewer."""
    try:
        with open(os.path.join(pictures, "detections.json")) as f:
            return len(json.load(f)) >= PICTURES
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def summary(output: str) -> str:
    """What training left in the folder `output`, and the command to go on with."""
    lines = [
        "",
        f"box AP {final_ap(output):.1f} on the validation split (COCO evaluator, in percent)",
        f"  pictures     {output}/predictions/  (ground truth left, predictions right)",
        f"  model        {output}/model_final.pth",
        f"  config       {output}/config.yaml  (DefaultPredictor loads it)",
        f"  metrics      {output}/metrics.json",
        f"  TensorBoard  {sys.executable} -m tensorboard.main --logdir {output}",
        "Predict on your own image:",
        f"  {sys.executable} -m doublehead_d2.tools.demo --config-file {output}/config.yaml "
        "--input your_image.jpg",
    ]
    return "\n".join(lines)


def final_ap(output: str) -> float:
    """The last box AP in percent that metrics.json in the folder `output` records.

    Raises:
        ValueError: there is none.
    """
    path = os.path.join(output, "metrics.json")
    with open(path) as f:
        aps = [json.loads(line).get("bbox/AP") for line in f]
    aps = [ap for ap in aps if ap is not None]
    if not aps:
        raise ValueError(f"{path} records no bbox/AP: was the model evaluated?")
    return aps[-1]


if __name__ == "__main__":
    sys.exit(main())
