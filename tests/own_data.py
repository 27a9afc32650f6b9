"""The same three images in the layouts that people bring, written by hand."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

WIDTH, HEIGHT = 64, 48
# XYXY in pixels; the third image has no object.
OBJECTS: dict[str, list[tuple[str, list[int]]]] = {
    "a": [("dog", [8, 10, 40, 34]), ("cat", [44, 4, 60, 30])],
    "b": [("cat", [30, 16, 62, 46])],
    "c": [],
}
IDS = {"dog": 3, "cat": 7}  # of COCO's categories: with gaps, and not from 1
NAMES = ["dog", "cat"]  # in the order of these ids, and of data.yaml

Data = dict[str, Any]


def write_images(folder: Path, names: Sequence[str] = tuple(OBJECTS), suffix: str = ".jpg") -> None:
    """Images whose objects are filled boxes, a colour a class."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        for label, (x0, y0, x1, y1) in OBJECTS[name]:
            image[y0:y1, x0:x1] = (255, 0, 0) if label == "dog" else (0, 0, 255)
        cv2.imwrite(str(folder / f"{name}{suffix}"), image)


def coco_data() -> Data:
    """Content of a COCO file."""
    annotations = [
        {"image_id": i, "category_id": IDS[label], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, objects in enumerate(OBJECTS.values(), 10)
        for label, (x0, y0, x1, y1) in objects
    ]
    for number, annotation in enumerate(annotations, 1):
        box = annotation["bbox"]
        annotation |= {"id": number, "iscrowd": 0, "area": box[2] * box[3]}
    return {
        "images": [
            {"id": i, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
            for i, name in enumerate(OBJECTS, 10)
        ],
        "annotations": annotations,
        "categories": [{"id": IDS[name], "name": name} for name in ("cat", "dog")],
    }


def write_coco(folder: Path, data: Data | None = None) -> str:
    """`folder`/labels.json and `folder`/images; returns the entry, with absolute paths."""
    write_images(folder / "images")
    (folder / "labels.json").write_text(json.dumps(data or coco_data()))
    return f"coco:{folder}/labels.json:{folder}/images"


def write_voc(folder: Path, images: str = "", annotations: str = "", suffix: str = ".jpg") -> None:
    """XML as labelling tools write it: neither <pose> nor <truncated> nor <difficult>."""
    write_images(folder / images, suffix=suffix)
    (folder / annotations).mkdir(parents=True, exist_ok=True)
    for name, objects in OBJECTS.items():
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = f"{name}{suffix}"
        size = ET.SubElement(root, "size")
        ET.SubElement(size, "width").text = str(WIDTH)
        ET.SubElement(size, "height").text = str(HEIGHT)
        for label, (x0, y0, x1, y1) in objects:
            element = ET.SubElement(root, "object")
            ET.SubElement(element, "name").text = label
            box = ET.SubElement(element, "bndbox")
            # Pixels are counted from 1, and the last one belongs to the box.
            for key, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1), strict=True
            ):
                ET.SubElement(box, key).text = str(value)
        ET.ElementTree(root).write(folder / annotations / f"{name}.xml")


def yolo_line(label: str, box: Sequence[float]) -> str:
    """Class, centre and size, as shares of the image."""
    x0, y0, x1, y1 = box
    x, y, w, h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    return f"{NAMES.index(label)} {x / WIDTH} {y / HEIGHT} {w / WIDTH} {h / HEIGHT}"


def write_yolo(folder: Path, **changes: object) -> str:
    """`folder`/data.yaml, images/train, images/val and labels/ beside images/; returns the file."""
    for split in ("train", "val"):
        write_images(folder / "images" / split)
        (folder / "labels" / split).mkdir(parents=True)
        for name, objects in OBJECTS.items():
            if objects:  # some tools write an empty file for the others, some none
                lines = "\n".join(yolo_line(*x) for x in objects)
                (folder / "labels" / split / f"{name}.txt").write_text(lines + "\n")
    content = {"train": "images/train", "val": "images/val", "nc": 2, "names": NAMES, **changes}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "data.yaml")
