"""What counts as coordinates, and how findings are collected."""

import numpy as np
import pytest

from doublehead_d2.data import kinds
from doublehead_d2.data.findings import Findings, are_coordinates, kind_of_box

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "numbers", [[], [0], (1.5, -2), [999_999.9, -999_999.9], np.array([1, 2.5]), [True], iter([3])]
)
def test_coordinates(numbers: object) -> None:
    assert are_coordinates(numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        *([NAN], [1, NAN], [NAN, 1], [1, NAN, 2], [INF], [1, -INF], [INF, -INF]),
        *([1e6], [-1e6, 1], [1, 1e30], [10**400, 1], np.array([1, NAN])),
        *(["1"], [1, "2"], [None], [1, None], [[1, 2]], np.ones((2, 2)), None, 3),
    ],
)
def test_no_coordinates(numbers: object) -> None:
    assert not are_coordinates(numbers)


def fault(number: int) -> str:
    return f"record {number} is wrong"


def test_faults_refuse_with_the_first_of_them_in_the_order_found() -> None:
    findings = Findings("Data set 'a'")
    findings.refuse()
    findings.add(kinds.CLIPPED, "annotation 1")
    findings.refuse()  # nothing of it is a fault
    findings.add(kinds.NO_BOX, fault(1))
    with pytest.raises(ValueError, match=r"^Data set 'a': record 1 is wrong$"):
        findings.refuse()
    for number in range(2, 1235):
        findings.add(kinds.NO_BOX if number % 2 else kinds.REPEATED_ID, fault(number))
    with pytest.raises(ValueError) as error:
        findings.refuse()
    assert str(error.value).splitlines() == [
        "Data set 'a': 1,234 faults, the first 5 of them:",
        *(f"- {fault(number)}" for number in range(1, 6)),
    ]
    assert findings.groups[kinds.NO_BOX].count == 617
    assert findings.groups[kinds.NO_BOX].first == [fault(x) for x in (1, 3, 5, 7, 9)]


def test_a_report_goes_on_and_stops_only_where_nothing_can_be_read() -> None:
    findings = Findings("Data set 'a'", reports=True)
    assert not findings.refuses
    findings.stop()
    findings.add(kinds.NO_BOX, fault(1), count=3)
    findings.refuse()
    assert findings.refuses
    with pytest.raises(ValueError, match="Data set 'a': 3 faults"):
        findings.stop()


def test_notes_of_one_text_are_counted_together() -> None:
    findings = Findings("Data set 'a'")
    for _ in range(1200):
        findings.add(kinds.OUTSIDE, "annotation {7}")
    findings.add(kinds.ZERO_AREA, "annotation 8")
    findings.add(kinds.GAPS, "one sentence")
    findings.add(kinds.CONVERTED, "another")
    findings.add(kinds.CONVERTED, "a third")
    findings.add(kinds.GRAY, "'a.png'")  # only a report says it
    assert findings.notes() == [
        "annotations without area in their image, which training leaves out and the evaluation "
        "counts as missed: 1,201, the first is annotation {7}",
        *("one sentence", "another", "a third"),
    ]


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([NAN, 0, 1, 1], kinds.NOT_FINITE),
        ([0, 0, INF, 1], kinds.NOT_FINITE),
        ([0, 0, 1e30, 1], kinds.NO_BOX),
        (["a"], kinds.NO_BOX),
        (None, kinds.NO_BOX),
        ([10**400], kinds.NO_BOX),
    ],
)
def test_why_something_is_no_box(box: object, kind: kinds.Kind) -> None:
    assert kind_of_box(box) is kind


def test_kinds_have_keys_of_their_own_and_say_what_training_does() -> None:
    found = [x for x in vars(kinds).values() if isinstance(x, kinds.Kind)]
    assert len({kind.key for kind in found}) == len(found) > 40
    assert {kind.severity for kind in found} == {"fault", "note", "info"}
    assert all(kind.title and kind.training and kind.why for kind in found)
