"""VOC's XML as labelling tools write it, and VOC's metric on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.structures import Boxes, Instances

from doublehead_d2.data.contents import inspect_dataset
from doublehead_d2.data.findings import Use
from doublehead_d2.data.layouts.voc import VocDataset
from doublehead_d2.data.registration import own_dataset, register_datasets
from doublehead_d2.evaluation import build_evaluator
from own_data import HEIGHT, OBJECTS, WIDTH, write_images, write_voc
from places import CLASSES, Place, replace

pytestmark = pytest.mark.usefixtures("catalogs")

TRAINING = Use(training=True, skips_empty=False)
BOTH = Use(training=True, evaluation="pascal_voc", skips_empty=False)


def register(folder: Path, split: str = "", **fields: object) -> str:
    name = f"test_{folder.name}_{len(DatasetCatalog.list())}"
    register_datasets(
        {name: {"layout": "voc", "folder": str(folder), "split": split, **fields}}, "."
    )
    return name


def labels_of(name: str) -> list[list[tuple[str, list[float]]]]:
    names = MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    return [
        [(names.thing_classes[x["category_id"]], x["bbox"]) for x in record["annotations"]]
        for record in records
    ]


# -- folders ---------------------------------------------------------------------------------------


def test_voc_s_own_folders_give_what_detectron2_reads(place: Place) -> None:
    theirs = place.voc()
    for split, name in zip(("trainval", "test"), theirs, strict=True):
        ours = register(place.folder / "voc_1", split)
        expected, found = DatasetCatalog.get(name), DatasetCatalog.get(ours)
        assert [{**x, "image_id": str(x["image_id"])} for x in expected] == found
        assert MetadataCatalog.get(ours).thing_classes == CLASSES
        assert inspect_dataset(ours, BOTH).notes == []


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("JPEGImages", "Annotations"), ("images", "annotations"), ("", ""), ("images", "labels")],
)
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".JPG"])
def test_folders_without_lists(tmp_path: Path, images: str, annotations: str, suffix: str) -> None:
    write_voc(tmp_path, images, annotations, suffix)
    name = register(tmp_path)
    assert labels_of(name) == list(OBJECTS.values())
    files = [Path(x["file_name"]) for x in DatasetCatalog.get(name)]
    assert files == [tmp_path / images / f"{x}{suffix}" for x in "abc"]
    contents = inspect_dataset(name, BOTH)
    assert contents.classes == ["cat", "dog"] and contents.objects == 3 and contents.notes == []


def test_splits_that_are_folders_have_the_same_classes(tmp_path: Path) -> None:
    write_voc(tmp_path / "train")
    write_voc(tmp_path / "valid", "images", "annotations")
    for name in "ac":
        (tmp_path / f"valid/annotations/{name}.xml").unlink()
    train, valid = register(tmp_path, "train"), register(tmp_path, "valid")
    assert labels_of(train) == list(OBJECTS.values()) and labels_of(valid) == [OBJECTS["b"]]
    assert MetadataCatalog.get(valid).thing_classes == ["cat", "dog"]
    (note, unseen) = inspect_dataset(valid, BOTH).notes
    assert "images without an XML file, which are left out: 2, the first is" in note
    assert note.endswith(f"'{tmp_path}/valid/images/a.jpg'.")
    assert "it has no object of ['dog']: VOC's metric gives each of them AP 0, and that" in unseen


def test_lists_name_images(tmp_path: Path) -> None:
    write_voc(tmp_path, "JPEGImages", "Annotations")
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("b\n\n")  # a single one; detectron2 reads two or more
    (lists / "train.txt").write_text("a.jpg\nc.jpg\n")
    assert labels_of(register(tmp_path, "val")) == [OBJECTS["b"]]
    assert labels_of(register(tmp_path, "train")) == [OBJECTS["a"], []]
    (lists / "dog_val.txt").write_text("a 1\nb -1\n")
    with pytest.raises(ValueError, match="has the line 'a 1', as the lists of a single class do"):
        inspect_dataset(register(tmp_path, "dog_val"), BOTH)
    (lists / "more.txt").write_text("a\nd\n")
    with pytest.raises(ValueError, match=r"d.xml': No such file"):
        inspect_dataset(register(tmp_path, "more"), BOTH)


def test_a_split_that_is_none(tmp_path: Path) -> None:
    write_voc(tmp_path / "train")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    with pytest.raises(ValueError) as error:
        inspect_dataset(register(tmp_path, "test"), BOTH)
    assert "there is no split 'test', neither the list" in str(error.value)
    assert str(error.value).endswith("allowed: 'train', 'val', or none, for all of the folder")


def test_folders_of_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    with pytest.raises(ValueError, match="there is no XML file of an image in"):
        inspect_dataset(register(tmp_path), TRAINING)


def test_images_of_one_stem(tmp_path: Path) -> None:
    write_voc(tmp_path, suffix=".png")
    write_images(tmp_path, suffix=".jpg")
    files = [x["file_name"] for x in DatasetCatalog.get(register(tmp_path))]
    assert files == [f"{tmp_path}/{x}.png" for x in "abc"]  # as <filename> says


def test_an_annotation_that_was_renamed(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "c.xml").rename(tmp_path / "z.xml")
    assert DatasetCatalog.get(register(tmp_path))[2]["file_name"] == f"{tmp_path}/c.jpg"
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(ValueError, match="z.jpg' is not there"):
        inspect_dataset(register(tmp_path), TRAINING)


# -- files -----------------------------------------------------------------------------------------


def test_sizes_that_are_left_out(tmp_path: Path) -> None:
    write_voc(tmp_path)
    replace(tmp_path / "a.xml", f"<width>{WIDTH}", "<width>0")
    replace(tmp_path / "b.xml", f"<height>{HEIGHT}</height>", "")
    name = register(tmp_path)
    (note,) = inspect_dataset(name, TRAINING).notes
    assert "images without <size>, which was read from the files: 2" in note
    assert {(x["width"], x["height"]) for x in DatasetCatalog.get(name)} == {(WIDTH, HEIGHT)}
    replace(tmp_path / "c.xml", f"<width>{WIDTH}", "<width>50")
    with pytest.raises(ValueError, match="has 64 x 48 pixels, annotated are 50 x 48"):
        inspect_dataset(name, TRAINING)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>dog</name>", "", "an object has no <name>"),
        (
            "<xmin>9</xmin>",
            "",
            r"an object has the box \[None, '11', '40', '34'\]; allowed: finite",
        ),
        ("<xmin>9", "<xmin>left", r"an object has the box \['left', "),
        ("<xmin>9", "<xmin>nan", r"an object has the box \['nan', "),
        ("<xmin>9", "<xmin>1e30", r"an object has the box \['1e30', "),
        ("</annotation>", "", "a.xml': no element found|unclosed token"),
        ("<name>dog", "<difficult>perhaps</difficult><name>dog", "has <difficult> 'perhaps'"),
        (f"<width>{WIDTH}", "<width>wide", "<size> is wide x 48; allowed: whole numbers"),
    ],
)
def test_faults_of_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_voc(tmp_path)
    replace(tmp_path / "a.xml", old, new)
    name = register(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        inspect_dataset(name, BOTH)
    assert f"{tmp_path}/a.xml" in str(error.value)
    with pytest.raises(ValueError, match=message):
        DatasetCatalog.get(name)


def test_outlines_and_keypoints_are_not_in_voc(tmp_path: Path) -> None:
    write_voc(tmp_path)
    name = register(tmp_path)
    with pytest.raises(ValueError, match="has no outline, which MODEL.MASK_ON True needs"):
        inspect_dataset(name, Use(training=True, mask_format="polygon"))
    with pytest.raises(ValueError, match="it has no keypoints, which MODEL.KEYPOINT_ON True needs"):
        inspect_dataset(name, Use(training=True, keypoints=True))


def test_boxes_without_area(tmp_path: Path) -> None:
    write_voc(tmp_path)
    replace(tmp_path / "b.xml", "<xmax>62", "<xmax>30")  # from 30 on, counted from 0
    (note,) = inspect_dataset(register(tmp_path), TRAINING).notes
    assert f"annotations without area in their image, {'which training leaves out'}" in note
    assert note.endswith(f"1, the first is an object of '{tmp_path}/b.jpg'.")


# -- the metric ------------------------------------------------------------------------------------


def score(name: str, folder: Path, missed: int = 0) -> dict[str, float]:
    """AP of detections that are the objects themselves, but for the first `missed` of them."""
    evaluator = build_evaluator(name, str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        annotations = record["annotations"]
        kept = annotations[missed:]
        missed = max(0, missed - len(annotations))
        detections = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(torch.tensor([x["bbox"] for x in kept]).reshape(-1, 4)),
            scores=torch.full((len(kept),), 0.9),
            pred_classes=torch.tensor([x["category_id"] for x in kept], dtype=torch.int64),
        )
        evaluator.process([record], [{"instances": detections}])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("evaluator", ["pascal_voc", "coco"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: None,
        lambda folder: (folder / "a.xml").rename(folder / "a first.xml"),  # a name of two words
        lambda folder: replace(folder / "a.xml", "<xmin>9<", "<xmin>9.2<"),
    ],
)
def test_both_metrics_score_what_tools_write(
    tmp_path: Path, evaluator: str, edit: Callable[[Path], object]
) -> None:
    write_voc(tmp_path)
    edit(tmp_path)
    name = register(tmp_path, evaluator=evaluator, rename={"dog": "large dog"})
    assert inspect_dataset(name, Use(training=True, evaluation=evaluator)).notes == []
    assert score(name, tmp_path / "out")["AP50"] == pytest.approx(100)
    # Without the only dog, one of two classes has AP 0.
    assert score(name, tmp_path / "out", missed=1)["AP50"] == pytest.approx(50)


def test_the_copy_that_voc_s_metric_reads(place: Place, tmp_path: Path) -> None:
    place.voc()
    name = register(place.folder / "voc_1", "test")
    own = own_dataset(name)
    assert isinstance(own, VocDataset)
    own.write_voc(str(tmp_path / "copy"))
    ids = (tmp_path / "copy/images.txt").read_text().split()
    assert ids == (place.folder / "voc_1/ImageSets/Main/test.txt").read_text().split()
    for image_id in ids:
        theirs, ours = (
            parse_rec(f"{folder}/Annotations/{image_id}.xml")
            for folder in (place.folder / "voc_1", tmp_path / "copy")
        )
        assert [(x["name"], x["bbox"], x["difficult"]) for x in theirs] == [
            (x["name"], x["bbox"], x["difficult"]) for x in ours
        ]


def test_difficult_objects_are_not_counted_by_voc_s_metric(tmp_path: Path) -> None:
    write_voc(tmp_path)
    replace(tmp_path / "a.xml", "<name>cat", "<difficult>1</difficult><name>cat")
    name = register(tmp_path)
    assert inspect_dataset(name, BOTH).objects == 2
    assert inspect_dataset(name, TRAINING).objects == 3
    # The only dog and a difficult cat are missed, the other cat is found.
    assert score(name, tmp_path, missed=2)["AP50"] == pytest.approx(50)
    for file in tmp_path.glob("*.xml"):
        file.write_text(file.read_text().replace("<difficult>1</difficult>", "").replace(
            "<name>", "<difficult>1</difficult><name>"))  # fmt: skip
    with pytest.raises(ValueError, match="it has no object to score detections against"):
        inspect_dataset(register(tmp_path), BOTH)


def test_a_class_that_voc_s_metric_cannot_write(tmp_path: Path) -> None:
    write_voc(tmp_path)
    name = register(tmp_path, rename={"dog": "dog/puppy"})
    with pytest.raises(
        ValueError, match="has the class 'dog/puppy', and VOC's metric writes a file"
    ):
        inspect_dataset(name, BOTH)
    assert inspect_dataset(name, TRAINING).notes == []


def test_a_conversion_is_never_stale(tmp_path: Path) -> None:
    write_voc(tmp_path)
    name = register(tmp_path, evaluator="coco")
    build_evaluator(name, str(tmp_path))
    replace(tmp_path / "b.xml", "<xmin>31", "<xmin>41")
    evaluator = build_evaluator(name, str(tmp_path))
    boxes = [x["bbox"] for x in evaluator._coco_api.dataset["annotations"]]
    assert boxes[2] == [40, 16, 22, 30] and MetadataCatalog.get(name).get("json_file") is None
