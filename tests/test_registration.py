"""Own data sets by name: what entries say, where their files are, and what may share a name."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.config import check_config
from doublehead_d2.data import check_datasets
from doublehead_d2.data.entries import Entry, as_value, locate, read_entry
from doublehead_d2.data.registration import (
    add_datasets,
    own_dataset,
    parse_dataset,
    register_datasets,
)
from doublehead_d2.engine import Trainer, argument_parser, check_run, complete_config, setup
from own_data import NAMES, OBJECTS, coco_data, write_coco, write_voc, write_yolo

pytestmark = pytest.mark.usefixtures("catalogs")


# -- entries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("coco:a.json:images", Entry("coco", annotations="a.json", images="images")),
        ("coco:a/b.json", Entry("coco", annotations="a/b.json")),
        ("voc:folder:train", Entry("voc", folder="folder", split="train")),
        ("voc:folder", Entry("voc", folder="folder")),
        ("yolo:data.yaml:val", Entry("yolo", annotations="data.yaml", split="val")),
        (
            {"layout": "coco", "annotations": r"C:\a.json", "boxes": "xyxy"},
            Entry("coco", annotations=r"C:\a.json", boxes="xyxy"),
        ),
        (
            "{layout: voc, folder: f, year: 2012, evaluator: coco, classes: [1, b], "
            "rename: {2: b}}",
            Entry("voc", folder="f", year=2012, evaluator="coco", classes=("1", "b"),
                  rename={"2": "b"}),
        ),
    ],
)  # fmt: skip
def test_entries(value: Any, expected: Entry) -> None:
    assert read_entry("mine", value) == expected
    # What a config says for it reads the same, from YAML, too.
    assert read_entry("mine", as_value(expected)) == expected
    written = yaml.safe_dump({"mine": as_value(expected)})
    assert read_entry("mine", yaml.safe_load(written)["mine"]) == expected


REFUSED: list[tuple[Any, str]] = [
    ("coca:a.json", "is 'coca:a.json'; allowed: coco:ANNOTATIONS.json:IMAGES, voc:FOLDER:SPLIT, y"),
    (r"coco:C:\a.json:D:\images", r"with 4 parts behind 'coco'.*\{layout: coco, annotations: '"),
    (["coco"], r"is \['coco'\]; allowed: coco:.*, or a mapping"),
    ({"layout": "csv"}, "has the layout 'csv'; allowed: 'coco', 'voc', 'yolo'"),
    ({"annotations": "a"}, "has the layout None"),
    ("{layout: coco", "which is no YAML"),
    ("coco:", "has no 'annotations'; allowed: coco:"),
    ("yolo:data.yaml", "has no 'split'; allowed: yolo:data.yaml:SPLIT"),
    ({"layout": "voc"}, "has no 'folder'"),
    ({"layout": "voc", "folder": "f", "boxes": "xyxy"}, "has 'boxes', which the layout 'voc' does"),
    ({"layout": "yolo", "annotations": "a", "split": "b", "evaluator": "pascal_voc"},
     "has evaluator 'pascal_voc'; allowed: 'coco'"),
    ({"layout": "coco", "annotations": "a", "boxes": "xxyy"}, "has boxes 'xxyy'; allowed: 'xywh'"),
    ({"layout": "voc", "folder": "f", "year": 2010}, "has year 2010; allowed: 2007, 2012"),
    ({"layout": "voc", "folder": "f", "classes": "cat"}, "has classes 'cat'; allowed: a list"),
    ({"layout": "voc", "folder": "f", "classes": ["a", "a"]}, "has 'a' in classes twice"),
    ({"layout": "voc", "folder": "f", "classes": [True]}, "has True in classes; allowed: names"),
    ({"layout": "voc", "folder": "f", "rename": ["a"]}, r"has rename \['a'\]; allowed: a mapping"),
    ({"layout": "voc", "folder": 3}, "has folder 3; allowed: a word"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_entries_that_are_none(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_entry("mine", value)
    assert str(error.value).startswith("DATASETS.REGISTER.mine ")


@pytest.mark.parametrize("text", ["mine", "=coco:a.json", "mine=", ""])
def test_a_command_line_without_a_pair(text: str) -> None:
    with pytest.raises(ValueError, match=f"--dataset is '{text}'; allowed: NAME=TEXT, TEXT coco:"):
        parse_dataset(text)


def test_a_pair_of_a_command_line() -> None:
    # The first "=" divides; paths may have others.
    assert parse_dataset("mine=coco:a=b.json") == ("mine", "coco:a=b.json")
    with pytest.raises(ValueError, match=r"DATASETS.REGISTER.mine is 'a.json'; allowed"):
        parse_dataset("mine=a.json")


# -- places ----------------------------------------------------------------------------------------


def test_paths_start_from_the_file_and_then_from_the_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    for folder in (here, root):
        folder.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    (root / "a.json").touch()
    entry, looked_at = locate(read_entry("x", "coco:a.json:b"), str(here))
    assert entry.annotations == str(root / "a.json")
    assert entry.images == str(here / "b")  # at neither: the first
    assert looked_at[str(here / "b")] == [str(here / "b"), str(root / "b")]
    (here / "a.json").touch()
    entry, _ = locate(read_entry("x", "coco:a.json:b"), str(here))
    assert entry.annotations == str(here / "a.json")
    # An absolute path is looked for where it says.
    again, looked_at = locate(entry, "/elsewhere")
    assert again == entry and looked_at[entry.annotations] == [entry.annotations]


def test_all_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    register_datasets({"test_lost": "coco:a.json:b"}, str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        check_datasets(["test_lost"])
    assert str(error.value).startswith(
        f"Data set 'test_lost': there is no file {tmp_path}/a.json or {tmp_path}/root/a.json."
    )
    assert "DETECTRON2_DATASETS, which is" in str(error.value)


def test_a_data_set_that_was_missing_may_come_later(tmp_path: Path) -> None:
    register_datasets({"test_later": f"coco:{tmp_path}/nowhere.json"}, ".")
    entry = write_coco(tmp_path)
    register_datasets({"test_later": entry}, ".")
    assert len(DatasetCatalog.get("test_later")) == 3


# -- names -----------------------------------------------------------------------------------------


def test_registering_twice_and_otherwise(tmp_path: Path) -> None:
    register = CfgNode(new_allowed=True)
    entry = write_coco(tmp_path)
    add_datasets(register, [f"test_twice={entry}"])
    first = own_dataset("test_twice")
    add_datasets(register, [f"test_twice={entry}"])
    register_datasets(register, "/elsewhere")
    assert own_dataset("test_twice") is first and register.test_twice == entry
    with pytest.raises(ValueError, match="test_twice is 'coco:.*', and the name stands for 'coco:"):
        add_datasets(register, [f"test_twice=coco:{tmp_path}/labels.json"])
    with pytest.raises(ValueError, match="REGISTER.shapes_train: a data set of this name is built"):
        add_datasets(register, [f"shapes_train={entry}"])


def test_metadata(tmp_path: Path) -> None:
    entry, file = write_coco(tmp_path / "coco"), write_yolo(tmp_path / "yolo")
    write_voc(tmp_path / "voc")
    register = {
        "test_coco": entry,
        "test_voc": {"layout": "voc", "folder": f"{tmp_path}/voc", "year": 2012},
        "test_voc_coco": {"layout": "voc", "folder": f"{tmp_path}/voc", "evaluator": "coco"},
        "test_yolo": f"yolo:{file}:val",
    }
    register_datasets(register, ".")
    coco, voc, other, yolo = map(MetadataCatalog.get, register)
    assert coco.json_file == f"{tmp_path}/coco/labels.json"
    assert coco.image_root == f"{tmp_path}/coco/images"
    assert (voc.dirname, voc.split, voc.year) == (f"{tmp_path}/voc", "", 2012)
    assert (yolo.data_file, yolo.split) == (file, "val")
    types = [x.evaluator_type for x in (coco, voc, other, yolo)]
    assert types == ["coco", "pascal_voc", "coco", "coco"]


# -- configs ---------------------------------------------------------------------------------------


def write_config(path: Path, base: str, register: object, **datasets: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"_BASE_": base, "DATASETS": {"REGISTER": register, **datasets}}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_config_states_its_data_and_each_file_its_paths(tmp_path: Path) -> None:
    write_coco(tmp_path / "one" / "data")
    write_coco(tmp_path / "two" / "data")
    tiny = model_zoo.get_config_file(TINY_EXT)
    write_config(
        tmp_path / "one/base.yaml", tiny, {"test_one": "coco:data/labels.json:data/images"}
    )
    path = write_config(
        tmp_path / "two/config.yaml",
        "../one/base.yaml",
        {
            "test_two": {
                "layout": "coco",
                "annotations": "data/labels.json",
                "images": "data/images",
            }
        },
        TRAIN="test_one",
        TEST=["test_one", "test_two"],
    )
    cfg = model_zoo.get_config(path)
    for name, folder in (("test_one", "one"), ("test_two", "two")):
        expected = f"coco:{tmp_path}/{folder}/data/labels.json:{tmp_path}/{folder}/data/images"
        assert cfg.DATASETS.REGISTER[name] == expected
        file = DatasetCatalog.get(name)[0]["file_name"]
        assert file == f"{tmp_path}/{folder}/data/images/a.jpg"
    # What a training writes is read anywhere, in a process that knows nothing.
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text(cfg.dump())
    for name in ("test_one", "test_two"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    again = model_zoo.get_config(str(tmp_path / "out/config.yaml"))
    assert again.DATASETS.REGISTER == cfg.DATASETS.REGISTER
    assert len(DatasetCatalog.get("test_two")) == 3


def words(folder: Path, *datasets: str, train: str, test: str, opts: tuple = ()) -> list[str]:
    given = [word for text in datasets for word in ("--dataset", text)]
    names = ["DATASETS.TRAIN", train, "DATASETS.TEST", test]
    output = ["OUTPUT_DIR", str(folder / "output"), "MODEL.DEVICE", "cpu"]
    return ["--config-file", TINY_EXT, *given, *names, *output, *map(str, opts)]


AS_DATA = ("MODEL.ROI_HEADS.NUM_CLASSES", 0)


def test_a_command_line_states_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data")
    write_voc(tmp_path / "voc")
    given = (
        "test_train=coco:data/labels.json:data/images",
        "test_val={layout: voc, folder: voc, classes: [dog, cat]}",
    )
    args = words(tmp_path, *given, train="test_train", test="test_val", opts=AS_DATA)
    cfg = setup(argument_parser().parse_args(args))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2 and cfg.DATASETS.CLASS_NAMES == NAMES
    written = yaml.safe_load((tmp_path / "output/config.yaml").read_text())
    assert written["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 2
    assert written["DATASETS"]["REGISTER"] == {
        "test_train": f"coco:{tmp_path}/data/labels.json:{tmp_path}/data/images",
        "test_val": {"layout": "voc", "folder": f"{tmp_path}/voc", "classes": ["dog", "cat"]},
    }
    log = (tmp_path / "output/log.txt").read_text()
    assert "NUM_CLASSES 0 is 2, the number of classes of DATASETS.TRAIN: dog, cat" in log


# -- classes ---------------------------------------------------------------------------------------


def cfg_of(folder: Path, train: object = (), test: object = (), *opts: object) -> CfgNode:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (
        (x,) if isinstance(x, str) else tuple(x) for x in (train, test)
    )
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(folder / "output"), "cpu"
    cfg.merge_from_list([*AS_DATA, *opts])
    return cfg


def test_another_number_of_classes_is_refused_with_the_way_out(tmp_path: Path) -> None:
    register_datasets({"test_two_classes": write_coco(tmp_path)}, ".")
    cfg = cfg_of(tmp_path, "test_two_classes", (), "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    with pytest.raises(ValueError) as error:
        check_run(cfg)
    assert str(error.value) == (
        "MODEL.ROI_HEADS.NUM_CLASSES is 80, but data set 'test_two_classes' has 2 classes: "
        "dog, cat; allowed: MODEL.ROI_HEADS.NUM_CLASSES 2, or 0, which takes as many as the data "
        "has"
    )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    check_run(cfg)
    assert complete_config(cfg).MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_an_evaluation_has_the_classes_of_its_weights_or_else_of_its_data(tmp_path: Path) -> None:
    register_datasets({"test_evaluated": write_coco(tmp_path)}, ".")
    cfg = cfg_of(tmp_path, (), "test_evaluated")
    check_run(cfg, eval_only=True)
    assert complete_config(cfg, eval_only=True).MODEL.ROI_HEADS.NUM_CLASSES == 2
    # Those of the weights come first, and must be those of the data.
    (tmp_path / "model.pth").touch()
    own = cfg_of(tmp_path)
    own.DATASETS.CLASS_NAMES = ["dog", "cat", "cow"]
    (tmp_path / "config.yaml").write_text(own.dump())
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    assert complete_config(cfg, eval_only=True).MODEL.ROI_HEADS.NUM_CLASSES == 3
    with pytest.raises(
        ValueError, match=r"the line `classes: \[dog, cat, cow\]` in the entry does"
    ):
        check_run(cfg, eval_only=True)


def test_no_model_of_no_classes(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", model_zoo.get_config_file(TINY_EXT), {})
    text = Path(path).read_text() + "MODEL: {ROI_HEADS: {NUM_CLASSES: 0}}\n"
    Path(path).write_text(text)
    with pytest.raises(ValueError, match="NUM_CLASSES is 0, as many as the data has, and no data"):
        model_zoo.get(path)
    cfg = cfg_of(tmp_path)
    with pytest.raises(ValueError, match="NUM_CLASSES is 0, .*complete_config fills it in"):
        Trainer(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = -1
    with pytest.raises(ValueError, match=r"NUM_CLASSES is -1; allowed: 0 \(as the data\) or more"):
        check_config(cfg)


def register_two(tmp_path: Path, **second: object) -> CfgNode:
    write_coco(tmp_path)
    other = coco_data()
    for category in other["categories"]:  # the other way round: cat, dog
        category["id"] = {3: 7, 7: 3}[category["id"]]
    for annotation in other["annotations"]:
        annotation["category_id"] = {3: 7, 7: 3}[annotation["category_id"]]
    write_coco(tmp_path / "other", other)
    register_datasets(
        {
            "test_first": f"coco:{tmp_path}/labels.json:{tmp_path}/images",
            "test_second": {
                "layout": "coco",
                "annotations": f"{tmp_path}/other/labels.json",
                "images": f"{tmp_path}/other/images",
                **second,
            },
        },
        ".",
    )
    return cfg_of(tmp_path, ("test_first", "test_second"), ())


def test_concatenated_sets_of_another_order_are_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"order differs.*the line `classes: \[dog, cat\]` in the e"
    ):
        check_run(register_two(tmp_path))


def test_the_line_does_it(tmp_path: Path) -> None:
    cfg = register_two(tmp_path, classes=["dog", "cat"])
    check_run(cfg)
    first, second = map(DatasetCatalog.get, ("test_first", "test_second"))
    classes = [[x["category_id"] for image in data for x in image["annotations"]]
               for data in (first, second)]  # fmt: skip
    assert classes == [[0, 1, 1], [0, 1, 1]]


def test_sets_of_other_names_are_refused_with_the_renaming(tmp_path: Path) -> None:
    data = coco_data()
    data["categories"][0]["name"] = "kitten"  # "cat", of id 7
    entry = write_coco(tmp_path / "other", data)
    register_datasets({"test_a": write_coco(tmp_path), "test_b": entry}, ".")
    with pytest.raises(
        ValueError, match=r"same names, as the line `rename: \{kitten: cat\}` in its"
    ):
        check_run(cfg_of(tmp_path, ("test_a", "test_b")))
    layout, annotations, images = entry.split(":")
    mapping = {"layout": layout, "annotations": annotations, "images": images}
    register_datasets({"test_c": {**mapping, "rename": {"kitten": "cat"}}}, ".")
    check_run(cfg_of(tmp_path, ("test_a", "test_c")))
    assert MetadataCatalog.get("test_c").thing_classes == NAMES


def test_several_names_become_one(tmp_path: Path) -> None:
    write_voc(tmp_path)
    entry = {"layout": "voc", "folder": str(tmp_path), "rename": {"dog": "pet", "cat": "pet"}}
    register_datasets({"test_pets": entry}, ".")
    records = DatasetCatalog.get("test_pets")
    assert [x["category_id"] for r in records for x in r["annotations"]] == [0, 0, 0]
    assert MetadataCatalog.get("test_pets").thing_classes == ["pet"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rename": {"cow": "cat"}},
            r"`rename` of its entry has 'cow'; allowed: the classes of the",
        ),
        (
            {"classes": ["dog"]},
            r"has the class 'cat', which `classes` of its entry, \['dog'\], lack",
        ),
    ],
)
def test_classes_that_do_not_suit_the_data(tmp_path: Path, fields: dict, message: str) -> None:
    entry = write_coco(tmp_path / "coco").split(":")
    write_voc(tmp_path / "voc")
    register = {
        "test_c": {"layout": "coco", "annotations": entry[1], "images": entry[2], **fields},
        "test_v": {"layout": "voc", "folder": str(tmp_path / "voc"), **fields},
        "test_y": {
            "layout": "yolo",
            "annotations": write_yolo(tmp_path / "yolo"),
            "split": "val",
            **fields,
        },
    }
    register_datasets(register, ".")
    for name in register:
        with pytest.raises(ValueError, match=message) as error:
            check_run(cfg_of(tmp_path, name))
        assert str(error.value).startswith(f"Data set '{name}' (")


def test_an_evaluator_that_nobody_has_named_is_refused_before_the_training(tmp_path: Path) -> None:
    from detectron2.data.datasets import register_pascal_voc

    register_datasets({"test_trained": write_coco(tmp_path)}, ".")
    register_pascal_voc("test_no_evaluator", str(tmp_path), "val", 2007, NAMES)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\nb\n")
    with pytest.raises(
        ValueError, match="'test_no_evaluator' has evaluator_type None; allowed: 'c"
    ):
        check_run(cfg_of(tmp_path, "test_trained", "test_no_evaluator"))
    assert not os.path.exists(tmp_path / "output")


def test_the_three_layouts_say_the_same(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", "JPEGImages", "Annotations")
    register = {
        "test_in_coco": write_coco(tmp_path / "coco"),
        "test_in_voc": {
            "layout": "voc",
            "folder": str(tmp_path / "voc"),
            "classes": ["dog", "cat"],
            "evaluator": "coco",
        },
        "test_in_yolo": f"yolo:{write_yolo(tmp_path / 'yolo')}:train",
    }
    register_datasets(register, ".")
    assert check_run(cfg_of(tmp_path, tuple(register), tuple(register))) == [
        f"Data set 'test_in_yolo' ({tmp_path}/yolo/data.yaml): images without a file of labels, "
        "taken as without objects: 1."
    ]
    expected = [[(NAMES.index(label), box) for label, box in x] for x in OBJECTS.values()]
    for name in register:
        found = []
        for record in DatasetCatalog.get(name):
            assert (record["width"], record["height"]) == (64, 48)
            assert Path(record["file_name"]).is_file()
            boxes = []
            for x in record["annotations"]:
                a, b, c, d = (float(value) for value in x["bbox"])
                is_xywh = x["bbox_mode"] == 1
                box = [a, b, a + c, b + d] if is_xywh else [a, b, c, d]
                boxes.append((x["category_id"], [round(value, 6) for value in box]))
            found.append(boxes)
        assert found == expected, name
