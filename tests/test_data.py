"""Registration of the shapes data set, the check that data sets are there, and evaluation on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks

from doublehead_d2.data import check_datasets, register_shapes, write_shapes
from doublehead_d2.data.shapes.builtin import datasets_root, shapes_root
from doublehead_d2.data.shapes.easy import SHAPES_CLASSES

COUNTS = {"num_train": 6, "num_val": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    assert write_shapes(root, **COUNTS)
    return root


@pytest.fixture
def small(catalogs: None, data: Path) -> str:
    """The prefix under which a small copy that exists is registered."""
    register_shapes(str(data), "small")
    return "small"


# -- registration ------------------------------------------------------------------------------


def test_builtin_names_are_registered() -> None:
    for split in ("train", "val"):
        metadata = MetadataCatalog.get(f"shapes_{split}")
        assert metadata.evaluator_type == "coco"
        assert metadata.json_file.endswith(f"shapes/coco/annotations/instances_{split}.json")
        assert metadata.image_root.endswith(f"shapes/coco/{split}")
        assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    for split in ("trainval", "test"):
        metadata = MetadataCatalog.get(f"shapes_voc_{split}")
        assert (metadata.evaluator_type, metadata.year) == ("pascal_voc", 2007)
        assert (metadata.dirname.endswith("shapes/voc"), metadata.split) == (True, split)
    for name in ("shapes_train", "shapes_val", "shapes_voc_trainval", "shapes_voc_test"):
        assert name in DatasetCatalog
        # Known before anything is loaded: a demo needs the names, not the images.
        assert MetadataCatalog.get(name).thing_classes == ["circle", "rectangle", "triangle"]


def test_root_is_detectron2s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert (datasets_root(), shapes_root()) == ("datasets", "datasets/shapes")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert shapes_root() == "/home/somebody/data/shapes"


def test_layouts_agree(small: str) -> None:
    for coco_split, voc_split in (("train", "trainval"), ("val", "test")):
        coco = DatasetCatalog.get(f"{small}_{coco_split}")
        voc = DatasetCatalog.get(f"{small}_voc_{voc_split}")
        assert len(coco) == len(voc) == COUNTS[f"num_{coco_split}"]
        for one, other in zip(coco, voc, strict=True):
            assert Path(one["file_name"]).read_bytes() == Path(other["file_name"]).read_bytes()
            assert (one["height"], one["width"]) == (other["height"], other["width"])
            assert len(one["annotations"]) == len(other["annotations"])
            for a, b in zip(one["annotations"], other["annotations"], strict=True):
                assert a["category_id"] == b["category_id"]
                box = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                np.testing.assert_allclose(box, b["bbox"], rtol=0, atol=0.51)


# -- the check -----------------------------------------------------------------------------------


def test_check_accepts_what_is_there(small: str) -> None:
    check_datasets([f"{small}_train", f"{small}_val", f"{small}_voc_trainval", f"{small}_voc_test"])
    check_datasets(f"{small}_train")
    check_datasets([])


def test_check_accepts_a_function_of_the_users(catalogs: None) -> None:
    DatasetCatalog.register("custom_boxes", lambda: [])
    check_datasets(["custom_boxes"])


def test_check_suggests_names(small: str) -> None:
    with pytest.raises(ValueError, match=r"'shapes_trian' is not registered.*shapes_train"):
        check_datasets([f"{small}_train", "shapes_trian"])
    with pytest.raises(ValueError, match=r"'zzzqqq' is not registered, nor is any similar name"):
        check_datasets(["zzzqqq"])


def missing(name: str) -> str:
    with pytest.raises(FileNotFoundError) as error:
        check_datasets([name])
    return str(error.value)


def test_check_says_what_is_expected_where(
    catalogs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_shapes(shapes_root(), "absent")
    lines = missing("absent_val").splitlines()
    assert lines == [
        f"Data set 'absent_val': there is no file {tmp_path}/shapes/coco/annotations/"
        "instances_val.json.",
        f"DETECTRON2_DATASETS is '{tmp_path}', here {tmp_path}.",
        "Expected layout: shapes/coco/annotations/instances_val.json and shapes/coco/val/.",
        "This command writes it: python -m doublehead_d2.tools.make_shapes",
    ]
    lines = missing("absent_voc_test").splitlines()
    assert lines[0].endswith(f"no file {tmp_path}/shapes/voc/ImageSets/Main/test.txt.")
    assert lines[2] == "Expected layout: shapes/voc/{Annotations,ImageSets,JPEGImages}."
    write_shapes(shapes_root(), num_train=2, num_val=2)
    check_datasets(["absent_val", "absent_voc_test"])
    for image in (tmp_path / "shapes/coco/val").iterdir():
        image.unlink()
    (tmp_path / "shapes/coco/val").rmdir()
    (tmp_path / "shapes/voc/JPEGImages").rename(tmp_path / "elsewhere")
    assert f"no folder {tmp_path}/shapes/coco/val.\n" in missing("absent_val")
    assert f"no folder {tmp_path}/shapes/voc/JPEGImages.\n" in missing("absent_voc_test")


def test_check_of_coco_and_voc(
    catalogs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As detectron2 registers its own data sets while the variable is not set.
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    json_file = "datasets/coco/annotations/instances_train2017.json"
    register_coco_instances("coco_again_train", {}, json_file, "datasets/coco/train2017")
    register_pascal_voc("voc_again_test", "datasets/VOC2007", "test", 2007)
    lines = missing("coco_again_train").splitlines()
    place = f"{tmp_path}/datasets"
    assert lines == [
        "Data set 'coco_again_train': there is no file "
        f"{place}/coco/annotations/instances_train2017.json.",
        f"DETECTRON2_DATASETS is not set, which means ./datasets, here {place}.",
        "Expected layout: coco/annotations/instances_train2017.json and coco/train2017/.",
    ]
    lines = missing("voc_again_test").splitlines()
    assert lines[0].endswith(f"{place}/VOC2007/ImageSets/Main/test.txt.")
    assert lines[2:] == ["Expected layout: VOC2007/{Annotations,ImageSets,JPEGImages}."]


def test_check_of_a_copy_elsewhere(catalogs: None, tmp_path: Path) -> None:
    register_shapes(f"{tmp_path}/copy", "copy")
    message = missing("copy_train")
    assert f"{tmp_path}/copy/coco/train/." in message
    assert message.endswith(f"make_shapes --output {tmp_path}/copy")


# -- evaluation --------------------------------------------------------------------------------


def perfect(record: dict) -> Instances:
    """The ground truth of an image, as predictions."""
    annotations = record["annotations"]
    size = (record["height"], record["width"])
    boxes = [
        BoxMode.convert(a["bbox"], BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS) for a in annotations
    ]
    instances = Instances(size, pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
    instances.scores = torch.linspace(0.9, 0.8, len(annotations))
    if "segmentation" in annotations[0]:
        instances.pred_masks = masks(annotations, size)
    return instances


def masks(annotations: list[dict], size: tuple[int, int]) -> torch.Tensor:
    polygons = PolygonMasks([a["segmentation"] for a in annotations])
    whole = torch.tensor([[0.0, 0.0, size[1], size[0]]]).expand(len(annotations), 4)
    return polygons.crop_and_resize(whole, size[0])


def evaluate(
    evaluator: COCOEvaluator | PascalVOCDetectionEvaluator, name: str, shift: float
) -> dict:
    """Scores the ground truth, moved to the right by `shift` pixels."""
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        instances = perfect(record)
        instances.pred_boxes.tensor += torch.tensor([shift, 0.0, shift, 0.0])
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


def test_coco_evaluator_on_perfect_predictions(small: str) -> None:
    evaluator = COCOEvaluator(f"{small}_val", ("bbox", "segm"), distributed=False)
    results = evaluate(evaluator, f"{small}_val", shift=0.0)
    for task in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP75", *(f"AP-{name}" for name in SHAPES_CLASSES)):
            assert results[task][key] == pytest.approx(100.0, abs=1e-6), (task, key)
    assert evaluate(evaluator, f"{small}_val", shift=200.0)["bbox"]["AP"] == 0.0


def test_voc_evaluator_on_perfect_predictions(small: str) -> None:
    evaluator = PascalVOCDetectionEvaluator(f"{small}_voc_test")
    results = evaluate(evaluator, f"{small}_voc_test", shift=0.0)["bbox"]
    assert results == pytest.approx({"AP": 100.0, "AP50": 100.0, "AP75": 100.0})
    assert evaluate(evaluator, f"{small}_voc_test", shift=200.0)["bbox"]["AP50"] == 0.0
