"""The data of a run: classes in one order everywhere, own functions, and when all of it is told."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from conftest import TINY_EXT
from doublehead_d2.data import write_shapes
from doublehead_d2.data.classes import Named, compare_classes
from doublehead_d2.engine import argument_parser, check_run, complete_config, launch, setup
from places import CLASSES, Data, Place, cfg_for, notes_of, refusal, set_in, without

OTHER_ORDER = ["rectangle", "triangle", "circle"]
NAN = float("nan")


def other_order(data: Data) -> None:
    """The same classes under other ids."""
    ids = {1: 3, 2: 1, 3: 2}
    for category in data["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in data["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]


# -- classes ---------------------------------------------------------------------------------------


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


def test_lists_of_different_lengths_are_not_compared_by_place() -> None:
    with pytest.raises(ValueError, match=r"A has .*, B has .*; allowed: the same classes in the"):
        compare_classes(Named("A", CLASSES), Named("B", CLASSES[:2]))


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
    (note,) = check_run(cfg)
    assert "under other names" in note


def test_a_resumed_training_goes_on_with_its_classes(place: Place) -> None:
    cfg = evaluation_cfg(place, "")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (place.coco("train", other_order),), ()
    cfg.OUTPUT_DIR = str(place.folder / "resumed")
    (note,) = check_run(cfg, resume=True)  # there is nothing to resume
    assert "under other names" in note
    shutil.copytree(place.folder / "trained", cfg.OUTPUT_DIR)
    (place.folder / "resumed" / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(ValueError, match="own config .* the order differs"):
        check_run(cfg, resume=True)
    assert check_run(cfg) == [note]


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


# -- own functions ---------------------------------------------------------------------------------


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


# -- the run ---------------------------------------------------------------------------------------


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
