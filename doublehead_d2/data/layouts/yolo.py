"""YOLO's layout: a data.yaml, folders of images, and a text file of labels for each."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

from doublehead_d2.data import kinds
from doublehead_d2.data.findings import (
    Contents,
    FaultError,
    Findings,
    Use,
    are_coordinates,
    kind_of_box,
)
from doublehead_d2.data.image_files import THREADS, read_header
from doublehead_d2.data.layouts.dataset import OwnDataset
from doublehead_d2.data.layouts.image_folder import IMAGE_TYPES
from doublehead_d2.data.layouts.labelled import (
    LabelledImage,
    LabelledObject,
    as_records,
    describe,
)
from doublehead_d2.data.shapes.builtin import datasets_root

Record = dict[str, Any]

SPLITS = {
    "train": ("train",),
    "val": ("val", "valid"),
    "valid": ("val", "valid"),
    "test": ("test",),
}
SLACK = 0.01  # of the image, by which rounding lets a label leave it


class YoloDataset(OwnDataset):
    """A split of a data.yaml."""

    def __call__(self) -> list[Record]:
        """detectron2's records.

        Raises:
            ValueError: says what is wrong with which file.
        """
        findings = Findings(self.where)
        images, names, _ = self._read(findings)
        findings.refuse()
        return as_records(images, {name: i for i, name in enumerate(names)})

    def inspect(self, use: Use, findings: Findings) -> Contents:
        """Look at the labels of each image.

        Raises:
            ValueError: names the first faults: the file, its line and what is allowed.
        """
        images, names, notes = self._read(findings)
        for note in notes:
            findings.add(kinds.CONVERTED, note)
        contents = describe(images, names, use, findings)
        findings.refuse()
        return contents

    def metadata(self) -> dict[str, Any]:
        """The file and the split."""
        found: dict[str, Any] = {"data_file": self.entry.annotations, "split": self.entry.split}
        return found | ({"thing_classes": list(self.entry.classes)} if self.entry.classes else {})

    def required(self) -> list[tuple[str, bool]]:
        """The file; what it names is looked for when it is read."""
        return [(self.entry.annotations, False)]

    def _read(self, findings: Findings) -> tuple[list[LabelledImage], list[str], list[str]]:
        """Images, our classes, and notes; objects have our names."""
        data = self._data()
        theirs = self._class_names(data)
        names, numbers = self.number_classes(list(theirs.values()))
        self.keep_classes(names)
        paths = self._image_paths(data)
        with ThreadPoolExecutor(THREADS) as pool:
            headers = list(pool.map(read_header, paths))
        ours = {number: names[numbers[name]] for number, name in theirs.items()}
        images, without = [], 0
        for number, (path, header) in enumerate(zip(paths, headers, strict=True), 1):
            labels = _label_path(path)
            lines = _lines(labels, findings)
            without += lines is None
            objects = []
            for index, line in enumerate(lines or (), 1):
                if not line.split():
                    continue
                try:
                    objects.append(_read_label(line, ours, header.size_read))
                except FaultError as error:
                    findings.add(error.kind, f"'{labels}', line {index}: {error}")
            size = header.size_read if not header.error else (1, 1)  # the file is refused later
            images.append(LabelledImage(number, path, *size, objects))
        if paths and without == len(paths):
            findings.add(
                kinds.NOT_THE_LAYOUT,
                f"no image has a file of labels, for '{paths[0]}' it would be "
                f"'{_label_path(paths[0])}'; allowed: labels/ beside images/, or beside each "
                "image",
            )
        notes = [f"images without a file of labels, taken as without objects: {without:,}"]
        return images, names, notes if without else []

    def _data(self) -> dict[str, Any]:
        path = self.entry.annotations
        try:
            with open(path, encoding="utf-8") as f:
                data = yaml.safe_load(f)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())
            raise FaultError(kinds.BROKEN_FILE, f"'{path}' is no YAML: {text}") from None
        if not isinstance(data, dict):
            raise ValueError(f"'{path}' is no data.yaml; allowed: YAML with names, train and val")
        return data

    def _class_names(self, data: dict[str, Any]) -> dict[int, str]:
        """Names by the number that labels have for them, in the order of the numbers."""
        path, names = self.entry.annotations, data.get("names")
        if isinstance(names, list):
            names = dict(enumerate(names))
        whole = isinstance(names, dict) and all(type(key) is int for key in names)
        if not whole or not names:
            raise ValueError(
                f"'{path}' has names {data.get('names')!r:.80}; allowed: a list of names, or a "
                "mapping, number: name"
            )
        if data.get("nc", len(names)) != len(names):
            raise ValueError(
                f"'{path}' has nc {data['nc']!r} and {len(names)} names; allowed: as many"
            )
        found = {number: str(names[number]) for number in sorted(names)}
        if len(set(found.values())) < len(found):
            raise ValueError(f"'{path}' has the names {list(found.values())}; allowed: each once")
        return found

    def _image_paths(self, data: dict[str, Any]) -> list[str]:
        """The images of the split: of a folder, of several, or of a list in a file."""
        split = self.entry.split
        given = next((data[x] for x in SPLITS.get(split, (split,)) if data.get(x)), None)
        if given is None:
            there = [x for x in ("train", "val", "valid", "test") if data.get(x)]
            raise ValueError(
                f"{self.where}: it has no split {split!r}; allowed: {', '.join(map(repr, there))}"
            )
        paths = []
        for place in given if isinstance(given, list) else [given]:
            found = self._find(data, str(place))
            paths += _listed(found) if os.path.isfile(found) else _images_below(found)
        paths = list(dict.fromkeys(paths))
        if not paths:
            raise ValueError(
                f"{self.where}: its split {split!r}, {given!r}, has no image; allowed: images "
                f"{', '.join(IMAGE_TYPES)}"
            )
        return paths

    def _find(self, data: dict[str, Any], place: str) -> str:
        """A folder or file of data.yaml, which tools write relative to various places.

        Raises:
            ValueError: it is at none; names all that were looked at.
        """
        home = os.path.dirname(self.entry.annotations)
        root = os.path.expanduser(str(data.get("path") or ""))
        # Exports say ../train/images for what is beside the file.
        names = dict.fromkeys([place, place.replace("\\", "/").removeprefix("../")])
        places = [
            os.path.normpath(os.path.join(folder, name))
            for name in names
            for folder in (os.path.join(home, root), home, os.path.join(datasets_root(), root))
        ]
        for path in places:
            if os.path.exists(path):
                return path
        raise ValueError(
            f"{self.where}: {place!r} of its split {self.entry.split!r} is not there; looked at: "
            f"{', '.join(dict.fromkeys(places))}"
        )


def _images_below(folder: str) -> list[str]:
    found = []
    for root, _, names in os.walk(folder):
        found += [os.path.join(root, x) for x in names if x.lower().endswith(IMAGE_TYPES)]
    return sorted(found)


def _listed(path: str) -> list[str]:
    """The images that a file lists, relative to its folder."""
    with open(path, encoding="utf-8") as f:
        lines = [line.strip() for line in f if line.strip()]
    return [os.path.normpath(os.path.join(os.path.dirname(path), line)) for line in lines]


def _label_path(image: str) -> str:
    """labels/ in place of the last images/, or, without one or that file, beside the image."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            path = os.sep.join([*parts[:index], "labels", *parts[index + 1 :]]) + ".txt"
            beside = f"{stem}.txt"
            return beside if os.path.isfile(beside) and not os.path.isfile(path) else path
    return f"{stem}.txt"


def _lines(path: str, findings: Findings) -> list[str] | None:
    """The lines of a file of labels; None where there is none."""
    try:
        with open(path, encoding="utf-8") as f:
            return f.read().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        findings.add(kinds.BROKEN_FILE, f"'{path}': {error}")
        return []


def _read_label(line: str, names: dict[int, str], size: Sequence[int]) -> LabelledObject:
    """An object: its class, then centre, width and height, or an outline, as shares of the image.

    Raises:
        ValueError: says what is wrong with it.
    """
    words = line.split()
    try:
        number, numbers = float(words[0]), [float(x) for x in words[1:]]
    except ValueError:
        raise FaultError(kinds.NO_BOX, f"{line!r:.80} has other words than numbers") from None
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise FaultError(
            kinds.NO_BOX,
            f"{len(words)} numbers; allowed: class, x, y, width, height, or class and an outline, "
            "x y of three points or more",
        )
    if number not in names:
        known = ", ".join(map(str, list(names)[:20]))
        raise FaultError(
            kinds.UNKNOWN_CATEGORY, f"class {words[0]}; allowed: the numbers of `names`, {known}"
        )
    if not are_coordinates(numbers) or not all(-SLACK <= x <= 1 + SLACK for x in numbers):
        raise FaultError(
            kind_of_box(numbers), f"{line!r:.80}; allowed: shares of the image, 0 to 1"
        )
    width, height = size
    name = names[int(number)]
    if len(numbers) == 4:
        x, y, w, h = numbers
        edges = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        return LabelledObject(name, list(edges))
    xs, ys = [x * width for x in numbers[::2]], [y * height for y in numbers[1::2]]
    outline = [value for point in zip(xs, ys, strict=True) for value in point]
    return LabelledObject(name, [min(xs), min(ys), max(xs), max(ys)], [outline])
