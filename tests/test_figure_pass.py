"""What is counted in a pass over images is what heads say of each window, however it is divided."""

import json
from typing import Any

import pytest
import torch
from asked import EXT, random_detector
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, BoxMode
from detectron2.structures.boxes import matched_pairwise_iou

from doublehead_d2.analysis.asking import ask_for_classes, modes_of, see
from doublehead_d2.analysis.difficulty import GROUPS
from doublehead_d2.analysis.figure_pass import Request, examine, objects_of
from doublehead_d2.analysis.tally import Tally
from doublehead_d2.analysis.windows import BINS, iou_bins, stratified_subset, windows_around
from doublehead_d2.data.seeding import generator

COUNT = 60  # windows of an object
REQUEST = Request(proposals_per_object=COUNT, seed=5)
HARDNESS = [0, 2, -1]  # of the three classes; the last is in no third


def image(record: dict[str, Any]) -> dict[str, Any]:
    """Stands for the mapper: noise that follows from the record, of half the size."""
    random = torch.Generator().manual_seed(record["image_id"])
    return record | {"image": 255 * torch.rand(3, 64, 96, generator=random)}


def record(number: int, *boxes: tuple[float, ...], **fields: object) -> dict[str, Any]:
    """An image of 128 x 192 (height x width) whose objects are of class 0, 1, ..."""
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 3} | fields
        for i, box in enumerate(boxes)
    ]
    return {"image_id": number, "height": 128, "width": 192, "annotations": annotations}


RECORDS = [
    record(0, (10, 20, 40, 50), (60, 30, 180, 120)),
    record(1),
    record(2, (0, 0, 30, 30), (100, 40, 140, 110), (20, 60, 90, 120)),
]
IMAGES = list(enumerate(RECORDS))


@pytest.fixture(scope="module")
def model() -> GeneralizedRCNN:
    return random_detector(EXT)


@pytest.fixture(scope="module")
def whole(model: GeneralizedRCNN) -> Tally:
    return examine(model, IMAGES, image, REQUEST, HARDNESS)


def test_objects_by_hand() -> None:
    """From 128 x 192 to 64 x 96: halves. Crowds and what has no area are left out."""
    found = record(0, (10, 20, 50, 52), (190, 10, 192, 20), (5, 5, 5, 30))
    found["annotations"][1] |= {"iscrowd": 1}
    found["annotations"].append(
        {"bbox": [100, 60, 90, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    )
    objects = objects_of(found, (64, 96))
    assert objects.boxes.tolist() == [[5, 10, 25, 26], [50, 30, 95, 50]]
    assert objects.classes.tolist() == [0, 2] and objects.numbers == [0, 3]
    # 40 x 32 is above 32^2, 90 x 40 too: both medium in the image as annotated.
    assert objects.sizes.tolist() == [1, 1]


def test_sizes_are_those_of_masks_where_there_are_any() -> None:
    """A triangle in a box of 40 x 40 has 800 pixels, below 32^2 = 1024."""
    outline = [[0.0, 0.0, 40.0, 0.0, 0.0, 40.0]]
    small = objects_of(record(0, (0, 0, 40, 40), segmentation=outline), (128, 192))
    boxed = objects_of(record(0, (0, 0, 40, 40)), (128, 192))
    encoded = objects_of(record(0, (0, 0, 40, 40), segmentation={"counts": "x"}), (128, 192))
    assert (small.sizes.item(), boxed.sizes.item(), encoded.sizes.item()) == (0, 1, 1)


def test_moments_are_those_of_all_windows(model: GeneralizedRCNN, whole: Tally) -> None:
    """Against all windows kept, and two passes in float64."""
    rows: list[tuple[str, int, int, int, float, float, float]] = []
    modes = modes_of(model)
    for place, found in IMAGES:
        seen, objects = see(model, [image(found)]), objects_of(found, (64, 96))
        for index, box in enumerate(objects.boxes):
            windows = windows_around(box, (64, 96))
            kept = stratified_subset(windows.ious, COUNT, generator(5, place, index))
            boxes, ious = windows.boxes[kept], windows.ious[kept]
            classes = objects.classes[index].repeat(len(boxes))
            said = ask_for_classes(model, modes, seen.features, [Boxes(boxes)], [(64, 96)], classes)
            for mode, (scores, regressed) in said.items():
                target = Boxes(box.repeat(len(boxes), 1))
                after = matched_pairwise_iou(Boxes(regressed), target)
                size, hardness = int(objects.sizes[index]), HARDNESS[int(classes[0])]
                bins = iou_bins(ious)
                rows += [
                    (mode, size, hardness, *numbers)
                    for numbers in zip(
                        bins.tolist(), scores.tolist(), after.tolist(), ious.tolist(), strict=True
                    )
                ]
    assert whole.windows == 5 * COUNT == len(rows) / len(modes)
    assert (whole.images, whole.objects) == (3, 5) and whole.seconds > 0
    for mode in modes:
        for place, group in enumerate(GROUPS):
            own = [
                x
                for x in rows
                if x[0] == mode
                and (group == "all" or place in (1 + x[1], *([4 + x[2]] if x[2] >= 0 else [])))
            ]
            for b in range(BINS):
                inside = torch.tensor([x[4:6] for x in own if x[3] == b], dtype=torch.float64)
                at = place * BINS + b
                assert whole.scores[mode].count[at] == len(inside)
                for column, moments in enumerate((whole.scores[mode], whole.ious[mode])):
                    if len(inside):
                        mean, deviation = moments.mean[at], moments.deviation[at]
                        expected = inside[:, column]
                        torch.testing.assert_close(mean, expected.mean(), rtol=0, atol=1e-9)
                        spread = expected.std(unbiased=False)
                        torch.testing.assert_close(deviation, spread, rtol=0, atol=1e-9)
            if len(own) > 2:
                pairs = torch.tensor([x[4:] for x in own], dtype=torch.float64)
                counted = Tally.from_state(whole.state()).pairs["windows"][mode]
                together = counted[0]
                for other in counted[1:]:
                    together.merge(other)
                expected = torch.corrcoef(pairs[:, [0, 2]].t())[0, 1]
                torch.testing.assert_close(together.pearson[place], expected, rtol=0, atol=1e-9)


def test_parts_make_the_whole(model: GeneralizedRCNN, whole: Tally) -> None:
    """Counted image by image and read from JSON, the numbers are the same."""
    parts = [examine(model, [x], image, REQUEST, HARDNESS) for x in IMAGES]
    read = [Tally.from_state(json.loads(json.dumps(x.state()))) for x in parts]
    assert [x.state() for x in read] == [x.state() for x in parts]
    for other in read[1:]:
        read[0].merge(other)
    found, expected = read[0].state(), whole.state()
    for state in (found, expected):
        state.pop("seconds")
    assert {k: found[k] for k in ("images", "objects", "windows", "score_histograms")} == {
        k: expected[k] for k in ("images", "objects", "windows", "score_histograms")
    }
    assert found["pairs"] == expected["pairs"]
    for name in ("scores", "ious"):
        for mode in whole.modes:
            ours, theirs = getattr(read[0], name)[mode], getattr(whole, name)[mode]
            close = {"rtol": 0, "atol": 1e-12, "equal_nan": True}
            torch.testing.assert_close(ours.mean, theirs.mean, **close)
            torch.testing.assert_close(ours.deviation, theirs.deviation, **close)
    for head, cosines in whole.spatial.cosines.items():
        parts_mean = read[0].spatial.cosines[head].mean
        torch.testing.assert_close(parts_mean, cosines.mean, equal_nan=True)


def test_an_image_without_objects(model: GeneralizedRCNN) -> None:
    tally = examine(model, [(0, RECORDS[1])], image, REQUEST, HARDNESS)
    assert (tally.images, tally.objects, tally.windows) == (1, 0, 0)
    (pairs,) = tally.pairs["windows"]["fused"]
    assert not pairs.count.any()
    (detected,) = tally.pairs["detections"]["fused"]
    assert not detected.means_from(torch.zeros(2))[:, 1].any()  # IoUs of what overlaps nothing


def test_parts_of_other_detectors_are_refused(whole: Tally) -> None:
    with pytest.raises(ValueError, match="parts of detectors with .*cls_head.* and .*configured"):
        Tally.from_state(whole.state()).merge(Tally({"configured": "fc"}))


@pytest.mark.parametrize(
    "name",
    [
        "Shapes-Detection/tsd_rcnn_tiny.yaml",
        "Shapes-Detection/grcn_tiny.yaml",
        "Shapes-Detection/faster_rcnn_c4_tiny.yaml",
        "Shapes-Detection/single_conv_rcnn_tiny.yaml",
    ],
)
def test_every_system_is_asked_alike(name: str) -> None:
    tally = examine(
        random_detector(name), IMAGES[:1], image, Request(proposals_per_object=20), [0] * 3
    )
    (mode,) = tally.modes
    assert tally.scores[mode].count[:BINS].sum() == 40 == tally.ious[mode].count[:BINS].sum()
    assert len(tally.pairs["rpn"][mode]) == 1 and tally.spatial.kinds
