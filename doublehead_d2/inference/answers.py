"""Files of detections that grow image by image: whole at any time, whatever comes after."""

import contextlib
import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from detectron2.structures import Instances

from doublehead_d2.files import growing_json
from doublehead_d2.inference.results import BOX, Result

COLUMNS = ("source", "frame", "class_id", "class", "score", *BOX)


class AnswerFiles(contextlib.ExitStack):
    """`detections.json` of what is shown, and on demand COCO results and a table."""

    def __init__(self, folder: str, coco: str | None = None, table: str | None = None) -> None:
        """
        Args:
            folder: that `detections.json` is written to; made if it is not there.
            coco: a JSON file for all detections in COCO's format for results.
            table: a CSV file for the detections that are shown.

        Raises:
            OSError: a file that cannot be written.
        """
        super().__init__()
        os.makedirs(folder, exist_ok=True)
        self._entry = self._growing(os.path.join(folder, "detections.json"))
        self._coco = None if coco is None else self._growing(coco)
        self._table = None if table is None else self.enter_context(_growing_table(table))

    def add(
        self,
        result: Result,
        shown: Instances,
        image_id: Any,
        picture: str,
        frame: int | None = None,
    ) -> None:
        """Write down what is detected in an image.

        Args:
            result: of all detections; its `source` is the file that is written.
            shown: those of them that are shown.
            image_id: for the COCO results.
            picture: file name of the picture.
            frame: number of the frame in a video, from 0.
        """
        rows = replace(result, instances=shown).rows()
        entry: dict[str, Any] = {"file_name": result.source, "picture": picture}
        if frame is not None:
            entry["frame"] = frame
        if self._coco is not None:
            entry["image_id"] = image_id
        entry |= {"height": result.height, "width": result.width}
        entry["detections"] = [
            {
                "box": [row[name] for name in BOX],
                **{name: row[name] for name in ("score", "class_id", "class")},
            }
            for row in rows
        ]
        self._entry(entry)
        if self._coco is not None:
            for detection in result.to_coco(image_id):
                self._coco(detection)
        if self._table is not None:
            self._table([{**row, "frame": frame} for row in rows])

    def _growing(self, path: str) -> Callable[[Any], None]:
        return self.enter_context(growing_json(path))


@contextlib.contextmanager
def _growing_table(path: str) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Write a CSV file, whose rows are there as soon as they are given."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()

        def append(rows: list[dict[str, Any]]) -> None:
            writer.writerows(rows)
            file.flush()

        yield append
