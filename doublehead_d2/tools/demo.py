"""Detect objects in images, videos and what a camera sees: pictures and boxes out.

    python -m doublehead_d2.tools.demo --config-file output/demo/config.yaml --input photo.jpg

writes one picture an image and all boxes as `detections.json` into --output, image by image: what
is done stays, whatever comes after it.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from doublehead_d2.files import prepare_output
from doublehead_d2.inference import Predictor
from doublehead_d2.inference.answers import AnswerFiles
from doublehead_d2.inference.images import bgr_of
from doublehead_d2.inference.pictures import Painter
from doublehead_d2.inference.predictor import PRECISIONS
from doublehead_d2.inference.results import Result
from doublehead_d2.inference.sources import expand
from doublehead_d2.inference.video import Video, VideoFile, Window, is_camera, is_video
from doublehead_d2.tools.options import add_images, add_opts, config_of, records_of
from doublehead_d2.visualize import save_picture

UNREADABLE = "not readable as an image"


@dataclass
class Tally:
    """What became of the images and of their detections."""

    pictures: int = 0
    boxes: int = 0
    low_scores: int = 0
    second_labels: int = 0
    unreadable: int = 0
    numbered: int = 0  # images and frames, read or not


def argument_parser() -> argparse.ArgumentParser:
    """Options of this tool."""
    parser = argparse.ArgumentParser(
        prog="python -m doublehead_d2.tools.demo",
        description="Detect objects in images, videos and what a camera sees: pictures and boxes "
        "out. Files that are not readable are named, the others done; the exit status is then 1.",
    )
    parser.add_argument("--config-file", required=True, help="YAML file or name of the zoo")
    source = add_images(
        parser,
        "draws predictions beside ground truth",
        "images, videos (each becomes one), patterns, folders (with those below, images alone), "
        "the number of a camera",
    )
    source.add_argument("--webcam", action="store_true", help="as --input 0; Ctrl-C or q ends it")
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
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="names or numbers of the only ones to detect"
    )
    parser.add_argument(
        "--heads",
        action="store_true",
        help="draw side by side what the regression head alone, the classification head alone and "
        "both say",
    )
    parser.add_argument(
        "--coco",
        metavar="FILE",
        help="write COCO results (JSON), for evaluation: of all scores, unless --score-threshold "
        "is given, and all labels",
    )
    parser.add_argument("--csv", metavar="FILE", help="write what is shown as a table")
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (8)")
    parser.add_argument(
        "--precision", choices=tuple(PRECISIONS), help="run the model under autocast"
    )
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
    records = _with_pictures(_records(args), args.output)

    predictor = Predictor(cfg)
    painter = Painter(
        predictor,
        score_threshold=args.score_threshold,
        nms_threshold=None if args.all_labels else cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        heads=args.heads,
    )
    run = _Run(args, predictor, painter)
    try:
        with AnswerFiles(args.output, args.coco, args.csv) as files, painter.scoring():
            for is_moving, group in itertools.groupby(records, lambda r: r.get("video", False)):
                if not is_moving:
                    run.images(list(group), files)
                    continue
                for record in group:
                    run.video(record, files)
    finally:
        _print_summary(run.tally, args.output, painter.threshold)
    return 1 if run.tally.unreadable else 0


class _Run:
    """Detects, draws and writes down; keeps count."""

    def __init__(self, args: argparse.Namespace, predictor: Predictor, painter: Painter) -> None:
        self._predictor = predictor
        self._painter = painter
        self._lowest = args.score_threshold  # None: as the model gives them
        self._options: dict[str, Any] = {"precision": args.precision}
        if args.classes:
            names = predictor.metadata.get("thing_classes") or ()
            classes = [int(x) if x.isdigit() and x not in names else x for x in args.classes]
            self._options["classes"] = classes
        self._batch_size = args.batch_size
        # Before anything is written
        predictor.stream((), batch_size=self._batch_size, **self._options)
        self.tally = Tally()

    def images(self, records: Sequence[dict[str, Any]], files: AnswerFiles) -> None:
        """Images, a picture each."""
        sources = [record["file_name"] for record in records]
        results = self._predictor.stream(sources, batch_size=self._batch_size, **self._options)
        results = tqdm(results, total=len(records), unit="image", disable=None)
        for record, result in zip(records, results, strict=True):
            self.tally.numbered += 1
            if result.error:
                self._report(UNREADABLE, result.error)
                continue
            picture = self._painter.paint(bgr_of(result.source), result.instances, record)
            save_picture(record["picture"], picture)
            number = record.get("image_id", self.tally.numbered)
            self._write_down(result, files, number, record["picture"])

    def video(self, record: dict[str, Any], files: AnswerFiles) -> None:
        """A video or a camera, of which a video is made."""
        path, window = record["file_name"], None
        try:
            video = Video(path)
        except ValueError as error:
            self._report("not readable as a video", str(error))
            return
        if video.camera:
            window = Window(f"camera {path}")
            print(f"Ctrl-C ends the recording of camera {path}", file=sys.stderr)
        number = -1
        try:
            with VideoFile(record["picture"], video.fps) as written:
                for number, result in enumerate(self._frames(video)):
                    self.tally.numbered += 1
                    picture = self._painter.paint(bgr_of(result.source), result.instances)
                    written.append(picture)
                    named = replace(result, source=path)
                    self._write_down(named, files, self.tally.numbered, record["picture"], number)
                    if window and not window.show(picture):
                        break
        except KeyboardInterrupt:
            if not video.camera:
                raise
        if number < 0:
            self._report("not readable as a video", f"{path}: it has no frames")

    def _frames(self, video: Video) -> Iterator[Result]:
        # Of a camera each frame at once
        batch_size = 1 if video.camera else self._batch_size
        results = self._predictor.stream(video.frames(), batch_size=batch_size, **self._options)
        yield from tqdm(results, total=video.length, unit="frame", disable=None)

    def _write_down(
        self,
        result: Result,
        files: AnswerFiles,
        image_id: Any,
        picture: str,
        frame: int | None = None,
    ) -> None:
        instances = self._painter.configured(result.instances)
        shown = self._painter.select(instances)
        if self._lowest is not None:
            instances = instances[instances.scores >= self._lowest]
        result = replace(result, instances=instances)
        files.add(result, shown.instances, image_id, os.path.basename(picture), frame)
        self.tally.pictures += 1
        self.tally.boxes += len(shown.instances)
        self.tally.low_scores += shown.low_scores
        self.tally.second_labels += shown.second_labels

    def _report(self, what: str, error: str) -> None:
        self.tally.unreadable += 1
        tqdm.write(f"{what}: {error}", file=sys.stderr)  # above the bar


def _check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "num_images"):
        value = getattr(args, name)
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; allowed: 1 or more")
    threshold = args.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--score-threshold is {threshold}; allowed: 0 to 1")
    for path in (args.coco, args.csv):
        if path is not None:
            prepare_output(path)
    if args.coco is not None and len(args.dataset or ()) > 1:
        raise ValueError(f"--coco {args.coco} with {len(args.dataset)} data sets; allowed: one")


def _print_summary(tally: Tally, output: str, threshold: float) -> None:
    boxes = f"{tally.pictures} pictures and {tally.boxes} boxes (detections.json) are in {output}"
    print(boxes)
    print(
        f"not shown: {tally.low_scores} boxes of scores below {threshold:g} (--score-threshold), "
        f"{tally.second_labels} second labels of an object (--all-labels)"
    )
    if tally.unreadable:
        print(f"not readable: {tally.unreadable} files", file=sys.stderr)


def _records(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of images; those with "video" are videos and cameras."""
    if args.dataset:
        return records_of(args)
    records: list[dict[str, Any]] = []
    for path in expand(["0"] if args.webcam else args.input):
        assert isinstance(path, str)
        is_moving = is_camera(path) or is_video(path)
        records.append({"file_name": path, "video": True} if is_moving else {"file_name": path})
    return records


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
        if is_camera(record["file_name"]):
            stem = f"camera_{stem}"
        extension = "mp4" if record.get("video") else "png"
        name, number = f"{stem}.{extension}", used.get(stem, 1)
        while name in names:
            number += 1
            name = f"{stem}_{number}.{extension}"
        used[stem] = number
        names[name] = None
    return list(names)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:  # such as weights that have to be fetched by hand
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells number it
