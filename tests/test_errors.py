"""Kinds of error, thresholds and confusion against derivations by hand; AP against pycocotools."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from doublehead_d2.analysis.error_runs import read_detections
from doublehead_d2.analysis.errors import (
    KINDS,
    METRICS,
    Objects,
    analyse,
    at_thresholds,
    best_f1,
    differences,
    read_objects,
    require_hotcoco,
)

Record = dict[str, Any]
# Two objects of 10 x 10, far from one another
A, B = [0, 0, 10, 10], [50, 50, 10, 10]
NOWHERE = [80, 80, 10, 10]


def dataset(*objects: tuple, classes: str = "ab", images: int = 1) -> Record:
    """Objects (class, XYWH, crowd, image), the latter two 0 and 1 where they are left out."""
    filled = [(*x, *(0, 1)[len(x) - 2 :]) for x in objects]
    return {
        "images": [{"id": i, "height": 100, "width": 100} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": " ab".index(name),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for i, (name, box, crowd, image) in enumerate(filled, 1)
        ],
    }


def objects_of(*objects: tuple, **more: Any) -> Objects:
    return read_objects(dataset(*objects, **more), "data set 'x'")


def found(*detections: tuple) -> list[Record]:
    """Detections (class, XYWH, score)."""
    return [
        {"image_id": 1, "category_id": " ab".index(name), "bbox": box, "score": score}
        for name, box, score in detections
    ]


def run(detections: list[tuple], objects: tuple = (("a", A), ("b", B)), **more: Any) -> Record:
    return analyse(objects_of(*objects), found(*detections), **more)


def kinds(result: Record) -> Record:
    """Counts and dAP of the kinds that are there."""
    return {
        kind: (x["count"], pytest.approx(x["dAP"], abs=1e-9))
        for kind, x in result["errors"].items()
        if x["count"] or x["dAP"]
    }


FOUND_A, FOUND_B = ("a", A, 0.9), ("b", B, 0.9)


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ([FOUND_A, FOUND_B], {}),
        # Class a has AP 0; with its class mended, AP 100: half of it on average over both
        ([("b", A, 0.8), FOUND_B], {"classification": (1, 50)}),
        # IoU 3/10 with its object
        ([("a", [0, 0, 10, 3], 0.8), FOUND_B], {"localisation": (1, 50)}),
        # IoU 3/10 with an object of the other class. It ranks below the one that is right, so that
        # b keeps AP 100 with it. a has no detection, its object is missed, too; nothing of a is
        # found, so that it keeps AP 0.
        ([("b", [0, 0, 10, 3], 0.8), FOUND_B], {"both": (1, 0), "missed": (1, 0)}),
        # It ranks above the one that is right: precision 1/2 at all recalls
        ([("b", [0, 0, 10, 3], 0.95), FOUND_A, FOUND_B], {"both": (1, 25)}),
        # Two on one object: the second one below 0.9 costs nothing
        ([FOUND_A, ("a", A, 0.8), FOUND_B], {"duplicate": (1, 0)}),
        ([("a", NOWHERE, 0.95), FOUND_A, FOUND_B], {"background": (1, 25)}),
        # IoU 1/20 with an object
        ([("a", [0, 0, 10, 0.5], 0.95), FOUND_A, FOUND_B], {"background": (1, 25)}),
        ([FOUND_B], {"missed": (1, 0)}),
        ([], {"missed": (2, 0)}),
    ],
)
def test_kinds_of_error_by_hand(detections: list, expected: Record) -> None:
    assert expected == kinds(run(detections))


def test_duplicate_and_missed_cost_by_hand() -> None:
    # Two objects of class a: hit (0.9), duplicate of it (0.8), hit (0.7). Precision 1 up to recall
    # 1/2, 51 of 101 recalls, then 2/3. Without the duplicate 100.
    objects = (("a", A), ("a", B))
    result = run([FOUND_A, ("a", A, 0.8), ("a", B, 0.7)], objects)
    ap = 100 * (51 + 50 * 2 / 3) / 101
    assert result["scores"]["AP50"] == pytest.approx(ap)
    assert kinds(result) == {"duplicate": (1, pytest.approx(100 - ap))}
    # One of two found: 51 of 101 recalls. Without the missed one 100.
    result = run([FOUND_A], objects)
    assert kinds(result) == {"missed": (1, pytest.approx(100 - 100 * 51 / 101))}


def test_another_iou_by_hand() -> None:
    # IoU 0.6 with its object
    detections = [("a", [0, 0, 10, 6], 0.8), FOUND_B]
    assert kinds(run(detections)) == {}
    result = run(detections, iou=0.75)
    assert kinds(result) == {"localisation": (1, pytest.approx(50))}
    assert result["confusion"]["matrix"] == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert result["best_f1"]["recall"] == result["thresholds"]["recall"][0] == 50
    assert result["scores"] == run(detections)["scores"]


def test_what_nothing_finds_is_said() -> None:
    assert run([FOUND_B])["unfound"] == ["a"]
    assert run([("a", [0, 0, 10, 3], 0.8), FOUND_B])["unfound"] == ["a"]
    assert run([FOUND_A, FOUND_B])["unfound"] == []
    assert run([FOUND_A], (("a", A),))["unfound"] == []  # b has no object


def test_crowds_are_no_objects() -> None:
    crowd = ("a", [0, 0, 50, 50], 1)
    objects = (crowd, ("a", NOWHERE), ("b", [80, 60, 10, 10]))
    right = [("a", NOWHERE, 0.8), ("b", [80, 60, 10, 10], 0.8)]
    # Within a crowd of its class: ignored, so it is no error and on no background
    result = run([("a", A, 0.9), *right], objects, score_threshold=0.0)
    assert kinds(result) == {} and result["scores"]["AP"] == pytest.approx(100)
    assert result["confusion"]["matrix"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert result["best_f1"] == {"threshold": 0.8, "precision": 100, "recall": 100, "F1": 100}
    # A third of it in the crowd: not ignored, and on background, for a crowd cannot be located
    result = run([("a", [40, 0, 30, 30], 0.9), *right], objects, score_threshold=0.0)
    assert kinds(result) == {"background": (1, pytest.approx(25))}
    assert result["confusion"]["matrix"] == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    # Of another class than the crowd
    assert kinds(run([("b", A, 0.9), *right], objects)) == {"background": (1, pytest.approx(25))}


def test_confusion_by_hand() -> None:
    # Rows: objects a, b, background; columns: detections a, b, missed
    detections = [("b", A, 0.9), ("b", B, 0.8), ("a", NOWHERE, 0.7), ("a", A, 0.6)]
    result = run(detections, score_threshold=0.65)
    assert result["confusion"] == {
        "threshold": 0.65,
        "matrix": [[0, 1, 0], [0, 1, 0], [1, 0, 0]],
    }
    # From its score on; the object has its partner already
    assert run(detections, score_threshold=0.6)["confusion"]["matrix"] == [
        [0, 1, 0],
        [0, 1, 0],
        [2, 0, 0],
    ]
    assert run(detections, score_threshold=0.85)["confusion"]["matrix"] == [
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 0],
    ]
    # The threshold of the best F1: b at 0.8 is the only hit before a at 0.6. F1 is
    # 2 x 1 / (2 + 2) at 0.8 and 2 x 2 / (4 + 2) at 0.6.
    assert run(detections)["confusion"]["threshold"] == 0.6


def test_more_detections_than_the_metric_takes() -> None:
    many = [("a", NOWHERE, 0.9 - i / 1000) for i in range(100)]
    result = run([*many, ("a", A, 0.1), ("b", B, 0.1)])  # the 101st of a is not looked at
    assert result["detections"] == 102
    assert result["errors"]["background"]["count"] == 100
    assert result["errors"]["missed"]["count"] == 1
    result = run([*many, ("a", A, 0.1), ("b", B, 0.1)], score_threshold=0.0)
    assert result["confusion"]["matrix"] == [[0, 0, 1], [0, 1, 0], [100, 0, 0]]


def test_best_f1_by_hand() -> None:
    scores, hits = np.array([0.2, 0.9, 0.5, 0.5]), np.array([True, True, False, True])
    # Taken 1, 3, 4; true 1, 2, 3; F1 of 4 objects 2/5, 4/7, 6/8
    best = best_f1(scores, hits, 4)
    assert best == {"threshold": 0.2, "precision": 75, "recall": 75, "F1": 75}
    # Of 2 objects, without the last: 2/3, 4/5
    best = best_f1(scores[1:], hits[1:], 2)
    assert best == pytest.approx({"threshold": 0.5, "precision": 200 / 3, "recall": 100, "F1": 80})
    assert best_f1(scores, np.zeros(4, bool), 4) is None
    assert best_f1(np.zeros(0), np.zeros(0, bool), 4) is None


def test_of_equal_f1_the_higher_threshold() -> None:
    # Of two objects: 2/(1 + 2), 2/(2 + 2), 2/(3 + 2), 4/(4 + 2)
    best = best_f1(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, False, True]), 2)
    assert best is not None and best["threshold"] == 0.9


def test_thresholds_by_hand() -> None:
    curve = at_thresholds(np.array([0.9, 0.5, 0.5]), np.array([True, False, True]), 4)
    assert len(curve["precision"]) == len(curve["recall"]) == 101
    assert [curve["precision"][i] for i in (91, 90, 51)] == [None, 100, 100]
    assert curve["precision"][50] == curve["precision"][0] == pytest.approx(200 / 3)
    assert [curve["recall"][i] for i in (91, 90, 51, 50, 0)] == [0, 25, 25, 50, 50]


def test_nothing_detected() -> None:
    result = run([])
    assert result["scores"] == dict.fromkeys(METRICS, 0.0)
    assert result["best_f1"] is None and result["classes"][0]["best_f1"] is None
    assert result["thresholds"]["precision"] == [None] * 101
    assert result["thresholds"]["recall"] == [0] * 101
    assert result["confusion"] == {"threshold": 0, "matrix": [[0, 0, 1], [0, 0, 1], [0, 0, 0]]}
    assert result["unfound"] == ["a", "b"]


def test_a_class_without_objects_has_no_ap() -> None:
    result = run([FOUND_A, ("b", NOWHERE, 0.95)], (("a", A),))
    one, other = result["classes"]
    assert [one[m] for m in METRICS] == pytest.approx([100] * 4)
    assert [other[m] for m in METRICS] == [None] * 4
    assert other["objects"] == 0 and other["best_f1"] is None
    assert result["scores"]["AP"] == pytest.approx(100)
    assert kinds(result) == {"background": (1, 0)}
    json.dumps(result, allow_nan=False)


def test_one_class() -> None:
    objects = objects_of(("a", A), ("a", B), classes="a")
    result = analyse(objects, found(FOUND_A, ("a", [50, 50, 10, 3], 0.8)))
    assert [x["name"] for x in result["classes"]] == ["a"]
    # One of two: 51 of 101 recalls
    assert kinds(result) == {"localisation": (1, pytest.approx(100 * 50 / 101))}
    assert np.shape(result["confusion"]["matrix"]) == (2, 2)


def random_case(seed: int, crowds: float) -> tuple[Record, list[Record]]:
    """Twelve images of objects, and detections that find some of them, more or less well."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(1, 13):
        for _ in range(rng.integers(0, 5)):
            name, box = "ab"[rng.integers(2)], [*rng.uniform(0, 60, 2), *rng.uniform(8, 30, 2)]
            objects.append((name, box, int(rng.random() < crowds), image))
            for _ in range(rng.integers(0, 4)):
                noise = rng.normal(size=4) * rng.choice([0.3, 2, 5])
                moved = np.maximum(np.array(box) + noise, 1).tolist()
                score = float(rng.integers(1, 20)) / 20  # many are equal
                detections.append(
                    {
                        "image_id": image,
                        "category_id": " ab".index(name if rng.random() < 0.8 else "a"),
                        "bbox": moved,
                        "score": score,
                    }
                )
    return dataset(*objects, images=12), detections


def by_pycocotools(data: Record, detections: list[Record]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, **data}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(("seed", "crowds"), [(0, 0), (1, 0.2), (2, 0.2)])
def test_scores_are_those_of_pycocotools_to_the_last_bit(seed: int, crowds: float) -> None:
    data, detections = random_case(seed, crowds)
    result = analyse(read_objects(data, ""), detections)
    theirs = by_pycocotools(data, detections)
    stats = 100 * np.array(theirs.stats)
    assert list(result["scores"].values()) == [stats[0], stats[1], stats[2], stats[8]]
    precision, recall = theirs.eval["precision"], theirs.eval["recall"]
    for index, ours in enumerate(result["classes"]):
        assert ours["AP"] == 100 * np.mean(precision[:, :, index, 0, -1])
        assert ours["AP50"] == 100 * np.mean(precision[0, :, index, 0, -1])
        assert ours["AP75"] == 100 * np.mean(precision[5, :, index, 0, -1])
        assert ours["AR"] == 100 * np.mean(recall[:, index, 0, -1])


@pytest.mark.parametrize(("seed", "crowds"), [(3, 0), (4, 0.3)])
def test_parts_fit_together(seed: int, crowds: float) -> None:
    data, detections = random_case(seed, crowds)
    result = analyse(read_objects(data, ""), detections, 0.0)
    objects = sum(not x["iscrowd"] for x in data["annotations"])
    assert sum(x["objects"] for x in result["classes"]) == objects
    matrix = np.array(result["confusion"]["matrix"])
    assert matrix[:-1].sum() == objects  # each has a detection or none
    ignored = len(detections) - matrix[:, :-1].sum()  # each other one has an object or none
    assert (ignored > 0) == (crowds > 0)
    wrong = sum(result["errors"][kind]["count"] for kind in list(KINDS)[:-1])
    hits = round(result["thresholds"]["recall"][0] * objects / 100)
    assert wrong + hits + ignored == len(detections)
    precision = result["thresholds"]["precision"][0]
    assert precision == pytest.approx(100 * hits / (len(detections) - ignored))


def test_ids_may_be_words_and_far_apart() -> None:
    data = dataset(("a", A), ("b", B))
    plain = analyse(read_objects(data, ""), found(FOUND_A))
    for image in data["images"]:
        image["id"] = "000007"
    for annotation in data["annotations"]:
        annotation["image_id"] = "000007"
        annotation["category_id"] = {1: 44, 2: 90}[annotation["category_id"]]
    data["categories"] = [{"id": 90, "name": "b"}, {"id": 44, "name": "a"}]
    objects = read_objects(data, "")
    assert objects.names == ["a", "b"] and objects.counts == [1, 1]
    assert objects.images == {"000007": 1} and objects.classes == {44: 1, 90: 2}
    assert analyse(objects, found(FOUND_A)) == plain


def test_data_without_objects_are_refused() -> None:
    for objects in ((), (("a", A, 1),)):
        with pytest.raises(ValueError, match=r"data set 'x' has no object .*; allowed: one object"):
            objects_of(*objects)


def test_differences() -> None:
    one, other = run([FOUND_A, FOUND_B]), run([("a", [0, 0, 10, 3], 0.8), FOUND_B])
    values = differences(one, other)
    assert list(values) == [*METRICS, *(f"dAP {kind}" for kind in KINDS)]
    assert values["AP"] == pytest.approx(50) and values["dAP localisation"] == pytest.approx(-50)
    assert values["dAP missed"] == 0
    unknown = {**other, "scores": {**other["scores"], "AP": None}}
    assert differences(one, unknown)["AP"] is None
    assert differences(unknown, one)["AP"] is None


def test_without_hotcoco_the_line_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ValueError, match=r'pip install "hotcoco>=1.3"'):
        require_hotcoco()


DETECTION = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4.5], "score": 0.5}


def test_detections_are_read(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps([{**DETECTION, "segmentation": []}, DETECTION]))
    data = dataset(("a", A))
    assert read_detections(str(path), read_objects(data, "")) == [DETECTION, DETECTION]
    data["categories"] = [{"id": 0, "name": "a"}, {"id": 1, "name": "z"}, {"id": 2, "name": "b"}]
    data["images"].append({"id": 0, "height": 5, "width": 5})
    expected = {**DETECTION, "image_id": 2, "category_id": 3}
    assert read_detections(str(path), read_objects(data, "")) == [expected, expected]
    path.write_text("[]")
    assert read_detections(str(path), objects_of(("a", A))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "is no list of detections; allowed: COCO's format of results"),
        ("[3]", "is no list of detections"),
        ({"image_id": 7}, "detection 1 has image_id 7; allowed: one of the data set's 1"),
        ({"image_id": None}, "detection 1 has image_id None"),
        ({"category_id": 3}, "detection 1 has category_id 3; allowed: one of the data set's 2"),
        ({"category_id": [1]}, "detection 1 has category_id [1]"),
        ({"bbox": [1, 2, 3]}, "detection 1 has bbox [1, 2, 3]; allowed: x, y, width and height"),
        ({"bbox": [1, 2, 3, -1]}, "detection 1 has bbox [1, 2, 3, -1]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "detection 1 has bbox [1, 2, 3, nan]"),
        ({"bbox": [1, 2, 3, "4"]}, "detection 1 has bbox"),
        ({"score": 87.5}, "detection 1 has score 87.5; allowed: 0 to 1"),
        ({"score": -0.1}, "detection 1 has score -0.1"),
        ({"score": None}, "detection 1 has score None"),
        ({"score": float("nan")}, "detection 1 has score nan"),
    ],
)
def test_faulty_detections_are_refused(tmp_path: Path, text: Any, message: str) -> None:
    path = tmp_path / "found.json"
    if not isinstance(text, str):
        text = json.dumps([DETECTION, {**DETECTION, **text}])
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_detections(str(path), objects_of(("a", A)))
    assert message in str(error.value) and str(path) in str(error.value)
