"""Detect objects in images: pictures and boxes out.

    python -m doublehead_d2.tools.demo --config-file output/demo/config.yaml --input photo.jpg

writes one picture an image and all boxes as `detections.json` into --output.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances

from doublehead_d2 import model_zoo
from doublehead_d2.data.check import check_datasets
from doublehead_d2.files import write_json
from doublehead_d2.inference import Predictor
from doublehead_d2.tools.options import add_opts
from doublehead_d2.visualize import draw_ground_truth, draw_predictions, side_by_side


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.demo",
        description="Detect objects in images: pictures and boxes out.",
    )
    parser.add_argument("--config-file", required=True, help="YAML file or name of the zoo")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="IMAGE", help="image files")
    source.add_argument(
        "--dataset", help="a registered data set: draws predictions beside ground truth"
    )
    parser.add_argument("--num-images", type=int, default=16, help="of --dataset (16)")
    parser.add_argument("--output", default="predictions", help="folder to write to (predictions)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="lowest score (0.5)")
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (8)")
    add_opts(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code: 1 if an image could not be read."""
    args = argument_parser().parse_args(argv)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}; allowed: 1 or more")
    cfg = model_zoo.get_config(args.config_file)
    cfg.merge_from_list(args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"{args.config_file} names no weights; add `--opts MODEL.WEIGHTS path/to/model.pth`"
        )
    if args.dataset:
        check_datasets([args.dataset])
        records = DatasetCatalog.get(args.dataset)[: args.num_images]
    else:
        records = [{"file_name": path} for path in args.input]

    names = _picture_names(records)
    records = [{**r, "picture": name} for r, name in zip(records, names, strict=True)]

    predictor = Predictor(cfg)
    os.makedirs(args.output, exist_ok=True)
    detections: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for start in range(0, len(records), args.batch_size):
        batch = []
        for record in records[start : start + args.batch_size]:
            image = cv2.imread(record["file_name"])
            if image is None:
                unreadable.append(record["file_name"])
            else:
                batch.append((record, image))
        outputs = predictor([image for _, image in batch])
        for (record, image), output in zip(batch, outputs, strict=True):
            instances = output["instances"].to("cpu")
            instances = instances[instances.scores >= args.score_threshold]
            picture = _draw(record, image, instances, predictor.metadata)
            cv2.imwrite(os.path.join(args.output, record["picture"]), picture)
            detections.append(_describe(record, image, instances, predictor.metadata))
    write_json(os.path.join(args.output, "detections.json"), detections)
    boxes = sum(len(entry["detections"]) for entry in detections)
    print(f"{len(detections)} pictures and {boxes} boxes (detections.json) are in {args.output}")
    for file_name in unreadable:
        print(f"not readable as an image: {file_name}", file=sys.stderr)
    return 1 if unreadable else 0


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


def _picture_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """A file name for each picture; images of one name from several folders get numbers."""
    names: list[str] = []
    for record in records:
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        name, number = f"{stem}.png", 1
        while name in names:
            number += 1
            name = f"{stem}_{number}.png"
        names.append(name)
    return names


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
        "picture": record["picture"],
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
