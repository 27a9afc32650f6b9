"""COCO's JSON as people bring it: boxes of other kinds, images elsewhere, fields left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from doublehead_d2.data.contents import inspect_dataset
from doublehead_d2.data.findings import Use
from doublehead_d2.data.layouts.coco_boxes import describe_boxes
from doublehead_d2.data.registration import register_datasets
from doublehead_d2.evaluation import build_evaluator
from own_data import HEIGHT, WIDTH, Data, coco_data, write_coco, write_images

pytestmark = pytest.mark.usefixtures("catalogs")

BOTH = Use(training=True, evaluation="coco", skips_empty=False)
XYWH = [[8, 10, 32, 24], [44, 4, 16, 26], [30, 16, 32, 30]]


def register(folder: Path, data: Data | None = None, **fields: object) -> str:
    _, annotations, images = write_coco(folder, data).split(":")
    name = f"test_{folder.name}_{len(DatasetCatalog.list())}"
    entry = {"layout": "coco", "annotations": annotations, "images": images, **fields}
    register_datasets({name: entry}, ".")
    return name


def boxes_of(name: str) -> list[list[float]]:
    records = DatasetCatalog.get(name)
    return [[round(v, 6) for v in x["bbox"]] for r in records for x in r["annotations"]]


def changed_boxes(change: Callable[[list[float]], list[float]]) -> Data:
    data = coco_data()
    for annotation in data["annotations"]:
        annotation["bbox"] = change(annotation["bbox"])
    return data


def to_xyxy(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y + h]


def normalised(box: list[float]) -> list[float]:
    return [v / (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(box)]


# -- what is in COCO's form ------------------------------------------------------------------------


def test_a_plain_file_is_read_by_detectron2_itself(tmp_path: Path) -> None:
    name = register(tmp_path)
    contents = inspect_dataset(name, BOTH)
    assert contents.notes == [] and contents.classes == ["dog", "cat"] and contents.objects == 3
    assert len(contents.images) == 3
    assert boxes_of(name) == XYWH
    assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    # The evaluator reads the file as well, and converts nothing.
    evaluator = build_evaluator(name, str(tmp_path / "out"))
    assert sorted(evaluator._coco_api.cats) == [3, 7] and not (tmp_path / "out").exists()


def test_a_plain_file_is_looked_at_again_when_it_has_changed(tmp_path: Path) -> None:
    name = register(tmp_path)
    inspect_dataset(name, BOTH)
    data = coco_data()
    del data["images"][0]["width"]
    (tmp_path / "labels.json").write_text(json.dumps(data))
    assert DatasetCatalog.get(name)[0]["width"] == WIDTH


# -- boxes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line", "looks"),
    [
        (
            to_xyxy,
            "xyxy",
            "look like XYXY: as [x, y, width, height] 2 of 3 boxes leave their image",
        ),
        (normalised, "xywh_normalised", "look like XYWH from 0 to 1: all numbers are"),
        (lambda x: normalised(to_xyxy(x)), "xyxy_normalised", "look like XYXY from 0 to 1"),
    ],
)
def test_other_boxes_are_recognised_and_accepted_by_a_line(
    tmp_path: Path, change: Callable, line: str, looks: str
) -> None:
    name = register(tmp_path, changed_boxes(change))
    with pytest.raises(ValueError) as error:
        inspect_dataset(name, BOTH)
    assert looks in str(error.value)
    assert f"allowed: the line `boxes: {line}` in its entry of" in str(error.value)
    with pytest.raises(ValueError, match="its boxes look like"):
        DatasetCatalog.get(name)

    accepted = register(tmp_path, changed_boxes(change), boxes=line)
    contents = inspect_dataset(accepted, BOTH)
    assert contents.objects == 3
    (note,) = contents.notes
    assert note.endswith(f"its boxes are read as {line}, as its entry says.")
    assert boxes_of(accepted) == XYWH
    # COCO's metric sees the same boxes, and the metadata stay as they are.
    evaluator = build_evaluator(accepted, str(tmp_path))
    found = [x["bbox"] for x in evaluator._coco_api.dataset["annotations"]]
    assert [[round(v, 3) for v in box] for box in found] == XYWH
    assert MetadataCatalog.get(accepted).json_file == str(tmp_path / "labels.json")


def test_boxes_may_be_coco_s_after_all(tmp_path: Path) -> None:
    data = changed_boxes(to_xyxy)
    name = register(tmp_path, data, boxes="xywh")
    assert boxes_of(name) == [x["bbox"] for x in data["annotations"]]
    assert inspect_dataset(name, BOTH).notes == []


def test_outlines_from_0_to_1_become_pixels_with_their_boxes(tmp_path: Path) -> None:
    data = changed_boxes(normalised)
    data["annotations"][0]["segmentation"] = [[0.125, 0.25, 0.5, 0.25, 0.5, 0.75]]
    data["annotations"][1]["segmentation"] = [[44, 4, 60, 4, 60, 30]]  # in pixels as it stands
    name = register(tmp_path, data, boxes="xywh_normalised")
    objects = DatasetCatalog.get(name)[0]["annotations"]
    # 64 x 48 pixels
    assert objects[0]["segmentation"] == [[8, 12, 32, 12, 32, 36]]
    assert objects[1]["segmentation"] == [[44, 4, 60, 4, 60, 30]]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], ""),
        ([[0, 0, 100, 100]], ""),  # the whole image
        ([[50, 50, 50.5, 50]], ""),  # rounding lets it leave by half a pixel
        ([[50, 50, 60, 60]], "XYXY"),
        ([[90, 90, 95, 95], [60, 10, 30, 40]], ""),  # the second is inverted as XYXY
        ([[50, 50, 60, 60], [10, 10, 120, 120]], ""),  # leaves its image either way
        ([[1, 1, 2, 2]] * 19 + [[50, 50, 60, 60]], "XYXY"),  # 5 of 100 are many
        ([[1, 1, 2, 2]] * 20 + [[50, 50, 60, 60]], ""),
        ([[0.5, 0.5, 0.2, 0.2]], "XYWH from 0 to 1"),
        ([[0.5, 0.5, 0.7, 0.7]], "XYXY from 0 to 1"),
        ([[0.1, 0.1, 0.2, 0.2]], "XYWH or XYXY from 0 to 1"),
        ([[0.1, 0.1, 0.2, 0.2], [0, 0, 1, 2]], ""),  # one is in pixels
    ],
)
def test_what_boxes_of_a_file_look_like(boxes: list[list[float]], expected: str) -> None:
    found = describe_boxes([(box, 100, 100) for box in boxes])
    assert found.startswith(f"its boxes look like {expected}: ") if expected else found == ""


def test_boxes_of_tiny_images_may_be_small() -> None:
    assert describe_boxes([([0, 0, 1, 1], 2, 2)]) == ""


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"/home/somebody/images/{name}",
        lambda name: rf"C:\data\images\{name}",
        lambda name: f"images/{name}",
        lambda name: rf"sub\{name}",
    ],
)
def test_file_names_of_another_machine(tmp_path: Path, rename: Callable[[str], str]) -> None:
    data = coco_data()
    for image in data["images"]:
        image["file_name"] = rename(image["file_name"])
    name = register(tmp_path, data)
    (note,) = inspect_dataset(name, BOTH).notes
    assert f"not in '{tmp_path}/images' as they stand, and were found elsewhere in it: 3" in note
    assert f"the first is '{rename('a.jpg')}', read as 'a.jpg'" in note
    assert [x["file_name"] for x in DatasetCatalog.get(name)] == [
        f"{tmp_path}/images/{x}.jpg" for x in "abc"
    ]


def test_images_in_folders_of_the_folder(tmp_path: Path) -> None:
    name = register(tmp_path)
    for split, image in (("x", "a"), ("y", "b")):
        (tmp_path / "images" / split).mkdir()
        shutil.move(tmp_path / f"images/{image}.jpg", tmp_path / "images" / split)
    (note,) = inspect_dataset(name, BOTH).notes
    assert "elsewhere in it: 2, the first is 'a.jpg', read as 'x/a.jpg'" in note
    # Of two of a name, neither is taken.
    shutil.copy(tmp_path / "images/x/a.jpg", tmp_path / "images/y")
    with pytest.raises(ValueError, match="images/a.jpg' is not there"):
        inspect_dataset(name, BOTH)


def test_the_folder_that_is_named_tells_two_of_a_name_apart(tmp_path: Path) -> None:
    data = coco_data()
    data["images"][0]["file_name"] = "D:\\x\\a.jpg"
    data["images"][1]["file_name"] = "D:\\y\\a.jpg"
    name = register(tmp_path, data)
    (tmp_path / "images/a.jpg").unlink()
    for split in ("x", "y"):
        write_images(tmp_path / "images" / split, ["a"])
    files = [x["file_name"] for x in DatasetCatalog.get(name)]
    assert files[:2] == [f"{tmp_path}/images/{split}/a.jpg" for split in ("x", "y")]


def test_one_file_is_not_taken_for_two_images(tmp_path: Path) -> None:
    data = coco_data()
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "x/a.jpg", "y/a.jpg"
    name = register(tmp_path, data)
    with pytest.raises(
        ValueError, match="2 faults:\n- .*x/a.jpg' is not there\n- .*y/a.jpg' is no"
    ):
        inspect_dataset(name, BOTH)


def test_images_beside_the_file(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(coco_data()))
    register_datasets({"test_beside": f"coco:{tmp_path}/_annotations.coco.json"}, ".")
    assert inspect_dataset("test_beside", BOTH).notes == []
    assert DatasetCatalog.get("test_beside")[0]["file_name"] == f"{tmp_path}/a.jpg"


# -- fields ----------------------------------------------------------------------------------------


def test_fields_that_are_left_out(tmp_path: Path) -> None:
    data = coco_data()
    for annotation in data["annotations"]:
        for key in ("id", "iscrowd", "area"):
            del annotation[key]
    for image in data["images"]:
        del image["height"], image["width"]
    name = register(tmp_path, data)
    sizes, ids, gaps = inspect_dataset(name, BOTH).notes
    assert "images without 'width' and 'height', read from the files: 3" in sizes
    assert "3 of 3 annotations have no 'id': all are numbered" in ids
    assert "'iscrowd' is missing in 3" in gaps and "'area' is missing in 3" in gaps
    records = DatasetCatalog.get(name)
    assert {(x["width"], x["height"]) for x in records} == {(WIDTH, HEIGHT)}
    assert boxes_of(name) == XYWH
    evaluator = build_evaluator(name, str(tmp_path))
    assert [x["area"] for x in evaluator._coco_api.dataset["annotations"]] == [768, 416, 960]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(images=3), "'images' is a int; allowed: a list"),
        (lambda d: d["images"].append("x"), "entry 3 of 'images' is 'x'; allowed: an object"),
        (lambda d: d["annotations"].append(None), "entry 3 of 'annotations' is None"),
        (lambda d: d["annotations"][0].pop("bbox"), "annotation 1 of image 10 has no 'bbox'"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), r"has bbox \[1, 2\]; allowed"),
        (
            lambda d: d["annotations"][0].update(category_id=4),
            "has category_id '?4'?; allowed: the",
        ),
        (lambda d: d["categories"][0].pop("name"), "entry 0 of 'categories' has no 'name'"),
        (lambda d: d["images"][0].update(file_name=3), "has 'file_name' 3; allowed: a path"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"boxes": "xywh", "classes": ["dog", "cat"]}])
def test_files_are_looked_at_as_strictly_as_registered_ones(
    tmp_path: Path, edit: Callable[[Data], object], message: str, fields: dict
) -> None:
    data = coco_data()
    edit(data)
    name = register(tmp_path, data, **fields)
    with pytest.raises(ValueError, match=message):
        inspect_dataset(name, BOTH)


def test_a_stale_conversion_is_made_anew(tmp_path: Path) -> None:
    data = changed_boxes(to_xyxy)
    name = register(tmp_path, data, boxes="xyxy")
    build_evaluator(name, str(tmp_path))
    data["annotations"][0]["bbox"] = [0, 0, 10, 10]
    (tmp_path / "labels.json").write_text(json.dumps(data))
    evaluator = build_evaluator(name, str(tmp_path))  # in the same process, the same folder
    assert evaluator._coco_api.dataset["annotations"][0]["bbox"] == [0, 0, 10, 10]
