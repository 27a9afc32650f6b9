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
from typing import Any, NamedTuple

import torch
from detectron2.data import DatasetCatalog
from torch import Tensor

from doublehead_d2 import model_zoo
from doublehead_d2.config import merge_opts
from doublehead_d2.data.check import check_datasets
from doublehead_d2.data.resize import build_test_resize
from doublehead_d2.inference import Predictor
from doublehead_d2.inference.images import read_bgr
from doublehead_d2.tools.options import USER_ERRORS, add_opts
from doublehead_d2.visualize import draw_sampling, save_picture


class Looks(NamedTuple):
    """Where both tasks looked for D detections; boxes XYXY in pixels of the network's input."""

    boxes: Tensor  # D x 4, detected
    proposals: Tensor  # D x 4
    cls_offsets: Tensor  # D x 2 x h x w, γ ΔC: of widths and heights of the proposals, x first
    reg_offsets: Tensor  # D x 2, γ ΔR

    @property
    def bins(self) -> tuple[Tensor, Tensor]:
        """Centres of the bins, D x hw x 2 in pixels: regular ones, and where they are moved to."""
        places = _regular_places(self.cls_offsets)
        start, size = self.proposals[:, None, :2], _sizes(self.proposals)[:, None]
        offsets = self.cls_offsets.flatten(2).transpose(1, 2)
        return start + places * size, start + (places + offsets) * size

    @property
    def moved_proposals(self) -> Tensor:
        """P_r, D x 4."""
        return self.proposals + (self.reg_offsets * _sizes(self.proposals)).repeat(1, 2)


class Summary(NamedTuple):
    """How far and where offsets point."""

    detections: int
    cls_distance: float  # of a bin, on average, in sides of its proposal
    cls_spread: float  # 1: the bins lie as wide as regular ones; above: wider
    cls_towards: float  # 1: their middle moves onto the detected box's; 0: not towards it
    reg_distance: float  # of the proposal, on average, in its sides
    reg_towards: float  # 1: it moves onto the detected box; 0: not towards it

    def __str__(self) -> str:
        return (
            f"{self.detections} detections\n"
            f"classification moves a bin by {self.cls_distance:.3f} of the proposal's sides; its "
            f"bins lie {self.cls_spread:.2f} times as wide as regular ones, their middle moves "
            f"{100 * self.cls_towards:.0f} % of the way to the detected box\n"
            f"localisation moves the proposal by {self.reg_distance:.3f} of its sides, "
            f"{100 * self.reg_towards:.0f} % of the way to the detected box"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.sampling",
        description="Where TSD's two tasks look: pictures, and how far its offsets point.",
    )
    parser.add_argument("--config-file", required=True, help="YAML file or name of the zoo")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="IMAGE", help="image files")
    source.add_argument("--dataset", help="a registered data set")
    parser.add_argument("--num-images", type=int, default=16, help="of --dataset (16)")
    parser.add_argument("--output", default="sampling", help="folder to write to (sampling)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="lowest score (0.5)")
    add_opts(parser)
    args = parser.parse_args(argv)
    if args.num_images < 1 or not 0 <= args.score_threshold <= 1:
        parser.error("--num-images must be 1 or more, --score-threshold 0 to 1")
    try:
        print(_draw_all(args))
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def look(model: Any, image: Tensor) -> Looks:
    """Run a detector on an image and keep where it looked for each detection.

    Args:
        model: a `GeneralizedRCNN` in evaluation mode whose heads are TSD's.
        image: C x H x W as the model takes it, resized.

    Returns:
        one row a detection, the best first; `scores` of the model decide what is one.
    """
    with torch.no_grad():
        images = model.preprocess_image([{"image": image}])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        heads = model.roi_heads
        predictions = heads.predict(features, [x.proposal_boxes for x in proposals])
        (instances,), (kept,) = heads.inference(predictions, proposals)
    return Looks(
        instances.pred_boxes.tensor,
        proposals[0].proposal_boxes.tensor[kept],
        heads.offset_scale * predictions.delta_c[kept],
        heads.offset_scale * predictions.delta_r[kept],
    )


def summarize(looks: Looks) -> Summary:
    """How far and where the offsets of at least one detection point."""
    places = _regular_places(looks.cls_offsets) - 0.5
    offsets = looks.cls_offsets.flatten(2).transpose(1, 2)
    common = offsets.mean(dim=1)
    around = offsets - common[:, None]
    middles = [(x[:, :2] + x[:, 2:]) / 2 for x in (looks.proposals, looks.boxes)]
    way, sizes = middles[1] - middles[0], _sizes(looks.proposals)

    def towards(shift: Tensor) -> float:
        return float((shift * sizes * way).sum() / way.square().sum().clamp(min=1e-12))

    return Summary(
        len(offsets),
        float(offsets.norm(dim=2).mean()),
        1 + float((around * places).sum() / (places.square().sum() * len(offsets))),
        towards(common),
        float(looks.reg_offsets.norm(dim=1).mean()),
        towards(looks.reg_offsets),
    )


def _draw_all(args: argparse.Namespace) -> str:
    """Draw what the options ask for; returns the summary."""
    cfg = model_zoo.get_config(args.config_file)
    merge_opts(cfg, args.opts)
    if args.dataset:
        check_datasets([args.dataset])
        paths = [x["file_name"] for x in DatasetCatalog.get(args.dataset)[: args.num_images]]
    else:
        paths = args.input
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.score_threshold
    model = Predictor(cfg).model
    if not hasattr(getattr(model, "roi_heads", None), "offset_head"):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{cfg.MODEL.ROI_HEADS.NAME}', whose heads have no offsets; "
            "allowed: 'TSDROIHeads'"
        )
    resize = build_test_resize(cfg)
    os.makedirs(args.output, exist_ok=True)
    found = []
    for number, path in enumerate(paths, 1):
        image = read_bgr(path)
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
    if not found:
        return f"no detection of a score above {args.score_threshold:g}: no picture"
    looks = Looks(*(torch.cat(x) for x in zip(*found, strict=True)))
    return f"{len(found)} pictures are in {args.output}\n{summarize(looks)}"


def _sizes(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _regular_places(offsets: Tensor) -> Tensor:
    """Centres of the bins of offsets D x 2 x h x w, hw x 2, x first, in sides of a RoI."""
    height, width = offsets.shape[2:]
    y, x = ((torch.arange(n, device=offsets.device) + 0.5) / n for n in (height, width))
    return torch.cartesian_prod(y, x).flip(1)


if __name__ == "__main__":
    sys.exit(main())
