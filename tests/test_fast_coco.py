"""hotcoco's numbers are pycocotools', to the last bit, or pycocotools computes them."""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.config import check_config
from doublehead_d2.config.coco_api import COCO_APIS, uses_hotcoco
from doublehead_d2.engine import Trainer, trainer
from doublehead_d2.evaluation import build_evaluator, fast_coco
from doublehead_d2.evaluation.ap70 import AP70COCOEvaluator
from doublehead_d2.evaluation.fast_coco import FastCOCOEvaluator

SIZE = 224  # large objects have 96 x 96 pixels
IMAGES, CATEGORIES = 12, (3, 7, 11)  # ids with gaps
KEYPOINTS = 5
SIGMAS = [0.025, 0.05, 0.1, 0.03, 0.2]
Data = dict[str, Any]


def polygon(rng: np.random.Generator, box: np.ndarray) -> list[float]:
    """Six corners around the middle of a box."""
    x, y, width, height = box
    angles = np.sort(rng.uniform(0, 2 * np.pi, 6))
    radii = rng.uniform(0.6, 1, (6, 2)) * (width / 2, height / 2)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii + (x + width / 2, y + height / 2)
    return [float(value) for value in points.clip(0, SIZE).flatten()]


def random_box(rng: np.random.Generator) -> np.ndarray:
    """XYWH, small, medium and large."""
    size = np.exp(rng.uniform(np.log(8), np.log(200), 2))
    return np.concatenate([rng.uniform(0, SIZE - size), size])


def random_data(seed: int = 0, keypoints: int = KEYPOINTS) -> Data:
    """Objects with polygons, masks and keypoints, crowds among them; an image has none."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, IMAGES):  # not of the last one
        for _ in range(rng.integers(2, 9)):
            box, crowd = random_box(rng), rng.random() < 0.15
            outline = polygon(rng, box)
            mask: Any = [outline]
            if crowd:
                rle = mask_util.merge(mask_util.frPyObjects([outline], SIZE, SIZE))
                pixels = mask_util.decode(rle).flatten(order="F")
                ends = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [-1]])))
                mask = {"size": [SIZE, SIZE], "counts": np.diff([0, *ends]).tolist()}
            points = rng.uniform(box[:2], box[:2] + box[2:], (keypoints, 2)).round(1)
            seen = rng.integers(0, 3, keypoints) * (rng.random() < 0.9)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(CATEGORIES[:2])),  # the third has no object
                    "bbox": [float(x) for x in box],
                    "area": float(box[2] * box[3] * rng.uniform(0.5, 1)),
                    "iscrowd": int(crowd),
                    "segmentation": mask,
                    "keypoints": np.concatenate([points, seen[:, None]], 1).flatten().tolist(),
                    "num_keypoints": int((seen > 0).sum()),
                }
            )
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIZE, "width": SIZE}
            for i in range(1, IMAGES + 1)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
        "annotations": annotations,
    }


def random_detections(data: Data, seed: int = 1, most: int = 30) -> dict[Any, Instances]:
    """Near objects and elsewhere, with equal scores; one image has none."""
    rng = np.random.default_rng(seed)
    found = {}
    for image in data["images"]:
        objects = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        count = 0 if image is data["images"][2] else int(rng.integers(1, most))
        boxes, masks, points, classes = [], [], [], []
        for index in range(count):
            box = random_box(rng)
            near = objects[index % len(objects)] if objects and index < 2 * len(objects) else None
            keypoints = rng.uniform(0, SIZE, (KEYPOINTS, 2))
            if near:
                box = (
                    np.array(near["bbox"])
                    + rng.normal(0, 0.06, 4) * np.array(near["bbox"])[2:].mean()
                )
                keypoints = np.reshape(near["keypoints"], (-1, 3))[:KEYPOINTS, :2]
                keypoints = keypoints + rng.normal(0, 3, keypoints.shape)
            box[2:] = box[2:].clip(2)
            rle = mask_util.merge(mask_util.frPyObjects([polygon(rng, box)], SIZE, SIZE))
            classes.append(
                CATEGORIES.index(near["category_id"]) if near and rng.random() < 0.8 else 2
            )
            boxes.append([*box[:2], *(box[:2] + box[2:])])
            masks.append(mask_util.decode(rle).astype(bool))
            points.append(np.concatenate([keypoints, np.ones((KEYPOINTS, 1))], 1))
        found[image["id"]] = Instances(
            (SIZE, SIZE),
            pred_boxes=Boxes(torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4)),
            scores=torch.tensor(rng.integers(0, 10, count) / 10, dtype=torch.float32),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
            pred_masks=torch.tensor(np.array(masks)).reshape(-1, SIZE, SIZE),
            pred_keypoints=torch.tensor(np.array(points)).reshape(count, KEYPOINTS, 3).float(),
        )
    return found


class Place:
    """Writes a data set and scores detections of it by both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"test_fast_coco_{folder.name}"

    def register(self, data: Data) -> None:
        path = self.folder / "annotations.json"
        path.write_text(json.dumps(data))
        register_coco_instances(self.name, {}, str(path), str(self.folder))
        MetadataCatalog.get(self.name).set(
            thing_classes=[f"class {i}" for i in CATEGORIES],
            thing_dataset_id_to_contiguous_id={i: n for n, i in enumerate(CATEGORIES)},
        )

    def score(
        self,
        api: str,
        detections: dict[Any, Instances],
        img_ids: list[Any] | None = None,
        **settings: Any,
    ) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
        """Results, and what the evaluator made them from, by task."""
        evaluator = build_evaluator(self.name, str(self.folder), api)
        assert isinstance(evaluator, COCOEvaluator)
        for key, value in settings.items():
            assert hasattr(evaluator, key)
            setattr(evaluator, key, value)
        seen = {}
        derive = evaluator._derive_coco_results

        def spy(coco_eval: Any, task: str, class_names: list[str] | None = None) -> Any:
            seen[task] = coco_eval
            return derive(coco_eval, task, class_names)

        evaluator._derive_coco_results = spy
        evaluator.reset()
        for image, instances in detections.items():
            fresh = instances.to("cpu")  # detectron2 moves keypoints in place
            if fresh.has("pred_keypoints"):
                fresh.pred_keypoints = fresh.pred_keypoints.clone()
            evaluator.process([{"image_id": image}], [{"instances": fresh}])
        return evaluator.evaluate(img_ids), seen

    def compare(self, detections: dict[Any, Instances], **more: Any) -> dict[str, dict[str, float]]:
        """The results, which both give alike; arrays included."""
        expected, theirs = self.score("pycocotools", detections, **more)
        found, ours = self.score("hotcoco", detections, **more)
        assert list(found) == list(expected)
        for task, metrics in expected.items():
            assert list(found[task]) == list(metrics)
            for name, value in metrics.items():
                both_nan = math.isnan(value) and math.isnan(found[task][name])
                assert both_nan or found[task][name] == value, (task, name)
            if theirs[task] is not None:
                assert np.array_equal(ours[task].stats, theirs[task].stats)
                for array in ("precision", "recall", "scores"):
                    assert np.array_equal(ours[task].eval[array], theirs[task].eval[array]), array
                assert ours[task].eval["counts"] == theirs[task].eval["counts"]
        return found


@pytest.fixture
def both(tmp_path: Path, catalogs: None) -> Place:
    return Place(tmp_path)


def without(detections: dict[Any, Instances], *fields: str) -> dict[Any, Instances]:
    for instances in detections.values():
        for field in fields:
            instances.remove(field)
    return detections


@pytest.fixture
def by_hotcoco(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that hotcoco has scored."""
    tasks: list[str] = []
    score = FastCOCOEvaluator._score

    def spy(self: FastCOCOEvaluator, task: str, *args: Any) -> Any:
        tasks.append(task)
        return score(self, task, *args)

    monkeypatch.setattr(FastCOCOEvaluator, "_score", spy)
    return tasks


ALL = ["bbox", "keypoints", "segm"]


@pytest.mark.parametrize("seed", range(2))
def test_all_tasks_to_the_last_bit(seed: int, both: Place, by_hotcoco: list) -> None:
    data = random_data(seed)
    both.register(data)
    found = both.compare(random_detections(data, seed), _kpt_oks_sigmas=SIGMAS)
    assert by_hotcoco == ALL == list(found)
    # Something is found, and not all; a class without objects has no AP.
    assert all(0 < found[task][name] < 100 for task in ALL for name in ("AP", "AP50", "AP70"))
    assert not any(math.isnan(found["bbox"][name]) for name in ("APs", "APm", "APl"))
    assert math.isnan(found["bbox"]["AP-class 11"])


def test_masks_and_boxes_without_keypoints(both: Place, by_hotcoco: list) -> None:
    data = random_data(4)
    detections = without(random_detections(data), "pred_keypoints")
    for annotation in data["annotations"]:
        del annotation["keypoints"], annotation["num_keypoints"]
    both.register(data)
    both.compare(detections)
    both.compare(without(detections, "pred_masks"))
    assert by_hotcoco == ["bbox", "segm", "bbox"]


def test_cocos_own_sigmas(both: Place, by_hotcoco: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "KEYPOINTS", 17)
    data = random_data(5, keypoints=17)
    both.register(data)
    found = both.compare(random_detections(data))
    assert by_hotcoco == ALL and 0 < found["keypoints"]["AP"] < 100


@pytest.mark.parametrize("most", [5, 1000])
def test_other_limits_of_detections(most: int, both: Place, by_hotcoco: list) -> None:
    data = random_data(6)
    both.register(data)
    more = {"_kpt_oks_sigmas": SIGMAS, "_max_dets_per_image": [1, 10, most]}
    both.compare(random_detections(data, most=60), **more)
    assert by_hotcoco == ALL


def test_more_detections_than_count(both: Place) -> None:
    data = random_data(7)
    both.register(data)
    boxes = without(random_detections(data, most=400), "pred_keypoints", "pred_masks")
    assert max(map(len, boxes.values())) > 300
    for instances in boxes.values():  # COCO counts 100 of a class
        instances.pred_classes[:] = 0
    both.compare(boxes)


def test_some_of_the_images(both: Place) -> None:
    data = random_data(8)
    both.register(data)
    all_images = both.compare(random_detections(data), _kpt_oks_sigmas=SIGMAS)
    some = both.compare(random_detections(data), img_ids=[7, 2, 2, 9], _kpt_oks_sigmas=SIGMAS)
    assert some["bbox"]["AP"] != all_images["bbox"]["AP"]


def test_given_tasks(both: Place, by_hotcoco: list) -> None:
    data = random_data(9)
    both.register(data)
    found = both.compare(random_detections(data), _tasks=("segm",))
    assert list(found) == ["segm"] == by_hotcoco


@pytest.mark.parametrize("rename", [lambda i: f"{i:03}x", lambda i: i - 5, lambda i: i * 10**15])
def test_ids_of_all_kinds(rename: Any, both: Place, by_hotcoco: list) -> None:
    data = random_data(10)
    for record in data["images"]:
        record["id"] = rename(record["id"])
    for record in data["annotations"]:
        record["image_id"], record["id"] = rename(record["image_id"]), record["id"] * 7
    both.register(data)
    both.compare(random_detections(data), _kpt_oks_sigmas=SIGMAS)
    assert by_hotcoco == ALL


def test_images_out_of_order(both: Place) -> None:
    """Their order, by id, decides which of equal scores comes first."""
    data = random_data(11)
    data["images"].reverse()
    data["categories"].reverse()
    data["annotations"].reverse()
    both.register(data)
    both.compare(random_detections(data), _kpt_oks_sigmas=SIGMAS)


def test_gaps_of_exports_are_filled_first(both: Place, by_hotcoco: list) -> None:
    data = random_data(12)
    for number, annotation in enumerate(data["annotations"]):
        for key in ("area", "num_keypoints", *(["iscrowd"] if not annotation["iscrowd"] else [])):
            del annotation[key]
        annotation["id"] = number  # 0 is no id for pycocotools
    both.register(data)
    found = both.compare(random_detections(data), _kpt_oks_sigmas=SIGMAS)
    assert by_hotcoco == ALL and found["bbox"]["AP"] > 0


def test_objects_of_no_image_and_odd_fields(both: Place) -> None:
    data = random_data(13)
    detections = random_detections(data)
    data["annotations"][0]["image_id"] = 99
    data["annotations"][1]["category_id"] = 99
    data["annotations"][2]["ignore"] = 1  # pycocotools overwrites it
    data["annotations"][3]["iscrowd"] = 2
    both.register(data)
    both.compare(detections, _kpt_oks_sigmas=SIGMAS)


def test_no_objects_at_all(both: Place, by_hotcoco: list) -> None:
    data = random_data(14)
    detections = without(random_detections(data), "pred_keypoints")
    data["annotations"] = []
    both.register(data)
    found = both.compare(detections)
    assert by_hotcoco == ["bbox", "segm"] and math.isnan(found["bbox"]["AP"])


def test_no_detections_at_all(both: Place, by_hotcoco: list) -> None:
    data = random_data(15)
    both.register(data)
    found = both.compare({k: x[:0] for k, x in random_detections(data).items()})
    assert by_hotcoco == [] and math.isnan(found["bbox"]["AP"])
    evaluator = build_evaluator(both.name, str(both.folder), "hotcoco")
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_a_file_for_a_server_is_written_and_not_scored(both: Place, by_hotcoco: list) -> None:
    data = random_data(16)
    detections = random_detections(data)
    del data["annotations"]
    both.register(data)
    assert both.score("hotcoco", detections) == ({}, {}) and by_hotcoco == []
    written = json.loads((both.folder / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in written} <= set(CATEGORIES)


# -- what is left to pycocotools -------------------------------------------------------------------


def test_what_hotcoco_would_score_otherwise(
    both: Place, by_hotcoco: list, caplog: pytest.LogCaptureFixture
) -> None:
    data = random_data(17)
    data["annotations"][4]["id"] = data["annotations"][5]["id"]  # pycocotools takes one twice
    both.register(data)
    with caplog.at_level(logging.INFO):
        both.compare(without(random_detections(data), "pred_keypoints"))
    assert by_hotcoco == []
    assert "pycocotools scores segm, not hotcoco: annotations share an id." in caplog.messages
    assert "Evaluating predictions with official COCO API..." in caplog.messages


def test_masks_that_are_missing(both: Place, by_hotcoco: list, caplog: Any) -> None:
    data = random_data(18)
    del data["annotations"][2]["segmentation"]
    both.register(data)
    detections = without(random_detections(data), "pred_keypoints")
    with caplog.at_level(logging.INFO), pytest.raises(KeyError, match="segmentation"):
        both.score("hotcoco", detections)  # as pycocotools
    assert "not hotcoco: an annotation has no segmentation." in caplog.text
    both.compare(without(detections, "pred_masks"))
    assert by_hotcoco == ["bbox"]


def test_numbers_of_keypoints_that_differ_are_named_as_ever(both: Place, caplog: Any) -> None:
    data = random_data(19)
    both.register(data)
    with caplog.at_level(logging.INFO), pytest.raises(AssertionError, match="OKS_SIGMAS is 17"):
        both.score("hotcoco", random_detections(data))
    assert "keypoints, not hotcoco: there are 17 sigmas for [5] keypoints" in caplog.text


def test_a_task_of_each(both: Place, by_hotcoco: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results stand in detectron2's order, whoever gave them."""
    data = random_data(20)
    both.register(data)
    reasons = {"segm": "of a test"}
    monkeypatch.setattr(fast_coco, "_refusal", lambda task, *_: reasons.get(task, ""))
    found = both.compare(random_detections(data), _kpt_oks_sigmas=SIGMAS)
    assert by_hotcoco == ["bbox", "keypoints"] and list(found) == ALL


# -- the choice ------------------------------------------------------------------------------------


def test_the_key_chooses(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(coco_api: str) -> type:
        cfg = model_zoo.get_config(TINY_EXT)
        cfg.TEST.COCO_API = coco_api
        return type(Trainer.build_evaluator(cfg, "shapes_val", str(tmp_path)))

    assert model_zoo.get_config(TINY_EXT).TEST.COCO_API == "auto"
    kinds = {name: kind(name) for name in COCO_APIS}
    assert kinds == dict(
        zip(COCO_APIS, (FastCOCOEvaluator,) * 2 + (AP70COCOEvaluator,), strict=True)
    )
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # as if it were not installed
    assert kind("auto") is kind("pycocotools") is AP70COCOEvaluator


def test_hotcoco_that_is_missing_is_said_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.MODEL.DEVICE = "cpu"
    check_config(cfg)
    cfg.TEST.COCO_API = "hotcoco"
    message = r"'hotcoco', which cannot be imported .*: pip install \"hotcoco>=1.3\"; allowed with"
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="TEST.COCO_API is 'coco'; allowed: 'auto', 'hotcoco', 'p"):
        uses_hotcoco("coco")


def test_modes_are_scored_by_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(trainer, "build_evaluator", lambda *args: asked.append(args[2]))
    monkeypatch.setattr(trainer.DefaultTrainer, "test", lambda *args: {})
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.TEST.COCO_API, cfg.TEST.DOUBLE_HEAD_MODES, cfg.MODEL.DEVICE = "pycocotools", True, "cpu"
    Trainer.test(cfg, build_model(cfg))
    cfg.TEST.DOUBLE_HEAD_MODES = False
    monkeypatch.setattr(trainer, "GeneralizedRCNNWithTTA", lambda *args: None)
    Trainer.test_with_TTA(cfg, build_model(cfg))
    assert asked == ["pycocotools"] * 5
