"""Counts of cases, those that are kept, merging, and going on from a state."""

import json

import pytest
import torch

from doublehead_d2.analysis.case_book import BOTH, CaseBook
from doublehead_d2.analysis.cases import Said
from doublehead_d2.analysis.matching import Detections, Limits, Objects

TITLES = ["conv-head", "fc-head"]
SQUARE = [0.0, 0.0, 10.0, 10.0]
SECOND = [0.0, 0.0, 10.0, 3.0]  # IoU 0.3 with it
FAR = [50.0, 50.0, 60.0, 60.0]
MISSED = "missed by conv-head, found by fc-head"
TWICE = "detected twice by fc-head, once by conv-head"


def book(both_score: float | None = None, **changes: object) -> CaseBook:
    return CaseBook(TITLES, class_names=["a", "b"], both_score=both_score, **changes)


def there(*boxes: list, ignored: tuple = ()) -> Objects:
    marks = torch.zeros(len(boxes), dtype=torch.bool)
    marks[list(ignored)] = True
    return Objects(torch.tensor(boxes), torch.ones(len(boxes), dtype=torch.int64), marks)


def says(*found: tuple) -> Said:
    """A head whose detections are its boxes above 0.05, of class 1 of two."""
    boxes = torch.tensor([x[0] for x in found]).reshape(-1, 4)
    scores = torch.tensor([float(x[1]) for x in found])
    kept = (scores > 0.05).nonzero().flatten()
    detections = Detections(boxes[kept], scores[kept], torch.ones_like(kept), kept)
    return Said(
        detections, boxes + 1, boxes[:, None], torch.stack([torch.zeros_like(scores), scores], 1)
    )


def image(number: int) -> dict:
    return {"file_name": f"{number}.jpg", "image_id": number}


def fill(notes: CaseBook, numbers: range) -> None:
    """Images of ever clearer cases: the square is missed by one head, another found twice."""
    for number in numbers:
        score = 0.5 + number / 100
        conv = says((SQUARE, 0.1), (FAR, 0.9), (FAR, 0.2))
        fc = says((SQUARE, score), (FAR, 0.9), ([50, 50, 60, 50 + 3 - number / 10], 0.8))
        answers = [conv, fc, says((SQUARE, 0.6), (FAR, 0.9))][: len(notes.names)]
        notes.add(image(number), there(SQUARE, FAR), answers)


def test_counts_by_hand() -> None:
    notes = book(both_score=0.75)
    fill(notes, range(1, 5))
    # Objects that are ignored count nowhere.
    notes.add(image(9), there(SQUARE, ignored=(0,)), [says((SQUARE, 0.1))] * 3)
    notes.add(image(10), there(FAR), [says(), says((FAR, 0.4)), says((FAR, 0.8))])
    counted = {name: count for name, count in notes.counts.items() if count}
    assert counted == {
        "images": 6,
        "objects": 9,
        "missed by conv-head": 5,
        "missed by fc-head": 1,
        "missed by both heads": 4,  # a score of 0.6 is not shown of both
        "missed by each": 1,
        "detected twice by fc-head": 4,
        MISSED: 4,
        f"{MISSED}: low score": 4,
        f"{MISSED}: missed with both heads": 4,
        TWICE: 4,
        # From the same proposal the conv-head has the object's box, of a score of 0.2.
        f"{TWICE}: low score and suppressed": 4,
        f"{TWICE}: found with both heads": 4,
    }


def test_every_count_has_its_name_from_the_start() -> None:
    counts = book(both_score=0.5).counts
    assert set(counts.values()) == {0} and len(counts) == 2 + 8 + 4 * (1 + 3) + 2 * 3 + 2 * 4
    assert f"{TWICE}: found twice with both heads" in counts
    counts = book(shared=False).counts
    assert f"{TWICE}: proposals not shared" in counts and f"{TWICE}: suppressed" not in counts
    assert not any(BOTH in name for name in counts)


def test_the_clearest_of_each_kind_are_kept() -> None:
    notes = book(keep=2)
    fill(notes, range(1, 8))
    cases = notes.state()["cases"]
    assert [(x["kind"], x["image_id"]) for x in cases] == [
        *((MISSED, 7), (MISSED, 6)),
        *((TWICE, 7), (TWICE, 6)),
    ]
    assert cases[0]["rank"] == pytest.approx(0.57 - 0.1)
    assert cases[2]["rank"] == pytest.approx(1 - 0.23)


def test_one_case_of_an_image_and_equal_ranks_by_name() -> None:
    notes = book(keep=2)
    conv = says((SQUARE, 0.3), (FAR, 0.1))
    for number in (3, 1, 2):
        notes.add(image(number), there(SQUARE, FAR), [conv, says((SQUARE, 0.9), (FAR, 0.9))])
    cases = notes.state()["cases"]
    assert [(x["image_id"], x["object"]) for x in cases] == [(1, FAR), (2, FAR)]
    assert notes.counts[MISSED] == 6


def test_what_a_case_says() -> None:
    notes = book(both_score=0.75)
    fc = says((SQUARE, 0.9), (SECOND, 0.8), (FAR, 0.4))
    conv = says((SQUARE, 0.75), ([0.0, 0.0, 10.0, 6.0], 0.7), (FAR, 0.1))
    conv = conv._replace(detections=Detections(*(x[:1] for x in conv.detections)))  # after NMS
    notes.add({"file_name": "a.jpg"}, there(SQUARE, FAR), [conv, fc, says((FAR, 0.9))])
    (case,) = json.loads(json.dumps(notes.state()))["cases"]
    heads = {x.pop("title"): x for x in case.pop("heads")}
    assert case == {
        "kind": TWICE,
        "image": "a.jpg",
        "image_id": None,
        "object": SQUARE,
        "class": "b",
        "class_id": 1,
        "rank": pytest.approx(0.6 - 0.3),
        "reason": "suppressed",
        "objects": [{"box": x, "class": "b", "class_id": 1} for x in (SQUARE, FAR)],
        "overlap": pytest.approx(0.3),
        "same_overlap": pytest.approx(0.6),
    }
    assert list(heads) == [*TITLES, BOTH]
    assert [heads[x]["threshold"] for x in heads] == [0.5, 0.5, 0.75]
    assert [heads[x]["state"] for x in heads] == ["found", "found twice", "missed"]
    assert heads["fc-head"]["answer"] == {
        "box": SQUARE,
        "score": pytest.approx(0.9),
        "iou": 1.0,
        "proposal": [1.0, 1.0, 11.0, 11.0],
    }
    assert heads["fc-head"]["repeat"]["box"] == SECOND
    assert heads["fc-head"]["repeat"]["proposal"] == [1.0, 1.0, 11.0, 4.0]
    assert heads["conv-head"]["same"]["box"] == [0.0, 0.0, 10.0, 6.0]
    assert heads["conv-head"]["repeat"] is heads["fc-head"]["same"] is heads[BOTH]["same"] is None
    assert heads[BOTH]["answer"]["box"] == FAR  # all that there is
    detections = [(x["box"], x["class"], x["score"]) for x in heads["fc-head"]["detections"]]
    assert detections == [
        (SQUARE, "b", pytest.approx(0.9)),
        (SECOND, "b", pytest.approx(0.8)),
    ]


@pytest.mark.parametrize("both_score", [None, 0.75])
def test_books_of_parts_make_the_whole(both_score: float | None) -> None:
    whole, first, second = (book(both_score=both_score, keep=3) for _ in range(3))
    fill(whole, range(8))
    fill(first, range(5, 8))
    fill(second, range(5))
    first.merge(second)
    assert first.state() == whole.state()
    # And one that has been stopped goes on.
    stopped = book(both_score=both_score, keep=3)
    fill(stopped, range(3))
    again = CaseBook.from_state(json.loads(json.dumps(stopped.state())))
    fill(again, range(3, 8))
    assert again.state() == whole.state()


def test_books_of_other_settings_are_not_merged() -> None:
    with pytest.raises(AssertionError, match="only books of the same settings"):
        book().merge(book(keep=5))
    with pytest.raises(AssertionError, match="only books of the same settings"):
        book().merge(book(limits=Limits(iou=0.7)))


@pytest.mark.parametrize(
    ("titles", "changes", "said"),
    [
        (["a", "a"], {}, r"titles are \['a', 'a'\]; allowed: two, neither of them 'both heads'"),
        (["a", BOTH], {}, "allowed: two"),
        (["a"], {}, "allowed: two"),
        (TITLES, {"keep": -1}, "keep is -1; allowed: a whole number, 0 or more"),
        (TITLES, {"limits": Limits(score=2)}, "score is 2; allowed: 0 to 1"),
        (TITLES, {"both_score": 2}, "score is 2; allowed: 0 to 1"),
    ],
)
def test_settings_that_are_not_allowed(titles: list, changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CaseBook(titles, class_names=["a"], **changes)
