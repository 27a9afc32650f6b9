"""The argument's figures in a table, over one training or several."""

import copy
import json
from pathlib import Path

import pytest

from conftest import REPOSITORY
from doublehead_d2.analysis.argument import (
    check_others,
    read_summaries,
    summary,
    summary_table,
)

ABOUT = {"data": "shapes_val", "images": 2, "objects": 3, "proposals_per_object": 20}


def contents() -> tuple[dict, dict, dict]:
    """Of a model with one mode, and others of whose numbers none is its; bins rise by 0.04."""
    curve = {"model": "FC", "mode": "configured", "kind": "fc", "group": "all"}
    curve |= {"score_mean": [0.5] * 20, "iou_mean": [0.04 * k for k in range(20)]}
    small = {**curve, "group": "small", "iou_mean": [None] * 20}
    others = [
        {**curve, "model": "Ext", "mode": mode, "kind": "both", "iou_mean": [level] * 20}
        for mode, level in (("unfused", 0.25), ("fused", 0.5))
    ]
    windows = {**ABOUT, "bins": 20, "curves": [small, curve, *others]}
    pair = {"model": "FC", "mode": "configured", "count": 9}
    correlations = [
        {**pair, "proposals": "windows", "group": "all", "pearson": 0.75, "low": 0.7, "high": 0.8},
        {**pair, "proposals": "windows", "group": "small", "pearson": 0.1, "low": 0.0, "high": 0.2},
        {**pair, "proposals": "rpn", "group": "all", "pearson": 0.5, "low": None, "high": None},
        {**pair, "proposals": "detections", "group": "all", "pearson": None, "low": None,
         "high": None},
    ]  # fmt: skip
    correlations += [
        {**pair, "model": "Ext", "mode": mode, "proposals": source, "group": "all",
         "pearson": level, "low": level, "high": level}
        for mode, level in (("unfused", 0.25), ("fused", 0.5))
        for source in ("windows", "rpn", "detections")
    ]  # fmt: skip
    maps = [
        {"model": "FC", "mode": "configured", "head": "box_head", "kind": "fc", "of": "output",
         "side": 7, "correlation": [[1.0]], "mean_off_diagonal": 0.125},
        {"model": "FC", "mode": "configured", "head": "box_head", "kind": "fc", "of": "weights",
         "side": 7, "correlation": [[1.0]], "mean_off_diagonal": None},
    ]  # fmt: skip
    return windows, {"correlations": correlations}, {"maps": maps}


def test_one_training_by_hand() -> None:
    assert summary_table([summary(*contents())]).splitlines() == [
        "shapes_val, 2 images, 3 objects, 20 windows around each: correlation of score and IoU, "
        "and IoU of the box regressed from windows of some IoU; 1 training of each model, with "
        "95 % intervals over images.",
        "",
        "| model | mode | correlation, windows | correlation, rpn | correlation, detections "
        "| box, windows 0.20 to 0.25 | box, windows 0.45 to 0.50 | box, windows 0.70 to 0.75 "
        "| box, windows 0.95 to 1.00 |",
        "|---|---|---|---|---|---|---|---|---|",
        "| FC | configured | 0.750 (0.700 to 0.800) | 0.500 | – | 0.160 | 0.360 | 0.560 | 0.760 |",
        "| Ext | unfused | 0.250 (0.250 to 0.250) | 0.250 (0.250 to 0.250) "
        "| 0.250 (0.250 to 0.250) | 0.250 | 0.250 | 0.250 | 0.250 |",
        "| Ext | fused | 0.500 (0.500 to 0.500) | 0.500 (0.500 to 0.500) "
        "| 0.500 (0.500 to 0.500) | 0.500 | 0.500 | 0.500 | 0.500 |",
        "",
        "| model | head | kind | of its | mean cosine of two positions |",
        "|---|---|---|---|---|",
        "| FC | box_head | fc | output | 0.12 |",
        "| FC | box_head | fc | weights | – |",
    ]
    without_maps = summary_table([summary(*contents()[:2])])
    assert "cosine" not in without_maps and without_maps.count("\n") == 2 + 4


def test_several_trainings_by_hand() -> None:
    """0.75, 0.77 and 0.79: a mean of 0.77, a sample deviation of 0.02; of 0.5 and twice 0.53 0.017.

    The population's would be 0.016 and 0.014.
    """
    trainings = [summary(*contents()) for _ in range(3)]
    for place, training in enumerate(trainings):
        run = training["runs"][0]
        run["correlations"]["windows"]["pearson"] = 0.75 + 0.02 * place
        run["correlations"]["rpn"]["pearson"] = 0.53 if place else 0.5
        run["iou_mean"][9] = None if place == 1 else 0.4
        training["maps"][0]["mean_off_diagonal"] = 0.1 * place
    table = summary_table(trainings)
    assert "| 0.770 ± 0.020 | 0.520 ± 0.017 | – | 0.160 ± 0.000 | – | 0.560" in table
    assert "| output | 0.10 ± 0.10 |" in table and "| weights | – |" in table


def test_trainings_of_other_things_are_refused() -> None:
    own = summary(*contents())
    for change, message in (
        ({"images": 3}, "differ in their images: 2 and 3; allowed: one for all"),
        ({"proposals_per_object": 0}, "differ in their proposals_per_object: 20 and 0"),
        ({"seed": 1}, "differ in their seed: 0 and 1"),
        ({"maps": []}, r"--figures spatial\): \['FC box_head output', 'FC box_head weights'\] an"),
    ):
        with pytest.raises(ValueError, match=message):
            summary_table([own, {**own, **change}])
    for change, message in (
        (
            {"mode": "fused"},
            r"in their models: \['FC configured \(fc\)', .* and \['FC fused \(fc\)",
        ),
        ({"kind": "conv"}, r"and \['FC configured \(conv\)"),
    ):
        other = copy.deepcopy(own)
        other["runs"][0] |= change
        with pytest.raises(ValueError, match=message):
            summary_table([own, other])


def test_others_are_refused_before_anything_is_counted() -> None:
    own = summary(*contents())
    wanted = {"data": "shapes_val", "proposals_per_object": 20, "seed": 0, "spatial": True}
    wanted["models"] = ["FC", "Ext"]
    check_others({"two": own}, **wanted)
    check_others({}, **wanted)
    for key, value, message in (
        ("data", "own_val", "two: data is shapes_val, here own_val; allowed: the same in all"),
        ("models", ["Ext", "FC"], r"two: models is \['FC', 'Ext'\], here \['Ext', 'FC'\]"),
        ("spatial", False, "two: spatial is True, here False"),
    ):
        with pytest.raises(ValueError, match=message):
            check_others({"two": own}, **{**wanted, key: value})


@pytest.mark.parametrize("text", ["", "[]", '{"runs": []}', "3", '{"runs": [{}], "maps": []}'])
def test_what_is_no_summary_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"summary\.json is no summary of tools"):
        read_summaries([str(tmp_path)])


def test_summaries_are_read(tmp_path: Path) -> None:
    own = summary(*contents())
    (tmp_path / "summary.json").write_text(json.dumps(own))
    assert read_summaries([str(tmp_path)]) == [own] and read_summaries([]) == []
    with pytest.raises(ValueError, match=r"nowhere has no summary\.json; allowed: outputs"):
        read_summaries(["nowhere"])


def test_docs_have_the_tables_of_the_record() -> None:
    record = json.loads((REPOSITORY / "dev/benchmarks/shapes_argument.json").read_text())
    document = (REPOSITORY / "docs/REPRODUCTION.md").read_text(encoding="utf-8")
    assert len(record["trainings"]) == 3
    assert summary_table(record["trainings"]) in document
