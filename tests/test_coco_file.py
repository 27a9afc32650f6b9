"""Faults of COCO files, what is legitimate in them, and what exports leave out."""

import copy

import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog

from doublehead_d2.data.resize import build_mapper
from doublehead_d2.engine import Trainer, check_run
from places import Data, Edit, Place, cfg_for, notes_of, refusal, set_in, without

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


@pytest.mark.parametrize(
    "box",
    [[5, 5, 0, 9], [-9, 5, -9, 9], [-9, 5, 9, 9], [5000, 5, 9, 9], [5, 5000, 9, 9], [5, -9, 9, 9]],
)
def test_boxes_without_area_are_noted(place: Place, box: list) -> None:
    notes = notes_of(place, place.coco("train", set_in("annotations", "bbox", box)), ())
    assert "without area in their image, which training leaves out and the evaluation" in notes
    assert "counts as missed: 1, the first is annotation 1" in notes


@pytest.mark.parametrize("box", [[5, 15, 9, -10], [14, 5, -9, 10], [14, 15, -9, -10]])
def test_boxes_of_negative_sides_are_trained_on_mirrored(place: Place, box: list) -> None:
    """All three have the corners 5, 5 and 14, 15."""
    name = place.coco("train", set_in("annotations", "bbox", box))
    notes = notes_of(place, name, ())
    assert "of negative width or height, whose corners training sorts" in notes
    assert "without area" not in notes
    cfg = cfg_for(place, name, (), "INPUT.MIN_SIZE_TRAIN", (128,), "INPUT.RANDOM_FLIP", "none")
    boxes = [build_mapper(cfg, True)(x)["instances"].gt_boxes for x in DatasetCatalog.get(name)]
    assert [5, 5, 14, 15] in boxes[0].tensor.tolist()


@pytest.mark.parametrize("box", [[5, 5, 1e-3, 9], [-8.9, 5, 9, 9]])
def test_small_boxes_are_not(place: Place, box: list) -> None:
    notes = notes_of(place, place.coco("train", set_in("annotations", "bbox", box)), ())
    assert "without area" not in notes


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


def test_masks_of_pycocotools_are_what_the_tests_take_them_for() -> None:
    assert mask_util.area(mask_util.frPyObjects(rle([0, 16384]), 128, 128)) == 128 * 128
