"""Pictures of cases: the region, what is drawn where and in which colour."""

import numpy as np
import pytest
from detectron2.data.catalog import Metadata

from doublehead_d2.case_pictures import FAULT, FOUND, PROPOSAL, SAME, draw_case, zoom_region

METADATA = Metadata(name="test_case_pictures", thing_classes=["a", "b"])
OBJECT = [40.0, 30.0, 60.0, 40.0]


def answer(box: list, score: float = 0.9, proposal: list | None = None) -> dict:
    return {"box": box, "score": score, "iou": 0.5, "proposal": proposal or box}


def head(title: str, state: str = "found", found: dict | None = None, **more: object) -> dict:
    detections = [{"box": OBJECT, "class": "b", "class_id": 1, "score": 0.9}]
    return {
        "title": title,
        "threshold": 0.5,
        "state": state,
        "answer": found,
        "repeat": None,
        "same": None,
        "detections": detections if state != "missed" else [],
    } | more


def case(*heads: dict, box: list = OBJECT) -> dict:
    return {
        "kind": "missed by x, found by y",
        "reason": "low score",
        "image": "somewhere/a.jpg",
        "object": box,
        "class": "b",
        "class_id": 1,
        "objects": [{"box": box, "class": "b", "class_id": 1}],
        "heads": list(heads),
    }


def has(picture: np.ndarray, color: tuple) -> bool:
    bgr = np.array(color[::-1]) * 255
    return bool((np.abs(picture.astype(float) - bgr) < 2).all(axis=-1).sum() > 30)


def panels(picture: np.ndarray, size: tuple) -> list:
    """Of a picture, without bars of titles: the upper row, then the lower, each left to right."""
    height, width = size
    count = (picture.shape[1] + 6) // (width + 6)
    rows = [picture[56 : 56 + height], picture[84 + height : 84 + 2 * height]]
    return [row[:, i * (width + 6) : i * (width + 6) + width] for row in rows for i in range(count)]


def test_the_region_is_twice_the_object_and_of_the_image_s_ratio() -> None:
    # 20 x 10 of 200 x 100 pixels: twice that around its middle, (50, 35)
    assert zoom_region(case(), (100, 200)) == pytest.approx((30, 25, 70, 45))
    # 100 x 100: the width decides.
    assert zoom_region(case(), (100, 100)) == pytest.approx((30, 15, 70, 55))
    # At the border it is moved into the image.
    assert zoom_region(case(box=[0.0, 0.0, 20.0, 10.0]), (100, 200)) == pytest.approx(
        (0, 0, 40, 20)
    )
    assert zoom_region(case(box=[0.0, 0.0, 200.0, 99.0]), (100, 200)) == (0, 0, 200, 100)


def test_the_region_holds_all_boxes_but_proposals() -> None:
    far = answer([0.0, 30.0, 60.0, 40.0], proposal=[0.0, 0.0, 200.0, 100.0])
    # 60 pixels and 8 % of it on each side, from 30 - 34.8 on
    region = zoom_region(case(head("x", found=far)), (100, 200))
    assert region == pytest.approx((0, 35 - 0.29 * 60, 1.16 * 60, 35 + 0.29 * 60))
    again = head("x", "found twice", answer(OBJECT), repeat=far)
    assert zoom_region(case(again), (100, 200)) == region
    same = head("x", found=answer(OBJECT), same=far)
    assert zoom_region(case(same), (100, 200)) == region


def test_what_is_drawn_of_a_missed_object() -> None:
    image = np.full((100, 200, 3), 128, np.uint8)
    missed = head("x", "missed", answer([41.0, 31, 59, 39], 0.2, [42.0, 29, 62, 41]))
    picture = draw_case(image, case(missed, head("y", found=answer(OBJECT))), METADATA)
    assert picture.shape == (28 * 3 + 2 * 384, 3 * 768 + 2 * 6, 3)
    truth, first, second, below, below_first, below_second = panels(picture, (384, 768))
    assert has(first, FAULT) and has(first, PROPOSAL) and not has(first, FOUND)
    assert has(second, FOUND) and not has(second, FAULT) and not has(second, PROPOSAL)
    assert has(below_first, FAULT) and has(below_second, FOUND) and not has(below, FAULT)
    assert not has(truth, FAULT) and not has(truth, FOUND)
    # Of the missing head nothing but the frame of the region from 30 to 70 of 200 pixels
    changed = np.flatnonzero((below_first != 128).any(axis=(0, 2)))
    assert np.abs([changed.min() - 3.84 * 30, changed.max() - 3.84 * 70]).max() <= 2
    # The object's left side at 40 is a quarter into the region.
    assert np.abs(columns_of(second, FOUND) - 768 / 4).min() <= 2


def columns_of(picture: np.ndarray, color: tuple) -> np.ndarray:
    """The columns with more of a colour than the lines above and below have."""
    bgr = np.array(color[::-1]) * 255
    found = (np.abs(picture.astype(float) - bgr) < 2).all(axis=-1).sum(axis=0)
    return np.flatnonzero(found > 30)


def test_what_is_drawn_of_an_object_detected_twice() -> None:
    image = np.full((120, 160, 3), 128, np.uint8)
    again = answer([42.0, 20, 60, 38], 0.7, [35.0, 15, 60, 36])
    repeater = head("y", "found twice", answer(OBJECT), repeat=again)
    other = head("x", found=answer(OBJECT), same=answer([42.0, 28, 60, 38], 0.6, again["proposal"]))
    picture = draw_case(image, case(other, repeater, head("z", found=answer(OBJECT))), METADATA)
    _, first, second, third = panels(picture, (384, 512))[:4]
    colors = (FOUND, FAULT, PROPOSAL, SAME)
    assert [has(first, x) for x in colors] == [True, False, True, True]
    assert [has(second, x) for x in colors] == [True, True, True, False]
    assert [has(third, x) for x in colors] == [True, False, False, False]
    frames = [x[1, 1, ::-1] / 255 for x in (first, second, third)]
    np.testing.assert_allclose(frames, [FOUND, FAULT, FOUND], atol=0.01)


def test_the_region_shows_the_image_in_its_place() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 50:] = 200  # from the middle of the region on, 30 to 70
    zoomed = panels(draw_case(image, case(head("x", "missed")), METADATA), (384, 768))[1]
    assert zoomed[350, 374].max() < 30 and zoomed[350, 394].min() > 170


def test_large_images_are_reduced_and_boxes_with_them() -> None:
    image = np.full((1000, 1500, 3), 128, np.uint8)
    found = head("x", found=answer([600.0, 450, 900, 550]))
    found["detections"][0]["box"] = [600.0, 450, 900, 550]
    picture = draw_case(image, case(found, box=[600.0, 450, 900, 550]), METADATA)
    below = panels(picture, (384, 576))[3]
    changed = np.flatnonzero((below != 128).any(axis=(0, 2)))
    # The region from 450 to 1050 of 1500 pixels, at 0.384 times
    assert abs(changed.min() - 450 * 0.384) < 3 and abs(changed.max() - 1050 * 0.384) < 3


def test_nothing_is_said_and_the_colours_of_the_data_are_taken() -> None:
    metadata = Metadata(
        name="colored_cases", thing_classes=["a", "b"], thing_colors=[(1, 2, 3), (9, 240, 7)]
    )
    image = np.full((100, 100, 3), 128, np.uint8)
    picture = draw_case(image, case(head("x", "missed")), metadata)
    truth, zoomed, below, _ = panels(picture, (384, 384))
    color = (9 / 255, 240 / 255, 7 / 255)
    assert has(truth, color) and has(below, color) and not has(zoomed, color)
