"""Where TSD's two tasks look: pictures, and how far and where its offsets point.

    python -m doublehead_d2.tools.sampling --config-file output/tsd/config.yaml --dataset shapes_val

draws, for the best detection of each image, the proposal it comes from (white), the bins that
classification pools, each joined to its regular place (orange), and the moved proposal that
localisation pools (blue). The numbers are of all detections above --score-threshold.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from doublehead_d2.analysis.sampling import Looks, look, summarize
from doublehead_d2.data.resize import build_test_resize
from doublehead_d2.inference import Predictor
from doublehead_d2.inference.images import read_bgr
from doublehead_d2.tools.options import USER_ERRORS, add_images, add_opts, config_of, records_of
from doublehead_d2.visualize import draw_sampling, save_picture


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.sampling",
        description="Where TSD's two tasks look: pictures, and how far its offsets point.",
    )
    parser.add_argument("--config-file", required=True, help="YAML file or name of the zoo")
    add_images(parser, "draws its images")
    parser.add_argument("--output", default="sampling", help="folder to write to (sampling)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="lowest score (0.5)")
    add_opts(parser)
    args = parser.parse_args(argv)
    if args.num_images < 1 or not 0 <= args.score_threshold <= 1:
        parser.error("--num-images must be 1 or more, --score-threshold 0 to 1")
    try:
        return _draw_all(args)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1


def _draw_all(args: argparse.Namespace) -> int:
    """Draw what the options ask for and print the summary; 1 if an image could not be read."""
    cfg = config_of(args.config_file, args)
    paths = [record["file_name"] for record in records_of(args)]
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.score_threshold
    model = Predictor(cfg).model
    if not hasattr(getattr(model, "roi_heads", None), "offset_head"):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{cfg.MODEL.ROI_HEADS.NAME}', whose heads have no offsets; "
            "allowed: 'TSDROIHeads'"
        )
    resize = build_test_resize(cfg)
    os.makedirs(args.output, exist_ok=True)
    found, status = [], 0
    for number, path in enumerate(paths, 1):
        try:
            image = read_bgr(path)
        except ValueError as error:  # the others are drawn
            print(f"not readable as an image: {error}", file=sys.stderr)
            status = 1
            continue
        image = resize.get_transform(image).apply_image(image)
        shown = image if cfg.INPUT.FORMAT == "BGR" else image[:, :, ::-1]
        looks = look(model, torch.as_tensor(shown.transpose(2, 0, 1).astype("float32")))
        if not len(looks.boxes):
            print(f"no detection in {path}")
            continue
        found.append(looks)
        regular, moved = (x[0].tolist() for x in looks.bins)
        picture = draw_sampling(
            image, looks.proposals[0].tolist(), regular, moved, looks.moved_proposals[0].tolist()
        )
        stem = os.path.splitext(os.path.basename(path))[0]
        save_picture(os.path.join(args.output, f"{number:03}_{stem}.png"), picture)
    if found:
        print(f"{len(found)} pictures are in {args.output}")
        print(summarize(Looks(*(torch.cat(x) for x in zip(*found, strict=True)))))
    else:
        print(f"no detection of a score above {args.score_threshold:g}: no picture")
    return status


if __name__ == "__main__":
    sys.exit(main())
