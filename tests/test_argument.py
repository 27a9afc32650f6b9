"""The argument's figures in a table, over one training or several."""

import copy

import pytest

from doublehead_d2.analysis.argument import summary, summary_table

ABOUT = {"data": "shapes_val", "images": 2, "objects": 3, "proposals_per_object": 20}


def contents() -> tuple[dict, dict, dict]:
    """Of one model with one mode; bins of IoU rise by 0.04."""
    curve = {"model": "FC", "mode": "configured", "kind": "fc", "group": "all"}
    curve |= {"score_mean": [0.5] * 20, "iou_mean": [0.04 * k for k in range(20)]}
    small = {**curve, "group": "small", "iou_mean": [None] * 20}
    windows = {**ABOUT, "bins": 20, "curves": [small, curve]}
    pair = {"model": "FC", "mode": "configured", "count": 9}
    correlations = [
        {**pair, "proposals": "windows", "group": "all", "pearson": 0.75, "low": 0.7, "high": 0.8},
        {**pair, "proposals": "windows", "group": "small", "pearson": 0.1, "low": 0.0, "high": 0.2},
        {**pair, "proposals": "rpn", "group": "all", "pearson": 0.5, "low": None, "high": None},
        {**pair, "proposals": "detections", "group": "all", "pearson": None, "low": None,
         "high": None},
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
        "| model | mode | correlation, windows | correlation, rpn | correlation, detections "
        "| IoU from 0.20 to 0.25 | IoU from 0.45 to 0.50 | IoU from 0.70 to 0.75 "
        "| IoU from 0.95 to 1.00 |",
        "|---|---|---|---|---|---|---|---|---|",
        "| FC | configured | 0.750 (0.700 to 0.800) | 0.500 | – | 0.160 | 0.360 | 0.560 | 0.760 |",
        "",
        "| model | head | kind | of its | mean cosine of two positions |",
        "|---|---|---|---|---|",
        "| FC | box_head | fc | output | 0.12 |",
        "| FC | box_head | fc | weights | – |",
    ]
    without_maps = summary_table([summary(*contents()[:2])])
    assert "cosine" not in without_maps and without_maps.count("\n") == 2


def test_several_trainings_by_hand() -> None:
    """0.75, 0.77 and 0.79: a mean of 0.77, a sample deviation of 0.02; of 0.5 and twice 0.53 0.017.

    The population's would be 0.016 and 0.014.
    """
    trainings = [summary(*contents()) for _ in range(3)]
    for place, training in enumerate(trainings):
        (run,) = training["runs"]
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
        ({"images": 3}, r"differ in their data: .*'images': 2.* and .*'images': 3.*one for all"),
        ({"proposals_per_object": 0}, "differ in their proposals_per_object: 20 and 0"),
        ({"maps": []}, r"differ in their maps: \['FC box_head output', 'FC box_head weights'\] an"),
    ):
        with pytest.raises(ValueError, match=message):
            summary_table([own, {**own, **change}])
    other = copy.deepcopy(own)
    other["runs"][0]["mode"] = "fused"
    with pytest.raises(ValueError, match=r"models and modes: \['FC configured'\] and \['FC fused'"):
        summary_table([own, other])
