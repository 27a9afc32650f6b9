"""YOLO's data.yaml, and labels as tools write them."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from doublehead_d2.data.contents import inspect_dataset
from doublehead_d2.data.findings import Use
from doublehead_d2.data.registration import register_datasets
from doublehead_d2.evaluation import build_evaluator
from own_data import HEIGHT, NAMES, OBJECTS, WIDTH, write_yolo

pytestmark = pytest.mark.usefixtures("catalogs")

BOTH = Use(training=True, evaluation="coco", skips_empty=False)


def register(file: str, split: str = "train") -> str:
    name = f"test_yolo_{len(DatasetCatalog.list())}"
    register_datasets({name: f"yolo:{file}:{split}"}, ".")
    return name


def labels_of(name: str) -> list[list[tuple[str, list[float]]]]:
    records = DatasetCatalog.get(name)
    names = MetadataCatalog.get(name).thing_classes
    return [
        [(names[x["category_id"]], [round(v, 6) for v in x["bbox"]]) for x in r["annotations"]]
        for r in records
    ]


def refusal(name: str) -> str:
    with pytest.raises(ValueError) as error:
        inspect_dataset(name, BOTH)
    return str(error.value)


# -- data.yaml -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"names": {0: "dog", 1: "cat"}},
        {"train": ["images/train"]},
        {"path": "."},
        {"train": "../images/train"},  # as exports say for what is beside the file
    ],
)
def test_what_data_yaml_may_say(tmp_path: Path, changes: dict) -> None:
    name = register(write_yolo(tmp_path, **changes))
    assert labels_of(name) == list(OBJECTS.values())
    assert inspect_dataset(name, BOTH).classes == NAMES


def test_paths_below_the_folder_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_yolo(tmp_path / "sets" / "mine", path="mine")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(file, tmp_path / "elsewhere")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    assert labels_of(register(str(moved), "val")) == list(OBJECTS.values())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = refusal(register(str(moved), "train"))
    assert "'images/train' of its split 'train' is not there; looked at: " in message
    for place in ("elsewhere/mine/images/train", "elsewhere/images/train", "mine/images/train"):
        assert f"{tmp_path}/{place}" in message


def test_splits_of_several_folders_and_of_lists(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, train=["images/train", "images/val"], val="val.txt")
    assert len(labels_of(register(file))) == 6
    (tmp_path / "val.txt").write_text("./images/val/b.jpg\nimages/train/a.jpg\n")
    assert labels_of(register(file, "val")) == [OBJECTS["b"], OBJECTS["a"]]


def test_names_with_gaps(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, names={0: "dog", 1: "cat", 5: "cow"}, nc=3)
    (tmp_path / "labels/train/c.txt").write_text("5 0.5 0.5 0.5 0.5\n")
    # (32 - 16, 24 - 12) to (32 + 16, 24 + 12)
    assert labels_of(register(file))[2] == [("cow", [16, 12, 48, 36])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": "dog"}, "has names 'dog'; allowed: a list of names, or a mapping"),
        ({"names": []}, r"has names \[\]"),
        ({"names": {"dog": 0}}, r"has names \{'dog': 0\}"),
        ({"nc": 3}, "has nc 3 and 2 names; allowed: as many"),
        ({"names": ["dog", "dog"]}, r"has the names \['dog', 'dog'\]; allowed: each once"),
        ({"train": None}, "it has no split 'train'; allowed: 'val'"),
        ({"train": "labels"}, "its split 'train', 'labels', has no image; allowed: images .jpg"),
        ({"train": "nowhere"}, "'nowhere' of its split 'train' is not there; looked at: "),
    ],
)
def test_faults_of_data_yaml(tmp_path: Path, changes: dict, message: str) -> None:
    name = register(write_yolo(tmp_path, **changes))
    with pytest.raises(ValueError, match=message):
        inspect_dataset(name, BOTH)
    with pytest.raises(ValueError, match=message):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is no YAML: "), ("[1]", "is no data.yaml")]
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert message in refusal(register(str(tmp_path / "data.yaml")))


# -- labels ----------------------------------------------------------------------------------------


def test_labels_beside_the_images(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, train="photos")
    shutil.move(tmp_path / "images/train", tmp_path / "photos")
    for path in (tmp_path / "labels/train").iterdir():
        shutil.move(path, tmp_path / "photos")
    assert labels_of(register(file)) == list(OBJECTS.values())


def test_labels_beside_the_images_in_a_folder_of_that_name(tmp_path: Path) -> None:
    file = write_yolo(tmp_path)
    for path in (tmp_path / "labels/train").iterdir():
        shutil.move(path, tmp_path / "images/train")
    assert labels_of(register(file)) == list(OBJECTS.values())


def test_the_last_folder_of_that_name_has_labels_beside_it(tmp_path: Path) -> None:
    assert labels_of(register(write_yolo(tmp_path / "images" / "mine"))) == list(OBJECTS.values())


def test_outlines(tmp_path: Path) -> None:
    file = write_yolo(tmp_path)
    (tmp_path / "labels/train/b.txt").write_text("1 0.25 0.25 0.75 0.25 0.5 0.75\n")
    name = register(file)
    (found,) = DatasetCatalog.get(name)[1]["annotations"]
    # 64 x 48 pixels
    assert found["segmentation"] == [[16, 12, 48, 12, 32, 36]] and found["bbox"] == [16, 12, 48, 36]
    with pytest.raises(ValueError, match="a.jpg' has no outline, which MODEL.MASK_ON True needs"):
        inspect_dataset(name, Use(training=True, mask_format="polygon"))


def test_images_without_labels(tmp_path: Path) -> None:
    file = write_yolo(tmp_path)
    (note,) = inspect_dataset(register(file), BOTH).notes
    assert note.endswith("images without a file of labels, taken as without objects: 1.")
    (tmp_path / "labels/train/c.txt").touch()
    assert inspect_dataset(register(file), BOTH).notes == []
    shutil.rmtree(tmp_path / "labels/train")
    message = refusal(register(file))
    assert (
        f"for '{tmp_path}/images/train/a.jpg' it would be '{tmp_path}/labels/train/a.tx" in message
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog 0.5 0.5 0.1 0.1", "'dog 0.5 0.5 0.1 0.1' has other words than numbers"),
        ("2 0.5 0.5 0.1 0.1", "class 2; allowed: the numbers of `names`, 0, 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5; allowed"),
        ("0 0.5 0.5 0.1", "4 numbers; allowed: class, x, y, width, height, or class and an out"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers; allowed"),
        ("0 32 24 10 10", "'0 32 24 10 10'; allowed: shares of the image, 0 to 1"),
        ("0 nan 0.5 0.1 0.1", "allowed: shares of the image"),
        ("0 -0.2 0.5 0.1 0.1", "allowed: shares of the image"),
    ],
)
def test_faults_of_labels(tmp_path: Path, line: str, message: str) -> None:
    file = write_yolo(tmp_path)
    (tmp_path / "labels/train/b.txt").write_text(f"\n{line}\n")
    found = refusal(register(file))
    assert f"'{tmp_path}/labels/train/b.txt', line 2: " in found and message in found


def test_a_label_may_leave_its_image_by_rounding(tmp_path: Path) -> None:
    file = write_yolo(tmp_path)
    (tmp_path / "labels/train/b.txt").write_text("0 1.005 0.5 0.1 0.1\n")
    assert inspect_dataset(register(file), BOTH).objects == 3


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    file = write_yolo(tmp_path)
    path = tmp_path / "images/train/b.jpg"
    cv2.imwrite(str(path), np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8))
    name = register(file)
    assert labels_of(name)[1] == [("cat", [2 * v for v in OBJECTS["b"][0][1]])]
    path.write_bytes(b"no image")
    assert "b.jpg' cannot be read: UnidentifiedImageError" in refusal(name)


def test_coco_s_metric_has_the_boxes(tmp_path: Path) -> None:
    name = register(write_yolo(tmp_path), "val")
    evaluator = build_evaluator(name, str(tmp_path / "out"))
    found = [x["bbox"] for x in evaluator._coco_api.dataset["annotations"]]
    assert found == [[8, 10, 32, 24], [44, 4, 16, 26], [30, 16, 32, 30]]
    assert MetadataCatalog.get(name).get("json_file") is None
