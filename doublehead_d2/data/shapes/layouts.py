"""Write the shapes data set to disk, the same images in COCO's and in Pascal VOC's layout.

<root>/coco/{train,val}/<split>_000001.jpg
<root>/coco/annotations/instances_{train,val}.json
<root>/voc/{Annotations,JPEGImages}/<split>_000001.{xml,jpg}
<root>/voc/ImageSets/Main/{trainval,test}.txt
<root>/shapes.json                 the parameters; its presence marks the folder as ours
"""

import json
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from doublehead_d2.data.shapes.colors import COLORS_SHAPES_CLASSES, draw_colors_image
from doublehead_d2.data.shapes.easy import SHAPES_CLASSES, Shape, draw_image
from doublehead_d2.data.shapes.hard import HARD_SHAPES_CLASSES, draw_hard_image

# To be raised when the same parameters give other files than before.
FORMAT = 1
JPEG_QUALITY = 95
SPLITS = ("train", "val")
VOC_SPLITS = {"train": "trainval", "val": "test"}
MIN_IMAGES = 2
PARAMETERS_FILE = "shapes.json"


@dataclass(frozen=True)
class ShapesKind:
    """What the kinds of shapes data differ in.

    Args:
        classes: names in the order of `Shape.category`.
        draw: draws an image, H x W x 3 BGR uint8, and its objects from a random generator.
        num_val: validation images, if no other number is asked for.
        mark: what the parameters file says of the kind beyond its numbers; its keys are options
            of tools.make_shapes.
    """

    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator], tuple[np.ndarray, tuple[Shape, ...]]]
    num_val: int
    mark: Mapping[str, bool] = field(default_factory=dict)  # empty before there was a second kind


# By the name of the folder and of the registered data sets
KINDS = {
    "shapes": ShapesKind(SHAPES_CLASSES, draw_image, 400),
    "shapes_hard": ShapesKind(HARD_SHAPES_CLASSES, draw_hard_image, 500, {"hard": True}),
    "shapes_colors": ShapesKind(COLORS_SHAPES_CLASSES, draw_colors_image, 400, {"colors": True}),
}


def kind_named(name: str) -> ShapesKind:
    """One of `KINDS`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {name!r}.")
    return KINDS[name]


@dataclass(frozen=True)
class Picture:
    """One image of a split and its ground truth.

    Args:
        number: counts from 1 within the split.
        stem: file name without extension, different for every image of the data set.
        jpeg: the encoded image.
        height: in pixels.
        width: in pixels.
        shapes: the objects.
    """

    number: int
    stem: str
    jpeg: bytes
    height: int
    width: int
    shapes: tuple[Shape, ...]


def write_shapes(
    root: str | os.PathLike[str],
    *,
    num_train: int = 2000,
    num_val: int | None = None,
    seed: int = 0,
    kind: str = "shapes",
    force: bool = False,
) -> bool:
    """Write the data set into the folder `root`, which appears only when it is complete.

    Args:
        root: folder to make. One that holds the data set with the same parameters is left alone.
        num_train: training images.
        num_val: validation images, by default those of the kind; the test images of the VOC layout.
        seed: an image depends on this, its split and its number, not on how many there are.
        kind: one of `KINDS`.
        force: replace a data set that is there. Other folders are never replaced.

    Returns:
        True if it was written, False if it was there already.

    Raises:
        ValueError: a count or the seed is too small, or there is no such kind.
        FileExistsError: `root` holds something else, or the data set with other parameters.
    """
    chosen = kind_named(kind)
    num_val = chosen.num_val if num_val is None else num_val
    wanted = {**_parameters(num_train, num_val, seed), **chosen.mark}
    root = Path(root).expanduser().resolve()  # a link to the data set stays a link
    if _is_there(root, wanted, force):
        return False

    root.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that renaming moves no data.
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.partial-", dir=root.parent) as work:
        new = Path(work) / "new"  # has the usual permissions, which `work` has not
        new.mkdir()
        for split, count in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(new, chosen, split, count, seed)
        _write_json(new / PARAMETERS_FILE, wanted)
        if force and root.exists():
            root.rename(Path(work) / "old")
        try:
            new.rename(root)  # an empty folder gives way, a full one does not
        except OSError:
            # Another process may have been faster; if it wrote the same, all is well.
            if not _is_there(root, wanted, force=False):
                raise
            return False
    return True


def _parameters(num_train: int, num_val: int, seed: int) -> dict[str, int]:
    """Content of the parameters file, but for the mark of the kind."""
    if min(num_train, num_val) < MIN_IMAGES:
        # detectron2 cannot read a VOC list with a single line.
        raise ValueError(
            f"num_train and num_val must be at least {MIN_IMAGES}, got {num_train} and {num_val}."
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    return {"format": FORMAT, "num_train": num_train, "num_val": num_val, "seed": seed}


def _is_there(root: Path, wanted: dict[str, int], force: bool) -> bool:
    """Whether `root` holds the wanted data set; raises if it holds anything that must stay."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / PARAMETERS_FILE).is_file():
        raise FileExistsError(
            f"{root} exists and is not a shapes data set (it has no {PARAMETERS_FILE}); "
            "choose another folder, or move this one away."
        )
    if force:
        return False
    found = json.loads((root / PARAMETERS_FILE).read_text(encoding="utf-8"))
    if found != wanted:
        raise FileExistsError(
            f"{root} holds a shapes data set with {_listing(found)}, but {_listing(wanted)} was "
            "asked for; choose another folder, or replace it with force=True (--force)."
        )
    missing = _first_missing(root, wanted)
    if missing is not None:
        raise FileExistsError(
            f"{root} holds a shapes data set from which {missing} is missing; "
            "replace it with force=True (--force)."
        )
    return True


def _listing(parameters: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in parameters.items())


def _first_missing(root: Path, parameters: dict[str, int]) -> str | None:
    """The first file that somebody has deleted since, relative to `root`."""
    for split in SPLITS:
        stems = [_stem(split, number + 1) for number in range(parameters[f"num_{split}"])]
        names = [f"coco/annotations/instances_{split}.json"]
        names += [f"voc/ImageSets/Main/{VOC_SPLITS[split]}.txt"]
        names += [f"coco/{split}/{stem}.jpg" for stem in stems]
        names += [f"voc/JPEGImages/{stem}.jpg" for stem in stems]
        names += [f"voc/Annotations/{stem}.xml" for stem in stems]
        for name in names:
            if not (root / name).is_file():
                return name
    return None


def _stem(split: str, number: int) -> str:
    return f"{split}_{number:06d}"


def _pictures(kind: ShapesKind, split: str, count: int, seed: int) -> Iterator[Picture]:
    """Draw the images of a split."""
    for index in range(count):
        # A generator of its own: an image stays the same however many come before it.
        image, shapes = kind.draw(np.random.default_rng((seed, SPLITS.index(split), index)))
        encoded, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert encoded, "OpenCV could not encode a JPEG"
        height, width = image.shape[:2]
        number = index + 1
        yield Picture(number, _stem(split, number), jpeg.tobytes(), height, width, shapes)


def _write_split(root: Path, kind: ShapesKind, split: str, count: int, seed: int) -> None:
    """Write the images of a split and their ground truth in both layouts."""
    coco, voc = root / "coco", root / "voc"
    folders = [coco / split, coco / "annotations", voc / "ImageSets" / "Main"]
    for folder in [*folders, voc / "JPEGImages", voc / "Annotations"]:
        folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for picture in _pictures(kind, split, count, seed):
        (coco / split / f"{picture.stem}.jpg").write_bytes(picture.jpeg)
        (voc / "JPEGImages" / f"{picture.stem}.jpg").write_bytes(picture.jpeg)
        tree = voc_tree(picture, kind.classes)
        tree.write(voc / "Annotations" / f"{picture.stem}.xml", encoding="utf-8")
        pictures.append(picture)
    _write_json(coco / "annotations" / f"instances_{split}.json", coco_dict(pictures, kind.classes))
    lines = "".join(f"{picture.stem}\n" for picture in pictures)
    (voc / "ImageSets" / "Main" / f"{VOC_SPLITS[split]}.txt").write_text(lines, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def coco_dict(
    pictures: Sequence[Picture], classes: Sequence[str] = SHAPES_CLASSES
) -> dict[str, Any]:
    """Content of a COCO annotation file: boxes XYWH, areas of the outlines."""
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        for shape in picture.shapes:
            x0, y0, x1, y1 = shape.box
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes id 0 for "no match"
                    "image_id": picture.number,
                    "category_id": shape.category + 1,
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": round(shape.area, 2),
                    "iscrowd": 0,
                    "segmentation": [shape.outline.ravel().tolist()],
                }
            )
    return {
        # pycocotools 2.0.10 cannot load results without this entry.
        "info": {"description": "built-in shapes data set of doublehead_d2"},
        "licenses": [],
        "images": [
            {"id": p.number, "file_name": f"{p.stem}.jpg", "height": p.height, "width": p.width}
            for p in pictures
        ],
        "annotations": annotations,
        "categories": [
            {"id": index + 1, "name": name, "supercategory": "shape"}
            for index, name in enumerate(classes)
        ],
    }


def voc_tree(picture: Picture, classes: Sequence[str] = SHAPES_CLASSES) -> ET.ElementTree:
    """Build the VOC annotation of an image.

    Boxes are 1-based inclusive pixel numbers. A pixel column belongs to a box when at least half
    of it is inside, so that they are on average as large as the boxes of the COCO layout.
    """
    root = ET.Element("annotation")
    _add(root, folder="voc", filename=f"{picture.stem}.jpg")
    size = ET.SubElement(root, "size")
    _add(size, width=picture.width, height=picture.height, depth=3)
    _add(root, segmented=0)
    for shape in picture.shapes:
        element = ET.SubElement(root, "object")
        name, truncated = classes[shape.category], int(shape.truncated)
        _add(element, name=name, pose="Unspecified", truncated=truncated, difficult=0)
        x0, y0, x1, y1 = (round(value) for value in shape.box)
        # The last pixel inside the edge x1 has the 0-based number x1 - 1, hence no + 1 there.
        _add(ET.SubElement(element, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    ET.indent(root)
    return ET.ElementTree(root)


def _add(parent: ET.Element, **fields: str | int) -> None:
    """Append one element with a text per field, in order."""
    for name, value in fields.items():
        ET.SubElement(parent, name).text = str(value)
