"""What is found in the data of a run before the run: refused, noted, or rightly accepted."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from PIL import Image

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.data import image_files, write_shapes
from doublehead_d2.engine import Trainer, argument_parser, check_run, complete_config, launch, setup

CLASSES = ["circle", "rectangle", "triangle"]
OTHER_ORDER = ["rectangle", "triangle", "circle"]
Data = dict[str, Any]
Edit = Callable[[Data], object]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to train on and four to test with, in both layouts."""
    root = tmp_path_factory.mktemp("small") / "shapes"
    write_shapes(root, num_train=6, num_val=4)
    return root


class Place:
    """Makes and registers changed copies of the small data."""

    def __init__(self, small: Path, folder: Path) -> None:
        self.small, self.folder = small, folder
        self.count = 0

    def coco(self, split: str, edit: Edit | None = None, images: Path | None = None) -> str:
        """The name of a data set in COCO's format whose content `edit` has changed."""
        data = json.loads((self.small / f"coco/annotations/instances_{split}.json").read_text())
        if edit:
            edit(data)
        return self.coco_text(split, json.dumps(data), images)

    def coco_text(self, split: str, text: str, images: Path | None = None) -> str:
        self.count += 1
        name = f"test_{split}_{self.count}"
        path = self.folder / f"{name}.json"
        path.write_text(text)
        register_coco_instances(name, {}, str(path), str(images or self.images(split)))
        return name

    def images(self, split: str) -> Path:
        return self.small / "coco" / split

    def changed_images(self, edit: Callable[[Path], object]) -> Path:
        """A copy of the training images, the first of which `edit` has changed."""
        folder = self.folder / "images"
        shutil.copytree(self.images("train"), folder)
        edit(folder / "train_000001.jpg")
        return folder

    def voc(
        self,
        edit: Callable[[Path], object] = lambda folder: None,
        classes: list[str] = CLASSES,
        year: int = 2007,
    ) -> tuple[str, str]:
        """Names of a training and a test set in VOC's layout, whose folder `edit` has changed."""
        self.count += 1
        folder = self.folder / f"voc_{self.count}"
        shutil.copytree(self.small / "voc", folder)
        edit(folder)
        names = []
        for split in ("trainval", "test"):
            names.append(f"test_voc_{self.count}_{split}")
            register_pascal_voc(names[-1], str(folder), split, year, classes)
            MetadataCatalog.get(names[-1]).evaluator_type = "pascal_voc"
        return names[0], names[1]


@pytest.fixture
def place(small: Path, tmp_path: Path, catalogs: None) -> Iterator[Place]:
    yield Place(small, tmp_path)


def cfg_for(place: Place, train: Any, test: Any, *opts: object) -> CfgNode:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.DATASETS.TRAIN = (train,) if isinstance(train, str) else tuple(train)
    cfg.DATASETS.TEST = (test,) if isinstance(test, str) else tuple(test)
    cfg.OUTPUT_DIR = str(place.folder / "output")
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(opts))
    return cfg


def notes_of(place: Place, train: Any, test: Any, *opts: object, **more: bool) -> str:
    return "\n".join(check_run(cfg_for(place, train, test, *opts), **more))


def refusal(place: Place, train: Any, test: Any, *opts: object, **more: bool) -> str:
    with pytest.raises(ValueError) as error:
        check_run(cfg_for(place, train, test, *opts), **more)
    return str(error.value)


def set_in(key: str, field: str, value: object, index: int = 0) -> Edit:
    return lambda data: data[key][index].update({field: value})


def without(key: str, field: str, index: int = 0) -> Edit:
    return lambda data: data[key][index].pop(field)


def other_order(data: Data) -> None:
    """The same classes under other ids."""
    ids = {1: 3, 2: 1, 3: 2}
    for category in data["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in data["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]


# -- classes -------------------------------------------------------------------------------------


def test_what_is_right_is_accepted_without_a_word(place: Place) -> None:
    assert notes_of(place, place.coco("train"), place.coco("val")) == ""
    assert notes_of(place, *place.voc()) == ""
    assert notes_of(place, place.coco("train"), place.voc()[1]) == ""
    assert notes_of(place, place.coco("train"), ()) == ""


def test_another_order_of_classes_in_the_test_set_is_refused(place: Place) -> None:
    train, test = place.coco("train"), place.coco("val", other_order)
    message = refusal(place, train, test)
    assert f"DATASETS.TEST '{test}' has the classes {OTHER_ORDER}" in message
    assert f"DATASETS.TRAIN '{train}' has {CLASSES}: the order differs" in message
    assert not (place.folder / "output").exists()
    # Both in the other order are as good as both in the first.
    assert notes_of(place, place.coco("train", other_order), test) == ""


def test_order_is_compared_across_layouts(place: Place) -> None:
    voc = place.voc(classes=OTHER_ORDER)
    assert "the order differs" in refusal(place, place.coco("train"), voc[1])
    assert "the order differs" in refusal(place, voc[0], place.coco("val"))


def test_order_is_that_of_ids_not_of_the_list(place: Place) -> None:
    assert notes_of(place, place.coco("train", lambda d: d["categories"].reverse()), ()) == ""


def test_other_names_at_the_same_places_are_noted(place: Place) -> None:
    train, test = place.coco("train"), place.coco("val", set_in("categories", "name", "disc"))
    notes = notes_of(place, train, test)
    assert f"{['disc', *CLASSES[1:]]}" in notes and f"{CLASSES}" in notes
    assert "taken as the same" in notes


def test_a_shifted_name_is_another_order(place: Place) -> None:
    def rename(data: Data) -> None:
        for category, name in zip(data["categories"], ["disc", "circle", "triangle"], strict=True):
            category["name"] = name

    assert "the order differs" in refusal(place, place.coco("train"), place.coco("val", rename))


def test_number_of_classes_is_checked_everywhere(place: Place) -> None:
    def four(data: Data) -> None:
        data["categories"].append({"id": 4, "name": "star"})

    more = place.coco("val", four)
    expected = f"NUM_CLASSES is 3, but data set '{more}' has 4 classes: circle, rectangle, triang"
    assert expected in refusal(place, place.coco("train"), more)
    assert expected in refusal(place, place.coco("train"), more, eval_only=True)
    train = place.coco("train")
    expected = f"NUM_CLASSES is 80, but data set '{train}' has 3 classes: circle, rectangle, tri"
    assert expected in refusal(place, train, (), "MODEL.ROI_HEADS.NUM_CLASSES", 80)


def test_training_sets_have_the_same_names(place: Place) -> None:
    first, second = place.coco("train"), place.coco("val", set_in("categories", "name", "disc"))
    assert "Allowed in DATASETS.TRAIN: the same names" in refusal(place, (first, second), ())
    assert "the order differs" in refusal(place, (first, place.coco("val", other_order)), ())


def evaluation_cfg(place: Place, test: str, **datasets: object) -> CfgNode:
    """An evaluation of weights beside which a config lies whose classes are `CLASSES`."""
    folder = place.folder / "trained"
    folder.mkdir(exist_ok=True)
    (folder / "model_final.pth").touch()
    own = cfg_for(place, (), (), "DATASETS.CLASS_NAMES", CLASSES)
    (folder / "config.yaml").write_text(own.dump())
    return cfg_for(place, (), test, "MODEL.WEIGHTS", str(folder / "model_final.pth"))


def test_evaluation_compares_with_the_class_names_of_the_config(place: Place) -> None:
    cfg = cfg_for(place, (), place.coco("val", other_order), "DATASETS.CLASS_NAMES", CLASSES)
    with pytest.raises(ValueError, match="DATASETS.CLASS_NAMES has .*: the order differs") as error:
        check_run(cfg, eval_only=True)
    assert f"{CLASSES}" in str(error.value) and f"{OTHER_ORDER}" in str(error.value)
    cfg.DATASETS.TEST = (place.coco("val"),)
    assert check_run(cfg, eval_only=True) == []


def test_evaluation_compares_with_the_config_beside_the_weights(place: Place) -> None:
    cfg = evaluation_cfg(place, place.coco("val", other_order))
    with pytest.raises(ValueError, match=r"own config \('.*trained/config.yaml'\) has .*order dif"):
        check_run(cfg, eval_only=True)
    assert check_run(evaluation_cfg(place, place.coco("val")), eval_only=True) == []


@pytest.mark.parametrize("content", ["", "[1, 2]", "DATASETS: {}", "DATASETS: 3", "a: [", "!!x y"])
def test_configs_of_others_beside_the_weights_say_nothing(place: Place, content: str) -> None:
    cfg = evaluation_cfg(place, place.coco("val", other_order))
    (place.folder / "trained" / "config.yaml").write_text(content)
    assert check_run(cfg, eval_only=True) == []


def test_a_training_may_start_from_weights_of_other_classes(place: Place) -> None:
    cfg = evaluation_cfg(place, "")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (place.coco("train", other_order),), ()
    cfg.DATASETS.CLASS_NAMES = CLASSES  # of the training before
    assert check_run(cfg) == []


def test_a_resumed_training_goes_on_with_its_classes(place: Place) -> None:
    cfg = evaluation_cfg(place, "")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (place.coco("train", other_order),), ()
    cfg.OUTPUT_DIR = str(place.folder / "trained")
    assert check_run(cfg, resume=True) == []  # there is nothing to resume
    (place.folder / "trained" / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(ValueError, match="own config .* the order differs"):
        check_run(cfg, resume=True)
    assert check_run(cfg) == []


def test_registered_names_that_the_file_contradicts(place: Place) -> None:
    train = place.coco("train")
    MetadataCatalog.get(train).thing_classes = OTHER_ORDER
    message = refusal(place, train, ())
    assert f"are {CLASSES}, and it is registered with {OTHER_ORDER}" in message
    test = place.coco("val")
    MetadataCatalog.get(test).thing_dataset_id_to_contiguous_id = {1: 0, 2: 1, 7: 2}
    assert "categories are [1, 2, 3], and it is registered with the ids [1, 2, 7]" in refusal(
        place, (), test, eval_only=True
    )


def test_names_are_known_after_the_check(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = cfg_for(place, place.coco("train"), place.coco("val"))
    check_run(cfg)
    monkeypatch.setattr(type(DatasetCatalog), "get", None)  # nothing is loaded for them
    assert complete_config(cfg).DATASETS.CLASS_NAMES == CLASSES


# -- COCO files ----------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
MASKS = ["MODEL.MASK_ON", True]
KEYPOINTS = ["MODEL.KEYPOINT_ON", True]


def no_annotations(data: Data) -> None:
    del data["annotations"]


FAULTS: list[tuple[Edit, str]] = [
    (without("annotations", "id"), "entry 0 of 'annotations' of image 1 has no 'id'"),
    (without("annotations", "image_id"), "annotation 1 has no 'image_id'"),
    (without("annotations", "category_id"), "annotation 1 of image 1 has no 'category_id'"),
    (without("annotations", "bbox"), "annotation 1 of image 1 has no 'bbox'"),
    (without("images", "height", 1), r"image 2 \('train_000002.jpg'\) has no 'height'"),
    (without("images", "width"), r"image 1 \('train_000001.jpg'\) has no 'width'"),
    (without("images", "file_name"), "image 1 has no 'file_name'"),
    (without("images", "id"), "entry 0 of 'images' has no 'id'"),
    (without("categories", "id"), "entry 0 of 'categories' has no 'id'"),
    (without("categories", "name"), "entry 0 of 'categories' has no 'name'"),
    (no_annotations, "'annotations' is missing; allowed: a list"),
    (lambda d: d.pop("images"), "'images' is missing"),
    (lambda d: d.pop("categories"), "'categories' is missing"),
    (lambda d: d.update(images=[]), "'images' is empty"),
    (lambda d: d.update(categories={}), "'categories' is a dict"),
    (set_in("annotations", "category_id", 9), "category_id 9; allowed: the ids 1, 2, 3"),
    (set_in("annotations", "category_id", "1"), "category_id '1'; allowed: the ids 1, 2, 3"),
    (set_in("annotations", "category_id", [1]), r"'category_id' \[1\]; allowed: a number or a w"),
    (set_in("annotations", "bbox", [NAN, 0, 9, 9]), r"annotation 1 of image 1 has bbox \[nan, 0"),
    (set_in("annotations", "bbox", [0, 0, INF, 9]), r"bbox \[0, 0, inf, 9\]; allowed: .*finite"),
    (set_in("annotations", "bbox", [0, -INF, 9, 9]), r"bbox \[0, -inf, 9, 9\]"),
    (set_in("annotations", "bbox", [0, 0, 1e30, 1e30]), r"bbox \[0, 0, 1e\+30, 1e\+30\]"),
    (set_in("annotations", "bbox", [-1e30, 0, 9, 9]), r"bbox \[-1e\+30, 0, 9, 9\]"),
    (set_in("annotations", "bbox", [0, 0, 9]), r"bbox \[0, 0, 9\]; allowed: \[x, y, width, height"),
    (set_in("annotations", "bbox", []), r"bbox \[\]; allowed"),
    (set_in("annotations", "bbox", ["0", "0", "9", "9"]), r"bbox \['0', '0', '9', '9'\]"),
    (set_in("annotations", "bbox", [0, 0, None, 9]), r"bbox \[0, 0, None, 9\]"),
    (set_in("annotations", "ignore", 1), "'ignore' 1; allowed: 0"),
    (set_in("annotations", "iscrowd", "0"), "'iscrowd' '0'; allowed: 0 and 1"),
    (set_in("annotations", "iscrowd", None), "'iscrowd' None; allowed: 0 and 1"),
    (set_in("annotations", "segmentation", [0, 0, 9, 0, 9, 9]), "allowed: a list of polygons"),
    (set_in("annotations", "segmentation", {"size": [128, 128]}), "without 'counts' and 'size'"),
    (set_in("annotations", "id", 1, index=1), "annotation 1 of image 2 is not the first of that"),
    (set_in("images", "width", 0), "is 0 x 128 pixels; allowed: numbers above 0"),
    (set_in("images", "height", "128"), "is 128 x '128' pixels"),
    (set_in("images", "id", 2), "image id 2 stands for 'train_000001.jpg' and 'train_000002.jpg'"),
    (set_in("images", "id", "one"), "ids of 'images' are numbers and words"),
    (set_in("categories", "id", 2), "category id 2 stands for 'circle' and 'rectangle'"),
    (lambda d: d["annotations"].insert(0, 5), "entry 0 of 'annotations' is 5; allowed: an object"),
]


@pytest.mark.parametrize(("edit", "message"), FAULTS)
def test_faults_of_a_coco_file(place: Place, edit: Edit, message: str) -> None:
    name = place.coco("train", edit)
    with pytest.raises(ValueError, match=message) as error:
        check_run(cfg_for(place, name, place.coco("val")))
    assert str(error.value).startswith(f"Data set '{name}' ({place.folder / name}.json): ")


@pytest.mark.parametrize(
    ("text", "message"), [('{"images": [', "truncated or no JSON"), ("[1]", "holds a list")]
)
def test_files_that_are_no_coco_file(place: Place, text: str, message: str) -> None:
    name = place.coco_text("train", text)
    found = refusal(place, name, ())
    assert f"{place.folder / name}.json' " in found and message in found


def test_many_faults_are_counted_and_the_first_shown(place: Place) -> None:
    def edit(data: Data) -> None:
        first = data["annotations"][0]
        data["annotations"] = [{**first, "id": i, "bbox": [NAN] * 4} for i in range(1234)]

    lines = refusal(place, place.coco("train", edit), ()).splitlines()
    assert lines[0].endswith(": 1,234 faults, the first 5 of them:") and len(lines) == 6
    assert lines[5].startswith("- annotation 4 of image 1 has bbox [nan, nan, nan, nan]")


def test_repeated_ids_are_accepted_where_detectron2_accepts_them(place: Place) -> None:
    place.folder = place.folder / "minival"
    place.folder.mkdir()
    assert notes_of(place, place.coco("train", set_in("annotations", "id", 1, index=1)), ()) == ""


def rle(counts: list[int]) -> Data:
    return {"size": [128, 128], "counts": counts}


def legitimate(data: Data) -> None:
    """All that detectron2 trains on without complaint."""
    one = copy.deepcopy(data["annotations"][0])
    image = one["image_id"]
    extra = [
        {"iscrowd": 1, "segmentation": rle([0, 16384])},  # a crowd
        {"bbox": [5, 5, 0, 0]},  # without area, which detectron2 leaves out
        {"bbox": [5, 5, -3, 4]},
        {"bbox": [-20.5, 100, 60, 600]},  # beyond the image, which detectron2 clips to it
        {"iscrowd": True},
        {"iscrowd": False, "ignore": 0},
        {"segmentation": [[1, 1, 2, 2]]},  # no polygon, which detectron2 leaves out
        {"segmentation": [[1, 1, 9, 1, 9, 9], [20, 20, 29, 20, 29, 29]]},
        {"keypoints": [1, 2, 2], "num_keypoints": 1},
        {"attributes": {"occluded": False}, "score": None},
        {"image_id": image, "area": 0},
    ]
    for number, fields in enumerate(extra, 1000):
        data["annotations"].append({**copy.deepcopy(one), "id": number, **fields})
    empty = {**data["images"][1], "id": 77}  # an image without objects
    data["images"].append(empty)
    data["categories"].append({"id": 90, "name": "never seen"})


def test_what_detectron2_takes_is_accepted(place: Place) -> None:
    data, classes = place.coco("train", legitimate), ["MODEL.ROI_HEADS.NUM_CLASSES", 4]
    assert notes_of(place, data, data, *classes) == ""
    keep_empty = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    assert notes_of(place, data, data, *classes, *keep_empty, *MASKS) == ""
    cfg = cfg_for(place, data, (), *classes, *MASKS)
    loader = iter(Trainer.build_train_loader(cfg))
    assert all("instances" in record for _ in range(4) for record in next(loader))


def test_annotations_of_other_images_are_noted(place: Place) -> None:
    notes = notes_of(place, place.coco("train", set_in("annotations", "image_id", 1234)), ())
    assert "belong to no image of the file and are left out: 1, the first is annotation 1" in notes


def test_test_files_without_annotations_are_written_for_a_server(place: Place) -> None:
    notes = notes_of(place, place.coco("train"), place.coco("val", no_annotations))
    assert "has no 'annotations': detections are written, and not scored" in notes


def all_crowd(data: Data) -> None:
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1


@pytest.mark.parametrize("edit", [lambda d: d.update(annotations=[]), all_crowd])
def test_nothing_to_score_or_to_train_on(place: Place, edit: Edit) -> None:
    message = refusal(place, place.coco("train"), place.coco("val", edit))
    assert "no object to score detections against, and AP would be nan" in message
    empty = place.coco("train", edit)
    message = refusal(place, empty, ())
    assert empty in message and "leaves no image to train on; allowed: one object" in message
    assert notes_of(place, (empty, place.coco("train")), ()) == ""
    keep = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    assert "the model learns to detect nothing" in notes_of(place, empty, (), *keep)


MASK_FAULTS: list[tuple[Edit, str]] = [
    (without("annotations", "segmentation"), "no 'segmentation', which MODEL.MASK_ON True needs"),
    (set_in("annotations", "segmentation", []), "no 'segmentation', which MODEL.MASK_ON True need"),
    (set_in("annotations", "segmentation", rle([0, 16384])), "INPUT.MASK_FORMAT 'bitmask'"),
    (set_in("annotations", "segmentation", [[0, 0, 9, NAN, 9, 9]]), "a polygon with other values"),
    (set_in("annotations", "segmentation", [[0, 0, 9, 0, 9, 1e30]]), "a polygon with other values"),
]


@pytest.mark.parametrize(("edit", "message"), MASK_FAULTS)
def test_masks_matter_where_they_are_used(place: Place, edit: Edit, message: str) -> None:
    name = place.coco("train", edit)
    assert notes_of(place, name, ()) == ""
    assert message in refusal(place, name, (), *MASKS)


def test_rle_masks(place: Place) -> None:
    name = place.coco("train", set_in("annotations", "segmentation", rle([0, 16384])))
    bitmask = [*MASKS, "INPUT.MASK_FORMAT", "bitmask"]
    assert notes_of(place, name, (), *bitmask) == ""
    assert notes_of(place, (), name, *MASKS, eval_only=True) == ""
    small_rle = {"size": [64, 128], "counts": [0, 8192]}
    name = place.coco("train", set_in("annotations", "segmentation", small_rle))
    message = refusal(place, name, (), *bitmask)
    assert "an RLE of (height, width) [64, 128]; its image has [128, 128]" in message


def test_test_sets_need_masks_too(place: Place) -> None:
    name = place.coco("val", without("annotations", "segmentation"))
    assert "MODEL.MASK_ON True needs" in refusal(place, place.coco("train"), name, *MASKS)


@pytest.mark.parametrize("points", [None, [], [1, 2], [1, NAN, 2]])
def test_keypoints_matter_where_they_are_used(place: Place, points: object) -> None:
    def edit(data: Data) -> None:
        for annotation in data["annotations"]:
            annotation["keypoints"] = [1, 2, 2]
        data["annotations"][0]["keypoints"] = points

    name = place.coco("train", edit)
    assert notes_of(place, name, ()) == ""
    assert f"keypoints {points!r}; allowed: x, y, visib" in refusal(place, name, (), *KEYPOINTS)


def test_gaps_of_a_test_set_are_told_before(place: Place) -> None:
    def edit(data: Data) -> None:
        data["annotations"] = data["annotations"][:3]
        for annotation in data["annotations"]:
            del annotation["iscrowd"]
        del data["annotations"][0]["area"]
        data["annotations"][1]["id"] = 0

    name = place.coco("val", edit)
    assert notes_of(place, place.coco("train"), name) == (
        f"Data set '{name}' ({place.folder / name}.json): for the evaluation, of 3 annotations: "
        "'iscrowd' is missing in 3 and taken as 0; 'area' is missing in 1 and taken from mask or "
        "box; 'id' is 0 or no number in 1, which COCO's metric cannot take: all are numbered."
    )
    # A training needs none of them.
    assert notes_of(place, name, ()) == ""
    infinite = place.coco("val", set_in("annotations", "area", INF))
    assert "area inf; allowed: a finite number" in refusal(place, place.coco("train"), infinite)


# -- images --------------------------------------------------------------------------------------


def oriented(orientation: int, size: tuple[int, int] = (120, 100)) -> Callable[[Path], None]:
    """Save an image that EXIF turns."""

    def edit(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(path, exif=exif)

    return edit


def sized(width: int, height: int) -> Edit:
    return lambda data: data["images"][0].update(width=width, height=height)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_size_that_only_exif_explains(place: Place, orientation: int) -> None:
    images = place.changed_images(oriented(orientation))
    message = refusal(place, place.coco("train", sized(120, 100), images), ())
    assert (
        f"'{images}/train_000001.jpg' has 120 x 100 pixels, as annotated, and its EXIF orientation "
        f"{orientation} turns it to 100 x 120 pixels, which is how detectron2 reads it"
    ) in message
    right = place.coco("train", sized(100, 120), images)
    notes = notes_of(place, right, ())
    assert "turned image): 1, the first is " in notes and "train_000001.jpg" in notes
    records = Trainer.build_train_loader(cfg_for(place, right, ())).dataset
    assert next(iter(records))["instances"] is not None


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_images_that_exif_mirrors_are_noted(place: Place, orientation: int) -> None:
    images = place.changed_images(oriented(orientation))
    notes = notes_of(place, place.coco("train", sized(120, 100), images), ())
    assert "their EXIF orientation turns" in notes


def test_upright_images_are_not_noted(place: Place) -> None:
    images = place.changed_images(oriented(1))
    assert notes_of(place, place.coco("train", sized(120, 100), images), ()) == ""


def test_sizes_that_disagree(place: Place) -> None:
    message = refusal(place, place.coco("train", sized(99, 128)), ())
    assert "train_000001.jpg' has 128 x 128 pixels, annotated are 99 x 128 pixels" in message
    voc = place.voc(lambda d: replace(d / "Annotations/train_000001.xml", "<width>128", "<width>9"))
    assert "has 128 x 128 pixels, annotated are 9 x 128 pixels" in refusal(place, voc[0], ())


def test_images_that_training_leaves_out_are_not_looked_at(place: Place) -> None:
    def edit(data: Data) -> None:
        sized(99, 128)(data)
        data["annotations"] = [x for x in data["annotations"] if x["image_id"] != 1]

    name = place.coco("train", edit)
    assert notes_of(place, name, ()) == ""
    assert "annotated are 99 x 128" in refusal(
        place, name, (), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False
    )
    assert "annotated are 99 x 128" in refusal(place, (), name, eval_only=True)


def test_images_that_are_not_there_or_not_readable(place: Place) -> None:
    images = place.changed_images(lambda path: path.unlink())
    assert f"'{images}/train_000001.jpg' is not there" in refusal(
        place, place.coco("train", None, images), ()
    )
    (images / "train_000001.jpg").write_bytes(b"")
    assert "train_000001.jpg' cannot be read: UnidentifiedImageError" in refusal(
        place, place.coco("train", None, images), ()
    )


def test_images_of_more_than_8_bits(place: Place) -> None:
    """What detectron2 makes of them is in `read_image`: 300 becomes 255."""
    from detectron2.data.detection_utils import read_image

    gray = np.full((128, 128), 300, np.uint16)
    images = place.changed_images(lambda path: Image.fromarray(gray).save(path.with_suffix(".png")))
    assert (read_image(str(images / "train_000001.png"), "BGR") == 255).all()
    name = place.coco("train", set_in("images", "file_name", "train_000001.png"), images)
    notes = notes_of(place, name, ())
    assert "values above 255 become 255" in notes and "1, the first is " in notes
    assert "train_000001.png'" in notes


def test_images_of_16_bits_a_colour(place: Place) -> None:
    import cv2
    from detectron2.data.detection_utils import read_image

    colours = np.full((128, 128, 3), 300, np.uint16)
    images = place.changed_images(lambda p: cv2.imwrite(str(p.with_suffix(".png")), colours))
    assert (read_image(str(images / "train_000001.png"), "BGR") == 300 // 256).all()
    name = place.coco("train", set_in("images", "file_name", "train_000001.png"), images)
    assert "16 bits a colour, of which the upper 8 are read: 1," in notes_of(place, name, ())


def test_of_many_images_some_are_looked_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST", 3)  # of 6: the first, the third, the fifth
    name = place.coco("train", lambda d: d["images"][1].update(width=99))
    assert "of 6 images, the sizes of 3 were looked at" in notes_of(place, name, ())
    name = place.coco("train", lambda d: d["images"][2].update(width=99))
    assert "train_000003.jpg' has 128 x 128" in refusal(place, name, ())
    # That they are there is looked up for all.
    images = place.changed_images(lambda path: path.with_name("train_000002.jpg").unlink())
    message = refusal(place, place.coco("train", None, images), ())
    assert f"'{images}/train_000002.jpg' is not there" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(place: Place, workers: int) -> None:
    images = place.changed_images(lambda path: path.write_bytes(path.read_bytes()[:-200]))
    name = place.coco("train", None, images)
    cfg = cfg_for(place, name, name, "DATALOADER.NUM_WORKERS", workers)
    assert check_run(cfg) == []  # it takes all of the file to see it
    expected = r"image '.*/images/train_000001.jpg': OSError: image file is truncated"
    with pytest.raises(ValueError, match=expected):
        for _, _batch in zip(range(100), Trainer.build_train_loader(cfg), strict=False):
            pass
    with pytest.raises(ValueError, match=expected):
        list(Trainer.build_test_loader(cfg, name))


# -- VOC -----------------------------------------------------------------------------------------


def replace(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def in_first(old: str, new: str) -> Callable[[Path], None]:
    """Change the annotation of the first image of both splits."""

    def edit(folder: Path) -> None:
        for name in ("train_000001", "val_000001"):
            replace(folder / "Annotations" / f"{name}.xml", old, new)

    return edit


def first_box(folder: Path, value: str) -> None:
    for name in ("train_000001", "val_000001"):
        path = folder / "Annotations" / f"{name}.xml"
        text = path.read_text()
        start = text.index("<xmin>") + len("<xmin>")
        path.write_text(text[:start] + value + text[text.index("</xmin>") :])


VOC_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (in_first("<height>128</height>", ""), "it has no <size><height>, which detectron2 needs"),
    (in_first("</annotation>", ""), "train_000001.xml': no element found|unclosed token|mismatch"),
    (lambda f: first_box(f, "nan"), r"an object has the box \['nan', .*allowed: finite"),
    (lambda f: first_box(f, "1e30"), r"an object has the box \['1e30', "),
    (lambda f: first_box(f, "left"), r"an object has the box \['left', "),
    (in_first("<name>", "<called>"), "mismatched tag"),
    (lambda f: (f / "Annotations/train_000002.xml").unlink(), "train_000002.xml': No such file"),
    (lambda f: (f / "ImageSets/Main/trainval.txt").write_text("train_000001\n"), "has one line"),
    (
        lambda f: (f / "ImageSets/Main/trainval.txt").write_text("train_000001 1\ntrain_000002 -1"),
        "has the line 'train_000001 1'; allowed: the name of an image alone",
    ),
]


@pytest.mark.parametrize(("edit", "message"), VOC_FAULTS)
def test_faults_of_a_voc_folder(place: Place, edit: Callable, message: str) -> None:
    train, _ = place.voc(edit)
    with pytest.raises(ValueError, match=message) as error:
        check_run(cfg_for(place, train, ()))
    assert str(error.value).startswith(f"Data set '{train}' ({place.folder}/voc_1): ")


def test_a_voc_class_that_is_not_in_the_list(place: Place) -> None:
    train, _ = place.voc(classes=["circle", "rectangle"])
    message = refusal(place, train, (), "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    assert "is of class 'triangle'; allowed: ['circle', 'rectangle']" in message
    assert f"{place.folder}/voc_1/Annotations/train_0000" in message


EVALUATION_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (in_first("<difficult>0</difficult>", ""), "an object has no <difficult>"),
    (in_first("<truncated>", "<cut>"), "mismatched tag"),
    (in_first("<difficult>0", "<difficult>no"), "an object has <difficult> 'no'; allowed: 0 and 1"),
    (lambda f: first_box(f, "7.5"), r"an object has the box \['7.5', .*; allowed: whole numbers"),
]


@pytest.mark.parametrize(("edit", "message"), EVALUATION_FAULTS)
def test_what_the_voc_metric_needs(place: Place, edit: Callable, message: str) -> None:
    train, test = place.voc(edit)
    with pytest.raises(ValueError, match=message):
        check_run(cfg_for(place, (), test), eval_only=True)
    if "mismatched" not in message:  # detectron2 trains on them
        assert notes_of(place, train, ()) == ""


def test_an_empty_line_in_the_list_of_a_voc_test_set(place: Place) -> None:
    def edit(folder: Path) -> None:
        for split in ("trainval", "test"):
            path = folder / f"ImageSets/Main/{split}.txt"
            path.write_text(path.read_text() + "\n")

    train, test = place.voc(edit)
    assert "test.txt': line 5 is empty" in refusal(place, train, test)
    assert notes_of(place, train, ()) == ""


def test_a_year_without_a_metric(place: Place) -> None:
    train, test = place.voc(year=2010)
    assert "with the year 2010; allowed: 2007 and 2012" in refusal(place, train, test)
    assert notes_of(place, train, ()) == ""


def make_difficult(folder: Path) -> None:
    for path in (folder / "Annotations").iterdir():
        replace(path, "<difficult>0", "<difficult>1", count=-1)


def test_difficult_objects(place: Place) -> None:
    train, test = place.voc(make_difficult)
    assert notes_of(place, train, ()) == ""
    assert "no object to score detections against" in refusal(place, train, test)


@pytest.mark.parametrize(("year", "ap"), [(2007, "0, and"), (2012, "0, or nan once it")])
def test_classes_without_objects_in_a_voc_test_set(place: Place, year: int, ap: str) -> None:
    def edit(folder: Path) -> None:
        for path in (folder / "Annotations").glob("val_*"):
            path.write_text(path.read_text().replace("<name>circle", "<name>triangle"))

    notes = notes_of(place, *place.voc(edit, year=year))
    assert f"no object of ['circle']: VOC's metric gives each of them AP {ap}" in notes


# -- own functions -------------------------------------------------------------------------------


def own(place: Place, **fields: object) -> str:
    """A data set of one image and one object, whose annotation `fields` change."""
    place.count += 1
    name = f"test_own_{place.count}"
    image = str(place.images("train") / "train_000001.jpg")
    annotation = {"bbox": [1, 2, 30, 40], "bbox_mode": 0, "category_id": 0, **fields}
    size = {"height": 128, "width": 128, "image_id": 0}
    DatasetCatalog.register(
        name, lambda: [{"file_name": image, **size, "annotations": [annotation]}]
    )
    MetadataCatalog.get(name).set(thing_classes=CLASSES, evaluator_type="coco")
    return name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bbox": np.array([1.0, 2, 3, 4])},
        {"category_id": np.int64(2)},
        {"bbox": (1, 2, 3, 4, 9)},
    ],
)
def test_own_functions_are_accepted(place: Place, fields: dict) -> None:
    assert notes_of(place, own(place, **fields), own(place)) == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [NAN, 0, 9, 9]}, r"train_000001.jpg' has bbox \[nan, 0, 9, 9\]; allowed: finite"),
        ({"bbox": np.array([0, 0, 1e30, 9])}, r"has bbox array\(\[.*; allowed: finite"),
        ({"category_id": 3}, "has category_id 3; allowed: 0 to 2"),
        ({"category_id": -1}, "has category_id -1; allowed: 0 to 2"),
    ],
)
def test_faults_of_own_functions(place: Place, fields: dict, message: str) -> None:
    name = own(place, **fields)
    with pytest.raises(ValueError, match=message) as error:
        check_run(cfg_for(place, name, ()))
    assert str(error.value).startswith(f"Data set '{name}': ")


def test_own_functions_that_fail_or_give_nothing(place: Place) -> None:
    DatasetCatalog.register("test_own_fails", lambda: {}["height"])
    message = refusal(place, "test_own_fails", ())
    assert message == "Data set 'test_own_fails': it cannot be loaded: KeyError: 'height'"
    DatasetCatalog.register("test_own_empty", lambda: [])
    assert "'test_own_empty': it is empty" in refusal(place, "test_own_empty", ())
    assert "no object to score" in refusal(place, (), own(place, iscrowd=1), eval_only=True)


def test_own_functions_may_leave_out_what_a_mapper_adds(place: Place) -> None:
    image = str(place.images("train") / "train_000001.jpg")
    DatasetCatalog.register("test_own_bare", lambda: [{"path": image}, {"file_name": image}])
    assert notes_of(place, "test_own_bare", ()) == ""
    dataset = torch.utils.data.TensorDataset(torch.zeros(2))
    DatasetCatalog.register("test_own_torch", lambda: dataset)
    assert notes_of(place, "test_own_torch", ()) == ""


# -- the run -------------------------------------------------------------------------------------


def words(place: Place, train: str, test: str, *opts: object) -> list[str]:
    lists = ["DATASETS.TRAIN", f"({train!r},)", "DATASETS.TEST", f"({test!r},)"]
    output = ["OUTPUT_DIR", str(place.folder / "output"), "MODEL.DEVICE", "cpu"]
    return ["--config-file", TINY_EXT, *lists, *output, *map(str, opts)]


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.ROI_HEADS.NUM_CLASSES", 80],
        ["DATASETS.TRAIN", "()"],
        ["DATASETS.TRAIN", "('test_train_3',)"],
    ],
)
def test_faults_leave_no_folder(place: Place, opts: list) -> None:
    train, test = place.coco("train"), place.coco("val")
    place.coco("train", set_in("annotations", "bbox", [NAN] * 4))
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 80|TRAIN is empty|has bbox"):
        setup(argument_parser().parse_args(words(place, train, test, *opts)))
    assert not (place.folder / "output").exists()


def test_notes_are_in_the_log(place: Place) -> None:
    test = place.coco("val", without("annotations", "iscrowd"))
    setup(argument_parser().parse_args(words(place, place.coco("train"), test)))
    log = (place.folder / "output" / "log.txt").read_text()
    assert log.count("'iscrowd' is missing in 1 and taken as 0") == 1


def check_in_a_process(folder: str) -> None:
    """Registered here, since the processes do not share catalogs."""
    place = Place(Path(folder) / "shapes", Path(folder))
    train = place.coco("train", set_in("annotations", "bbox", [NAN] * 4))
    setup(argument_parser().parse_args(words(place, train, place.coco("val"))))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
def test_several_processes_end_by_themselves(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", num_train=2, num_val=2)
    with pytest.raises(Exception, match=r"has bbox \[nan, nan, nan, nan\]; allowed"):
        launch(check_in_a_process, 2, dist_url="auto", args=(str(tmp_path),))
    assert not (tmp_path / "output").exists()


def test_masks_of_pycocotools_are_what_the_tests_take_them_for() -> None:
    assert mask_util.area(mask_util.frPyObjects(rle([0, 16384]), 128, 128)) == 128 * 128
