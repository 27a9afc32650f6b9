"""Detect objects in images: pictures and boxes out.

    python -m doublehead_d2.tools.demo --config-file output/demo/config.yaml --input photo.jpg

writes one picture an image and all boxes as `detections.json` into --output, image by image: what
is done stays, whatever comes after it.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances

from doublehead_d2.files import growing_json
from doublehead_d2.inference import Predictor
from doublehead_d2.inference.display import Displayed, display_threshold, select_for_display
from doublehead_d2.inference.images import read_bgr
from doublehead_d2.tools.options import add_images, add_opts, config_of, records_of
from doublehead_d2.visualize import draw_ground_truth, draw_predictions, save_picture, side_by_side


@dataclass
class Tally:
    """What became of the images and of their detections."""

    pictures: int = 0
    boxes: int = 0
    low_scores: int = 0
    second_labels: int = 0
    unreadable: int = 0


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.demo",
        description="Detect objects in images: pictures and boxes out. Files that are not readable "
        "as images are named, the others done; the exit status is then 1.",
    )
    parser.add_argument("--config-file", required=True, help="YAML file or name of the zoo")
    add_images(parser, "draws predictions beside ground truth")
    parser.add_argument("--output", default="predictions", help="folder to write to (predictions)")
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="lowest score, as the model gives it (what its fusion makes of two heads that both "
        "say 0.5: 0.75 where it is complementary, else 0.5)",
    )
    parser.add_argument(
        "--all-labels",
        action="store_true",
        help="also the boxes that lie on a box of another class and a higher score",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (8)")
    add_opts(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code: 1 if an image could not be read."""
    args = argument_parser().parse_args(argv)
    _check(args)
    cfg = config_of(args.config_file, args)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"{args.config_file} names no weights; add `--opts MODEL.WEIGHTS path/to/model.pth`"
        )
    records = _with_pictures(records_of(args), args.output)

    predictor = Predictor(cfg)
    threshold = args.score_threshold
    if threshold is None:
        threshold = display_threshold(predictor.model)
    overlap = None if args.all_labels else cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST

    def select(instances: Instances) -> Displayed:
        return select_for_display(instances, threshold, overlap)

    os.makedirs(args.output, exist_ok=True)
    tally = Tally()
    try:
        with growing_json(os.path.join(args.output, "detections.json")) as append:
            for start in range(0, len(records), args.batch_size):
                batch = records[start : start + args.batch_size]
                _detect(batch, predictor, select, append, tally)
    finally:
        _print_summary(tally, args.output, threshold)
    return 1 if tally.unreadable else 0


def _check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "num_images"):
        value = getattr(args, name)
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; allowed: 1 or more")
    threshold = args.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--score-threshold is {threshold}; allowed: 0 to 1")


def _detect(
    records: Sequence[dict[str, Any]],
    predictor: Predictor,
    select: Callable[[Instances], Displayed],
    append: Callable[[Any], None],
    tally: Tally,
) -> None:
    """Read, detect, draw and describe a batch of images."""
    batch = []
    for record in records:
        try:
            batch.append((record, read_bgr(record["file_name"])))
        except ValueError as error:
            tally.unreadable += 1
            print(f"not readable as an image: {error}", file=sys.stderr)
    outputs = predictor([image for _, image in batch])
    for (record, image), output in zip(batch, outputs, strict=True):
        displayed = select(output["instances"].to("cpu"))
        picture = _draw(record, image, displayed.instances, predictor.metadata)
        save_picture(record["picture"], picture)
        append(_describe(record, image, displayed.instances, predictor.metadata))
        tally.pictures += 1
        tally.boxes += len(displayed.instances)
        tally.low_scores += displayed.low_scores
        tally.second_labels += displayed.second_labels


def _print_summary(tally: Tally, output: str, threshold: float) -> None:
    boxes = f"{tally.pictures} pictures and {tally.boxes} boxes (detections.json) are in {output}"
    print(boxes)
    print(
        f"not shown: {tally.low_scores} boxes of scores below {threshold:g} (--score-threshold), "
        f"{tally.second_labels} second labels of an object (--all-labels)"
    )
    if tally.unreadable:
        print(f"not readable: {tally.unreadable} files", file=sys.stderr)


def _draw(
    record: dict[str, Any], image: np.ndarray, instances: Instances, metadata: Metadata
) -> np.ndarray:
    """All of `instances` on a BGR image, beside its ground truth where the record has any."""
    picture = draw_predictions(image, instances, metadata, score_threshold=0.0)
    if "annotations" not in record:
        return picture
    if not instances.has("pred_masks"):  # outlines would only hide what boxes show
        boxes = [dict(a) for a in record["annotations"]]
        for annotation in boxes:
            annotation.pop("segmentation", None)
        record = {**record, "annotations": boxes}
    truth = draw_ground_truth(image, record, metadata)
    return side_by_side([truth, picture], ["ground truth", "predictions"])


def _with_pictures(records: Sequence[dict[str, Any]], output: str) -> list[dict[str, Any]]:
    """Records with the path of their "picture" in the folder `output`.

    Raises:
        ValueError: a picture would replace an image that is read.
    """
    paths = [os.path.join(output, name) for name in _picture_names(records)]
    images = {os.path.realpath(record["file_name"]) for record in records}
    for path in paths:
        if os.path.realpath(path) in images:
            raise ValueError(f"--output {output} would replace the image {path}; name another one")
    return [{**r, "picture": path} for r, path in zip(records, paths, strict=True)]


def _picture_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """A file name for each picture; images of one name from several folders get numbers."""
    names: dict[str, None] = {}  # in their order
    used: dict[str, int] = {}  # the last number by stem
    for record in records:
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        name, number = f"{stem}.png", used.get(stem, 1)
        while name in names:
            number += 1
            name = f"{stem}_{number}.png"
        used[stem] = number
        names[name] = None
    return list(names)


def _describe(
    record: dict[str, Any], image: np.ndarray, instances: Instances, metadata: Metadata
) -> dict[str, Any]:
    """An image and its detections as JSON values: box XYXY in pixels of the image, score, class."""
    class_names = metadata.get("thing_classes")
    rows = zip(
        instances.pred_boxes.tensor.tolist(),
        instances.scores.tolist(),
        instances.pred_classes.tolist(),
        strict=True,
    )
    return {
        "file_name": record["file_name"],
        "picture": os.path.basename(record["picture"]),
        "height": image.shape[0],
        "width": image.shape[1],
        "detections": [
            {
                "box": [round(x, 2) for x in box],
                "score": round(score, 4),
                "class_id": class_id,
                "class": class_names[class_id] if class_names else str(class_id),
            }
            for box, score, class_id in rows
        ],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:  # such as weights that have to be fetched by hand
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells number it
