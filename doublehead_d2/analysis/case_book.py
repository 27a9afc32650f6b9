"""How often heads miss objects or detect them twice over a data set, and the plainest cases.

A book is small however many images there are: counts, and a few cases of each kind with all that a
picture of them needs. Boxes are XYXY in pixels of the original image.

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Figures A.4 and A.5; issue 22.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from doublehead_d2.analysis.cases import (
    MISSED_BECAUSE,
    NOT_SHARED,
    ONCE_BECAUSE,
    Answer,
    Judged,
    Missed,
    Repeated,
    Said,
    best_answer,
    detection,
    find_missed,
    find_repeated,
    repeat_of,
)
from doublehead_d2.analysis.matching import LIMITS, NONE, Limits, Objects, match, missed, twice
from doublehead_d2.config.shared import check_int

Record = dict[str, Any]

FOUND, MISSED, TWICE = "found", "missed", "found twice"
BOTH = "both heads"
SETTINGS = ("titles", "class_names", "limits", "both_score", "keep", "shared")


class CaseBook:
    """Counts of all cases, and the first of each kind by rank.

    There are two kinds for each direction: an object is missed by one head and found by the other,
    ranked by the difference of the scores that they give it (`Missed.rank`); it is detected twice
    by one and once by the other, ranked by the difference of two IoUs (`Repeated.rank`). Of an
    image the first of a kind is kept. Equal ranks are in the order of the images' names.
    """

    def __init__(
        self,
        titles: Sequence[str],
        *,
        class_names: Sequence[str],
        limits: Limits = LIMITS,
        both_score: float | None = None,
        keep: int = 4,
        shared: bool = True,
    ) -> None:
        """
        Args:
            titles: what the two heads are called, e.g. "conv-head" and "fc-head".
            class_names: K names.
            limits: what counts as shown and as found.
            both_score: if there is a third way, to score with both heads, its lowest score that is
                shown instead of `limits.score`: fusion may raise scores.
            keep: cases of each kind that are kept.
            shared: whether the heads are asked about the same proposals.

        Raises:
            ValueError: not two titles, or limits or `keep` that are not allowed.
        """
        if len(set(titles)) != 2 or len(titles) != 2 or BOTH in titles:
            raise ValueError(f"titles are {list(titles)}; allowed: two, neither of them '{BOTH}'")
        check_int("keep", keep, 0)
        self.titles = list(titles)
        self.class_names = list(class_names)
        self.limits = limits.check()
        if both_score is not None:
            limits._replace(score=both_score).check()
        self.keep = keep
        self.shared = shared
        self.both_score = both_score
        # The lowest that are shown in each way to score
        self._scores = dict.fromkeys(titles, limits.score)
        if both_score is not None:
            self._scores[BOTH] = both_score
        self._counts: Counter[str] = Counter()
        first, second = self.titles
        self._directions = {
            (0, 1): (_missed_kind(first, second), _twice_kind(first, second)),
            (1, 0): (_missed_kind(second, first), _twice_kind(second, first)),
        }
        self._cases: dict[str, list[Record]] = {kind: [] for kind in self.kinds}

    @property
    def names(self) -> list[str]:
        """Of the ways to score."""
        return list(self._scores)

    @property
    def kinds(self) -> list[str]:
        """The two of missed objects, then the two of objects detected twice."""
        return [kind for kinds in zip(*self._directions.values(), strict=True) for kind in kinds]

    @property
    def counts(self) -> dict[str, int]:
        """Of images and of objects, ignored ones left out.

        Under "missed by <name>" and "detected twice by <name>" are those of each way to score,
        under "... by each" those of the first two at once. Under each of `kinds` are its cases;
        with ": <reason>" after it those of `MISSED_BECAUSE` or `ONCE_BECAUSE`, and with
        ": <state> with both heads" what becomes of them with both.
        """
        names = ["images", "objects"]
        for what in ("missed by", "detected twice by"):
            names += [f"{what} {name}" for name in (*self.names, "each")]
        once = ONCE_BECAUSE[:-1] if self.shared else (NOT_SHARED,)
        for kind, reasons in zip(self.kinds, [MISSED_BECAUSE] * 2 + [once] * 2, strict=True):
            states = [_with_both(x) for x in (FOUND, MISSED, TWICE) if BOTH in self.names]
            names += [kind, *(f"{kind}: {x}" for x in (*reasons, *states))]
        assert set(self._counts) <= set(names), f"counts without a name: {set(self._counts)}"
        return {name: self._counts[name] for name in names}

    def add(self, image: Mapping[str, Any], objects: Objects, said: Sequence[Said]) -> None:
        """Look for cases in an image.

        Args:
            image: its "file_name", and "image_id" if it has one.
            objects: in it.
            said: in each way of `names`.
        """
        heads = [
            Judged(x, match(objects, x.detections, self.limits._replace(score=score)))
            for x, score in zip(said, self._scores.values(), strict=True)
        ]
        self._count(objects, dict(zip(self.names, heads, strict=True)))
        for (i, j), (missed_kind, twice_kind) in self._directions.items():
            first, second = heads[i], heads[j]
            for case in find_missed(objects, first, second, self.limits):
                self._take(missed_kind, case, image, objects, heads)
            shared = self.shared
            for again in find_repeated(objects, first, second, self.limits, shared=shared):
                if record := self._take(twice_kind, again, image, objects, heads):
                    record["heads"][j]["same"] = _plain(again.same)
                    record["overlap"], record["same_overlap"] = again.overlap, again.same_overlap

    def merge(self, other: "CaseBook") -> None:
        """Add what another book has found in other images."""
        assert all(getattr(self, x) == getattr(other, x) for x in SETTINGS), (
            "only books of the same settings can be merged"
        )
        self._counts.update(other._counts)
        for kind, cases in other._cases.items():
            for case in cases:
                self._keep(kind, case)

    def state(self) -> Record:
        """Settings, counts and kept cases as plain JSON, of which :meth:`from_state` makes a book.

        Each of "cases" has its "kind", "image", "image_id", "object" and "class", "rank" and
        "reason"; all "objects" of the image; and "heads": for each of `names` its "title",
        "threshold" of scores and "state" (found, missed, found twice); its "answer" (the detection
        that finds the object; where it is missed, see `best_answer`); its "repeat" where it is
        found twice; and the shown "detections" of the image. Answers have "box", "score", "iou"
        with the object, "proposal". In a case of an object detected twice, "overlap" is the IoU of
        the two detections; where proposals are shared, "same" of the other head is what it makes of
        the proposal of "repeat", and "same_overlap" the IoU of this and its detection.
        """
        cases = [case for kind in self.kinds for case in self._cases[kind]]
        settings = {name: getattr(self, name) for name in SETTINGS}
        limits = self.limits._asdict()
        return {**settings, "limits": limits, "counts": self.counts, "cases": cases}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CaseBook":
        """A book that goes on where another one was."""
        settings = {name: state[name] for name in SETTINGS}
        titles, limits = settings.pop("titles"), Limits(**settings.pop("limits"))
        book = cls(titles, limits=limits, **settings)
        book._counts.update(state["counts"])
        for case in state["cases"]:
            book._cases[case["kind"]].append(case)
        return book

    def _count(self, objects: Objects, heads: Mapping[str, Judged]) -> None:
        """Count the objects, those that each head misses, and those that it detects twice."""
        added: dict[str, int | Tensor] = {"images": 1, "objects": (~objects.ignored).sum()}
        for what, found in (("missed by", missed), ("detected twice by", twice)):
            by_head = {name: found(objects, head.matches) for name, head in heads.items()}
            added |= {f"{what} {name}": x.sum() for name, x in by_head.items()}
            first, second = self.titles
            added[f"{what} each"] = (by_head[first] & by_head[second]).sum()
        self._counts.update({name: int(count) for name, count in added.items()})

    def _take(
        self,
        kind: str,
        case: Missed | Repeated,
        image: Mapping[str, Any],
        objects: Objects,
        heads: Sequence[Judged],
    ) -> Record | None:
        """Count a case, and keep it if it is one of the first: then its record."""
        self._counts[kind] += 1
        self._counts[f"{kind}: {case.reason}"] += 1
        if BOTH in self.names:
            self._counts[f"{kind}: {_with_both(_state(objects, heads[2], case.object))}"] += 1
        record = {
            "kind": kind,
            "image": image["file_name"],
            "image_id": image.get("image_id"),
            "object": _rounded(objects.boxes[case.object].tolist()),
            "class": self.class_names[int(objects.classes[case.object])],
            "class_id": int(objects.classes[case.object]),
            "rank": case.rank,
            "reason": case.reason,
        }
        if not self._keep(kind, record):
            return None
        record["objects"] = self._listed(objects.boxes, objects.classes)
        record["heads"] = [
            self._head(name, objects, head, case.object)
            for name, head in zip(self.names, heads, strict=True)
        ]
        return record

    def _keep(self, kind: str, case: Record) -> bool:
        """Whether a case is one of the first, which it then joins."""
        kept = {x["image"]: x for x in self._cases[kind]}
        before = kept.get(case["image"])
        if before is None or case["rank"] > before["rank"]:
            kept[case["image"]] = case
        first = sorted(kept.values(), key=lambda x: (-x["rank"], x["image"]))[: self.keep]
        self._cases[kind] = first
        return any(x is case for x in first)

    def _head(self, name: str, objects: Objects, head: Judged, index: int) -> Record:
        """What the record of a case has of a head."""
        finder, state = int(head.matches.finders[index]), _state(objects, head, index)
        if finder == NONE:
            answer = best_answer(head.said, objects, index, self.limits.iou)
        else:
            answer = detection(objects, head, index, finder)
        repeat = None
        if state == TWICE:
            repeat = detection(objects, head, index, repeat_of(head, index))
        shown = head.matches.detections
        found = self._listed(shown.boxes, shown.classes)
        for listed, score in zip(found, shown.scores.tolist(), strict=True):
            listed["score"] = score
        return {
            "title": name,
            "threshold": self._scores[name],
            "state": state,
            "answer": _plain(answer),
            "repeat": _plain(repeat),
            "same": None,
            "detections": found,
        }

    def _listed(self, boxes: Tensor, classes: Tensor) -> list[Record]:
        return [
            {"box": _rounded(box), "class": self.class_names[class_id], "class_id": class_id}
            for box, class_id in zip(boxes.tolist(), classes.tolist(), strict=True)
        ]


def _missed_kind(misser: str, finder: str) -> str:
    return f"missed by {misser}, found by {finder}"


def _twice_kind(repeater: str, other: str) -> str:
    return f"detected twice by {repeater}, once by {other}"


def _with_both(state: str) -> str:
    return f"{state} with {BOTH}"


def _state(objects: Objects, head: Judged, index: int) -> str:
    if head.matches.finders[index] == NONE:
        return MISSED
    return TWICE if twice(objects, head.matches)[index] else FOUND


def _plain(answer: Answer | None) -> Record | None:
    if answer is None:
        return None
    return {
        **answer._asdict(),
        "box": _rounded(answer.box),
        "proposal": _rounded(answer.proposal),
    }


def _rounded(box: Sequence[float]) -> list[float]:
    """To hundredths of a pixel: float32 has no more in an image of thousands of pixels."""
    return [round(x, 2) for x in box]
