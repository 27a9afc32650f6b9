"""What the heads of a detector look at: the feature maps that their RoIs are pooled from.

    python -m doublehead_d2.tools.feature_maps --config-file CONFIG --input image.jpg

draws each image and, beside it, a picture for every map of every head: how active its cells are,
black little, yellow much (the norm over channels). Heads that pool from one map show it once each.
Of G-RCN's two Conv5 one sees at a glance which stride each task has.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata

from doublehead_d2 import model_zoo
from doublehead_d2.benchmark.heads import ask
from doublehead_d2.config import merge_opts
from doublehead_d2.data.resize import build_test_resize
from doublehead_d2.inference import Predictor
from doublehead_d2.inference.images import read_bgr
from doublehead_d2.tools.options import USER_ERRORS, add_opts
from doublehead_d2.visualize import draw_ground_truth, draw_map, save_picture, side_by_side


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.feature_maps",
        description="What the heads of a detector look at: the maps they pool their RoIs from.",
    )
    parser.add_argument("--config-file", required=True, help="YAML file or name of the zoo")
    parser.add_argument("--input", nargs="+", metavar="IMAGE", required=True, help="image files")
    parser.add_argument("--output", default="feature_maps", help="folder (feature_maps)")
    add_opts(parser)
    args = parser.parse_args(argv)
    try:
        return _draw_all(args)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1


def _draw_all(args: argparse.Namespace) -> int:
    """Draw all images; 1 if one could not be read."""
    cfg = model_zoo.get_config(args.config_file)
    merge_opts(cfg, args.opts)
    model = Predictor(cfg).model
    resize = build_test_resize(cfg)
    os.makedirs(args.output, exist_ok=True)
    status = 0
    for number, path in enumerate(args.input, 1):
        try:
            image = read_bgr(path)
        except ValueError as error:  # the others are drawn
            print(f"not readable as an image: {error}", file=sys.stderr)
            status = 1
            continue
        image = resize.get_transform(image).apply_image(image)
        shown = image if cfg.INPUT.FORMAT == "BGR" else image[:, :, ::-1]
        maps = head_maps(model, torch.as_tensor(shown.transpose(2, 0, 1).astype("float32")))
        pictures = [draw_ground_truth(image, {}, Metadata())]
        pictures += [draw_map(image, *x) for x in maps.values()]
        stem = os.path.splitext(os.path.basename(path))[0]
        file = os.path.join(args.output, f"{number:03}_{stem}.png")
        save_picture(file, side_by_side(pictures, ["image", *maps]))
        print(file)
    return status


@torch.no_grad()
def head_maps(model: Any, image: torch.Tensor) -> dict[str, tuple[np.ndarray, int]]:
    """How active the cells are of the maps that heads pool from.

    Args:
        model: a `GeneralizedRCNN` in evaluation mode whose heads say what they are made of.
        image: C x H x W as the model takes it, resized.

    Returns:
        norms over channels, h x w, and stride, by head and map, e.g. "box_head: res5, stride 32".

    Raises:
        ValueError: heads that do not say it.
    """
    features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    return {
        f"{part.name}: {name}, stride {strides[name]}": (
            features[name][0].norm(dim=0).cpu().numpy(),
            strides[name],
        )
        for part in ask(model.roi_heads).parts()
        for name in part.in_features
    }


if __name__ == "__main__":
    sys.exit(main())
