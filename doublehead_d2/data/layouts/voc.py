"""Pascal VOC's XML, with or without ImageSets, also as labelling tools write it."""

import os
import xml.etree.ElementTree as ET
from typing import Any

from doublehead_d2.data import kinds
from doublehead_d2.data.findings import (
    COORDINATES,
    Contents,
    FaultError,
    Findings,
    Use,
    are_coordinates,
    kind_of_box,
)
from doublehead_d2.data.image_files import read_header
from doublehead_d2.data.layouts.dataset import OwnDataset
from doublehead_d2.data.layouts.image_folder import IMAGE_TYPES, find_image, list_images
from doublehead_d2.data.layouts.labelled import (
    LabelledImage,
    LabelledObject,
    as_records,
    describe,
)
from doublehead_d2.data.voc_files import CORNERS, UNSEEN

Record = dict[str, Any]

ANNOTATION_FOLDERS = ("Annotations", "annotations", "labels", "xmls", "")  # "": beside the images
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "")
LISTS = os.path.join("ImageSets", "Main")
YES, NO = ("1", "true", "yes"), ("", "0", "false", "no", "unspecified")


class VocDataset(OwnDataset):
    """A data set of an XML file an image."""

    def __call__(self) -> list[Record]:
        """detectron2's records; of VOC's own folders those of `load_voc_instances`.

        Raises:
            ValueError: says what is wrong with which file.
        """
        findings = Findings(self.where)
        images, numbers, _ = self._read(findings)
        findings.refuse()
        return as_records(images, numbers)

    def inspect(self, use: Use, findings: Findings) -> Contents:
        """Look at the annotation of each image.

        Raises:
            ValueError: names the first faults: the file, its value and what is allowed.
        """
        images, numbers, notes = self._read(findings)
        for note in notes:
            findings.add(kinds.CONVERTED, note)
        names = self._names(numbers)
        contents = describe(images, names, use, findings)
        if use.evaluation == "pascal_voc":
            seen = {numbers[x.name] for i in images for x in i.objects if not x.is_difficult}
            unseen = [name for index, name in enumerate(names) if index not in seen]
            if seen and unseen:
                findings.add(
                    kinds.CLASS_NOT_SCORED,
                    f"it has no object of {unseen}: VOC's metric gives each of them AP "
                    f"{UNSEEN[self.entry.year]}, and that goes into the mean",
                )
            if slash := [name for name in names if "/" in name]:
                findings.add(
                    kinds.OTHER_CLASSES,
                    f"it has the class {slash[0]!r}, and VOC's metric writes a file of that name; "
                    "allowed: names without '/', or `evaluator: coco` in its entry",
                )
        findings.refuse()
        return contents

    def write_voc(self, folder: str) -> None:
        """Write what VOC's metric reads: a list and an XML file an image, as VOC has them.

        Args:
            folder: where "images.txt" and "Annotations" are made.

        Raises:
            ValueError: as calling it.
        """
        findings = Findings(self.where)
        images, numbers, _ = self._read(findings)
        findings.refuse()
        names = self._names(numbers)
        os.makedirs(os.path.join(folder, "Annotations"))
        for image in images:
            root = ET.Element("annotation")
            for labelled in image.objects:
                element = ET.SubElement(root, "object")
                fields = {"name": names[numbers[labelled.name]], "pose": "Unspecified"}
                fields |= {"truncated": "0", "difficult": str(int(labelled.is_difficult))}
                for key, text in fields.items():
                    ET.SubElement(element, key).text = text
                x0, y0, x1, y1 = labelled.box
                box = ET.SubElement(element, "bndbox")
                # The metric reads whole numbers of pixels, counted from 1.
                for corner, value in zip(CORNERS, (x0 + 1, y0 + 1, x1, y1), strict=True):
                    ET.SubElement(box, corner).text = str(round(value))
            path = os.path.join(folder, "Annotations", f"{image.image_id}.xml")
            ET.ElementTree(root).write(path, encoding="utf-8")
        with open(os.path.join(folder, "images.txt"), "w") as f:
            f.writelines(f"{image.image_id}\n" for image in images)

    def metadata(self) -> dict[str, Any]:
        """As `register_pascal_voc` sets it."""
        entry = self.entry
        found: dict[str, Any] = {"dirname": entry.folder, "split": entry.split, "year": entry.year}
        return found | ({"thing_classes": list(entry.classes)} if entry.classes else {})

    def required(self) -> list[tuple[str, bool]]:
        """The folder."""
        return [(self.entry.folder, True)]

    def _read(self, findings: Findings) -> tuple[list[LabelledImage], dict[str, int], list[str]]:
        """Images, the index of each class by its name in the data, and notes."""
        root, files, is_all = self._files(findings)
        names, numbers = self.number_classes(self._found_names(findings))
        self.keep_classes(names)
        folders = [os.path.join(root, x) for x in IMAGE_FOLDERS]
        known = list_images(
            dict.fromkeys([*folders, *(os.path.dirname(x) for x in files.values())])
        )
        spaces = any(len(image_id.split()) != 1 for image_id in files)
        images, measured = [], 0
        for number, (image_id, path) in enumerate(files.items(), 1):
            try:
                tree = _parse(path)
                image = find_image(
                    known, image_id, os.path.basename(tree.findtext("filename") or "")
                )
                image = image or os.path.join(folders[0], f"{image_id}.jpg")
                size, is_stated = _size(tree, image)
                objects = [_read_object(x) for x in tree.iterfind("object")]
                if strange := [x.name for x in objects if x.name not in numbers]:
                    raise FaultError(
                        kinds.UNKNOWN_CATEGORY,
                        f"an object is of class {strange[0]!r}; allowed: {names}",
                    )
            except OSError as error:
                findings.add(kinds.BROKEN_FILE, f"'{path}': {error.strerror}")
                continue
            except (ET.ParseError, ValueError) as error:  # of the encoding, too
                kind = error.kind if isinstance(error, FaultError) else kinds.BROKEN_FILE
                findings.add(kind, f"'{path}': {error}")
                continue
            measured += not is_stated
            # The evaluator writes lines of words, the image the first of them.
            key = f"{number:06}" if spaces else image_id
            images.append(LabelledImage(key, image, *size, objects))
        if not files:
            findings.add(
                kinds.NOT_THE_LAYOUT,
                f"there is no XML file of an image in '{root}'; allowed: one or more",
            )
        notes = []
        if measured:
            notes.append(f"images without <size>, which was read from the files: {measured:,}")
        every = {path for paths in known.values() for path in paths}
        if is_all and (bare := every - {image.path for image in images}):
            notes.append(
                f"images without an XML file, which are left out: {len(bare):,}, the first is "
                f"'{min(bare)}'"
            )
        return images, numbers, notes

    def _names(self, numbers: dict[str, int]) -> list[str]:
        return self.number_classes(list(numbers))[0]

    def _files(self, findings: Findings) -> tuple[str, dict[str, str], bool]:
        """The folder, the XML files by image, and whether they are all that it has."""
        folder, split = self.entry.folder, self.entry.split
        names = os.path.join(folder, LISTS, f"{split}.txt")
        if split and os.path.isfile(names):
            with open(names) as f:
                ids = [line.strip() for line in f if line.strip()]
            for line in ids:
                if len(line.split()) == 2 and line.split()[1] in ("1", "0", "-1"):
                    findings.add(
                        kinds.NOT_THE_LAYOUT,
                        f"'{names}' has the line {line!r}, as the lists of a single class do; "
                        "allowed: the name of an image alone",
                    )
            findings.refuse()
            ids = [_stem(x) if x.lower().endswith(IMAGE_TYPES) else x for x in ids]
            annotations = _annotation_folder(folder)
            return folder, {x: os.path.join(annotations, f"{x}.xml") for x in ids}, False
        root = os.path.join(folder, split)
        if not os.path.isdir(root):
            raise ValueError(
                f"{self.where}: there is no split {split!r}, neither the list '{names}' nor the "
                f"folder '{root}'; allowed: {self._splits()}"
            )
        annotations = _annotation_folder(root)
        stems = sorted(_stem(x) for x in os.listdir(annotations) if x.lower().endswith(".xml"))
        files = {x: os.path.join(annotations, f"{x}.xml") for x in stems}
        return root, files, True

    def _splits(self) -> str:
        """What could stand for the split."""
        folder = self.entry.folder
        lists = os.path.join(folder, LISTS)
        found = [_stem(x) for x in _listed(lists) if x.endswith(".txt")]
        reserved = {*ANNOTATION_FOLDERS, *IMAGE_FOLDERS, "ImageSets"}
        found += [
            x for x in _listed(folder) if x not in reserved and os.path.isdir(f"{folder}/{x}")
        ]
        return f"{', '.join(map(repr, sorted(found)))}, or none, for all of the folder"

    def _found_names(self, findings: Findings) -> list[str]:
        """The names of classes in all XML files of the folder, sorted.

        Of all, so that its splits have the same classes, whichever objects are in them.
        """
        found = set()
        for root, _, names in os.walk(self.entry.folder):
            for name in names:
                if name.lower().endswith(".xml"):
                    try:
                        tree = _parse(os.path.join(root, name))
                    except (OSError, ET.ParseError, ValueError):
                        continue  # if it is in the split, it is found there, too
                    found |= {
                        x.strip() for e in tree.iterfind("object") if (x := e.findtext("name"))
                    }
        return sorted(found)


def _parse(path: str) -> ET.Element:
    with open(path, "rb") as f:
        return ET.parse(f).getroot()


def _annotation_folder(root: str) -> str:
    """The folder of the XML files: the first of the usual ones that is there."""
    for name in ANNOTATION_FOLDERS:
        folder = os.path.join(root, name) if name else root
        if any(x.lower().endswith(".xml") for x in _listed(folder)):
            return folder
    usual = os.path.join(root, ANNOTATION_FOLDERS[0])
    return usual if os.path.isdir(usual) else root


def _listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _size(tree: ET.Element, image: str) -> tuple[tuple[int, int], bool]:
    """(width, height) and whether the file states them; some tools write none, or 0."""
    texts = [tree.findtext(f"size/{side}") or "0" for side in ("width", "height")]
    try:
        width, height = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        raise FaultError(
            kinds.NO_IMAGE_SIZE, f"<size> is {' x '.join(texts)}; allowed: whole numbers"
        ) from None
    if width > 0 and height > 0:
        return (width, height), True
    return read_header(image).size_read, False


def _read_object(element: ET.Element) -> LabelledObject:
    """An object as its element describes it.

    Raises:
        ValueError: says what is wrong with it.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise FaultError(kinds.BROKEN_RECORD, "an object has no <name>")
    texts = [element.findtext(f"bndbox/{corner}") for corner in CORNERS]
    try:
        x0, y0, x1, y1 = (float(text or "") for text in texts)
    except ValueError:
        raise FaultError(
            kinds.NO_BOX, f"an object has the box {texts}; allowed: {COORDINATES}"
        ) from None
    if not are_coordinates((x0, y0, x1, y1)):
        raise FaultError(
            kind_of_box((x0, y0, x1, y1)),
            f"an object has the box {texts}; allowed: {COORDINATES}",
        )
    difficult = (element.findtext("difficult") or "").strip().lower()
    if difficult not in YES + NO:
        raise FaultError(
            kinds.BROKEN_RECORD, f"an object has <difficult> {difficult!r}; allowed: 0 and 1"
        )
    # Pixels are counted from 1, and the last one belongs to the box.
    return LabelledObject(name, [x0 - 1, y0 - 1, x1, y1], is_difficult=difficult in YES)
