"""The figures of the paper, drawn from contents made by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from doublehead_d2.plots import (
    DIFFICULTIES,
    SIZES,
    plot_correlations,
    plot_lambda_grid,
    plot_spatial,
    plot_windows,
)
from doublehead_d2.plots.correlations import draw_correlations
from doublehead_d2.plots.lambda_grid import PANELS, draw_lambda_grid, grid_of, reasons
from doublehead_d2.plots.spatial import draw_spatial, tiled
from doublehead_d2.plots.style import (
    COLUMN,
    HEAD_COLOURS,
    MODEL_STYLES,
    OTHER_COLOUR,
    PAGE,
    PRINT,
    plt,
    run_styles,
)
from doublehead_d2.plots.windows import draw_windows

RUNS = [
    ("Single-FC", "configured", "fc"),
    ("Single-Conv", "configured", "conv"),
    ("Ext", "reg_head", "conv"),
    ("Ext", "cls_head", "fc"),
    ("Ext", "unfused", "both"),
    ("Ext", "fused", "both"),
]
SINGLE = [run[:2] for run in RUNS[:2]]


@pytest.fixture(autouse=True)
def in_print() -> Iterator[None]:
    """As `plot_*` set it up; nothing stays open."""
    with plt.rc_context(PRINT):
        yield
    plt.close("all")


def windows(bins: int = 4) -> dict[str, Any]:
    curves = []
    for number, (model, mode, kind) in enumerate(RUNS):
        for group in ("all", *SIZES, *DIFFICULTIES):
            mean: list[float | None] = [(i + number) / 10 for i in range(bins)]
            if group == "small":
                mean[0] = None
            deviation = [None if x is None else 0.05 for x in mean]
            values = {"score_mean": mean, "score_deviation": deviation}
            values |= {"iou_mean": mean, "iou_deviation": deviation}
            curves.append({"model": model, "mode": mode, "kind": kind, "group": group, **values})
    return {"bins": bins, "curves": curves}


def correlations() -> dict[str, Any]:
    bars = [("windows", group) for group in ("all", *SIZES, *DIFFICULTIES)]
    bars += [("rpn", "all"), ("detections", "all")]
    entries = [
        {
            **dict(zip(("model", "mode", "kind"), run, strict=True)),
            **{"proposals": proposals, "group": group, "count": 9, "images": 3},
            **{"pearson": 0.5 + i / 100, "low": 0.4 + i / 100, "high": 0.7 + i / 100},
        }
        for run in RUNS
        for i, (proposals, group) in enumerate(bars)
    ]
    return {"confidence": 0.95, "correlations": entries}


def spatial(maps: int = 3, side: int = 2) -> dict[str, Any]:
    entry = {"model": "Ext", "mode": "fused", "head": "box_head", "kind": "fc", "of": "weights"}
    entry |= {"side": side, "correlation": np.eye(side**2).tolist(), "mean_off_diagonal": 0.0}
    return {"objects": 9, "maps": [entry] * maps}


def lambdas(*pairs: tuple[float, float]) -> dict[str, Any]:
    """AP is 30 + 10 λ^fc + λ^conv, one more each panel."""
    points = []
    for fc, conv in pairs:
        ap: list[float | None] = [30 + 10 * fc + conv + i for i in range(4)]
        if conv == 1:
            ap[0] = ap[3] = None
        if fc == 1:
            ap[1] = None
        modes = dict(zip(("reg_head", "cls_head", "unfused", "fused"), ap, strict=True))
        points.append({"model": "x", "lambda_fc": fc, "lambda_conv": conv, "AP": modes})
    return {"metric": "AP", "points": points}


GRID = [(fc, conv) for fc in (0.7, 1.0) for conv in (0.8, 1.0)]
FIGURES: dict[str, Callable[[], Figure]] = {
    "sizes": lambda: draw_windows(windows(), runs=SINGLE),
    "classes, all runs": lambda: draw_windows(windows(), groups=DIFFICULTIES),
    "one group": lambda: draw_windows(windows(), groups=["all"], bands=False),
    "enlarged": lambda: draw_windows(windows(), groups=["all"], runs=SINGLE, zoom=(0.5, 1)),
    "correlations": lambda: draw_correlations(correlations(), runs=SINGLE),
    "correlations, all runs": lambda: draw_correlations(correlations()),
    "by class": lambda: draw_correlations(correlations(), groups=DIFFICULTIES, found=()),
    "spatial": lambda: draw_spatial(spatial()),
    "spatial, one": lambda: draw_spatial(spatial(1)),
    "spatial, many, 14 x 14": lambda: draw_spatial(spatial(5, 14)),
    "grid": lambda: draw_lambda_grid(lambdas(*GRID)),
    "wide grid": lambda: draw_lambda_grid(lambdas(*((x / 10, 1.0) for x in range(2, 11)))),
    "one pair": lambda: draw_lambda_grid(lambdas((1.0, 1.0))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_can_be_read(name: str) -> None:
    figure = FIGURES[name]()
    assert figure.get_figwidth() in (COLUMN, PAGE)
    figure.draw_without_rendering()
    texts = [x for x in figure.findobj(Text) if x.get_visible() and x.get_text().strip()]
    assert len(texts) > 5 and min(x.get_fontsize() for x in texts) >= 7
    drawn = figure.get_tightbbox()  # inches
    assert drawn.x0 >= 0 and drawn.y0 >= 0
    assert drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight()
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(plot.get_window_extent()) for plot in figure.axes)


@pytest.mark.parametrize(
    ("plot", "content"),
    [
        (plot_windows, windows()),
        (plot_correlations, correlations()),
        (plot_spatial, spatial()),
        (plot_lambda_grid, lambdas(*GRID)),
    ],
)
def test_files(plot: Callable[..., list[str]], content: dict[str, Any], tmp_path: Path) -> None:
    paths = [Path(path) for path in plot(content, str(tmp_path / "a"))]
    assert [path.name for path in paths] == ["a.png", "a.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and b"<svg" in paths[1].read_bytes()
    assert not plt.get_fignums()


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    first, second = (plot_spatial(spatial(1), str(tmp_path / name)) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_a_head_has_one_colour_and_a_model_one_line() -> None:
    entries = [dict(zip(("model", "mode", "kind"), run, strict=True)) for run in RUNS]
    styles = run_styles(entries)
    assert [style.colour for style in styles.values()] == ["C1", "C0", "C0", "C1", "C2", "C3"]
    lines = [style.model for style in styles.values()]
    assert lines == [MODEL_STYLES[0], MODEL_STYLES[1], *[MODEL_STYLES[2]] * 4]
    assert [style.label for style in styles.values()] == [
        *("Single-FC", "Single-Conv", "Ext, conv-head", "Ext, fc-head"),
        *("Ext, unfused", "Ext, fused"),
    ]
    # In another figure, of some of them
    some = run_styles(entries[2:4], ["Single-FC", "Single-Conv", "Ext"])
    assert [some[run].model for run in some] == [MODEL_STYLES[2]] * 2
    with pytest.raises(ValueError, match="models are \\['Single-FC'\\]; 'Ext' is drawn, too"):
        run_styles(entries[2:], ["Single-FC"])


def test_heads_of_one_kind_are_told_apart_by_their_task() -> None:
    entries = [
        {"model": "Two", "mode": "reg_head", "kind": "fc"},
        {"model": "Two", "mode": "cls_head", "kind": "fc"},
        {"model": "C4", "mode": "configured", "kind": "other"},
        {"model": "TSD", "mode": "configured", "kind": "both"},
    ]
    styles = list(run_styles(entries).values())
    assert [x.label for x in styles] == [
        *("Two, regression head", "Two, classification head", "C4", "TSD")
    ]
    assert [x.fill for x in styles] == ["full", "none", "full", "full"]
    assert [x.colour for x in styles] == ["C1", "C1", OTHER_COLOUR, OTHER_COLOUR]
    assert HEAD_COLOURS["cls_head"] == "C1"


def labelled(plot: Axes) -> dict[str, Any]:
    return {str(x.get_label()): x for x in plot.get_lines() if not x.get_label().startswith("_")}


def test_windows_by_hand() -> None:
    figure = draw_windows(windows(), groups=("small", "large"), runs=SINGLE)
    scores, ious = figure.axes[:2], figure.axes[2:]
    assert [x.get_title() for x in scores] == [
        *("small objects (below 32² px)", "large objects (above 96² px)")
    ]
    line = labelled(scores[1])["Single-Conv"]
    # Four bins: their middles are odd eighths. Single-Conv is the second run.
    np.testing.assert_allclose(line.get_xdata(), [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(line.get_ydata(), [0.1, 0.2, 0.3, 0.4])
    edges = [x.get_ydata() for x in scores[1].get_lines() if x.get_color() == "C0"]
    np.testing.assert_allclose(edges[1], [0.05, 0.15, 0.25, 0.35])
    np.testing.assert_allclose(edges[2], [0.15, 0.25, 0.35, 0.45])
    np.testing.assert_array_equal(
        np.isnan(labelled(scores[0])["Single-FC"].get_ydata()), [True, False, False, False]
    )
    diagonal = labelled(ious[0])["no regression"]
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert "no regression" not in labelled(scores[0])
    names = [x.get_text() for x in figure.legends[0].get_texts()]
    assert names == ["Single-FC", "Single-Conv", "no regression"]


def test_what_is_enlarged() -> None:
    figure = draw_windows(windows(), groups=["all"], runs=SINGLE, zoom=(0.5, 1))
    score, part, *_ = figure.axes
    # Bins 3 and 4 lie in it: 0.2, 0.3 and 0.3, 0.4. A margin of 0.1 x 0.2 + 0.005.
    np.testing.assert_allclose(part.get_ylim(), (0.175, 0.425))
    assert part.get_xlim() == (0.5, 1)
    (box,) = score.patches
    np.testing.assert_allclose((box.get_x(), box.get_y()), (0.5, 0.175))
    np.testing.assert_allclose((box.get_width(), box.get_height()), (0.5, 0.25))
    assert not part.collections and score.collections  # bands would fill it


def test_only_means() -> None:
    figure = draw_windows(windows(), groups=["all"], bands=False)
    assert len(figure.axes) == 2
    assert [len(x.get_lines()) for x in figure.axes] == [len(RUNS), len(RUNS) + 1]
    assert not any(x.collections for x in figure.axes)


def test_what_windows_cannot_draw() -> None:
    with pytest.raises(ValueError, match="zoom is .* allowed: one group"):
        draw_windows(windows(), zoom=(0.5, 1))
    with pytest.raises(ValueError, match="no curve of \\('Ext', 'configured', 'small'\\)"):
        draw_windows(windows(), runs=[("Ext", "configured")])


def test_correlations_by_hand() -> None:
    content = correlations()
    undefined = dict.fromkeys(("pearson", "low", "high"))
    content["correlations"] = [
        x | undefined if (x["model"], x["group"]) == ("Single-Conv", "medium") else x
        for x in content["correlations"]
    ]
    figure = draw_correlations(content, runs=SINGLE)
    left, right = figure.axes
    fc, conv = (x for x in left.containers if not x.get_label().startswith("_"))
    np.testing.assert_allclose([x.get_height() for x in fc], [0.51, 0.52, 0.53])
    # Two bars of 0.4 around each place
    np.testing.assert_allclose([x.get_center()[0] for x in fc], [-0.2, 0.8, 1.8])
    np.testing.assert_allclose([x.get_x() for x in conv], [0, 1, 2], atol=1e-12)
    heights = np.array([x.get_height() for x in conv])
    np.testing.assert_array_equal(np.isnan(heights), [False, True, False])
    assert [x.get_text() for x in left.texts] == ["–"]
    ends = left.collections[0].get_segments()
    np.testing.assert_allclose(ends[0], [[-0.2, 0.41], [-0.2, 0.71]])
    assert [x.get_text() for x in left.get_xticklabels()] == list(SIZES)
    assert [x.get_text() for x in right.get_xticklabels()] == ["RPN", "detections"]


@pytest.mark.parametrize("value", [0.1, 0.9])
def test_an_interval_without_its_value(value: float) -> None:
    content = correlations()
    for entry in content["correlations"]:
        entry["pearson"] = value
    figure = draw_correlations(content, runs=SINGLE)
    np.testing.assert_allclose(
        figure.axes[0].collections[0].get_segments()[0], [[-0.2, 0.41], [-0.2, 0.71]]
    )


def test_what_correlations_are_missing() -> None:
    with pytest.raises(ValueError, match="no correlation of \\('Ext', 'cls_head', 'windows', 'a'"):
        draw_correlations(correlations(), groups=["a"], runs=[("Ext", "cls_head")])


def test_tiles_by_hand() -> None:
    # Positions 0 1 / 2 3. Entry (i, j) is 10 i + j; the tile of position i stands where i stands,
    # and in it the entry of position j where j stands.
    correlation = 10 * np.arange(4)[:, None] + np.arange(4)
    expected = [[0, 1, 10, 11], [2, 3, 12, 13], [20, 21, 30, 31], [22, 23, 32, 33]]
    np.testing.assert_array_equal(tiled(correlation, 2), expected)


def test_the_own_position_of_a_tile_is_framed() -> None:
    figure = draw_spatial(spatial(1, side=3))
    plot = figure.axes[0]
    (image,) = plot.images
    assert image.get_clim() == (-1, 1)
    values = np.asarray(image.get_array())
    assert values.sum() == 9  # the identity: each position is like itself alone
    assert len(plot.patches) == 9
    for frame in plot.patches:
        column, row = np.array(frame.get_center()).astype(int)
        assert values[row, column] == 1
    assert "fc-head\nfirst weights" in plot.get_title()


def test_maps_are_named() -> None:
    content = spatial(3)
    first, second, third = (dict(x) for x in content["maps"])
    first |= {"of": "output", "correlation": [[None] * 4] * 4, "mean_off_diagonal": None}
    second["head"] = "reg_head"
    third |= {"model": "C4", "kind": "other", "of": "output"}
    content["maps"] = [first, second, third]
    assert [x.get_title().splitlines() for x in draw_spatial(content).axes[:3]] == [
        ["Ext, classification head", "output map, mean –"],
        ["Ext, regression head", "first weights, mean 0.00"],
        ["C4, head", "output map, mean 0.00"],
    ]


def test_grid_by_hand() -> None:
    content = lambdas(*GRID)
    grid = grid_of(content["points"], "reg_head")
    assert grid.lambda_fc == [0.7, 1.0] and grid.lambda_conv == [1.0, 0.8]
    np.testing.assert_allclose(grid.values, [[np.nan, np.nan], [37.8, 40.8]])
    figure = draw_lambda_grid(content)
    a, b, c, d = figure.axes[:4]
    assert [x.get_text() for x in a.texts] == ["37.8", "40.8"]
    assert [x.get_text() for x in b.texts] == ["39.0", "38.8"]
    frames = [
        (name, x.get_edgecolor()[:3], x.get_center())
        for name, plot in (("a", a), ("b", b), ("c", c), ("d", d))
        for x in plot.patches
        if not x.get_fill()
    ]
    # Of (c) λ = 1 of both, on top to the right; of (d) the best, which is λ^fc = 1, λ^conv = 0.8.
    (vanilla, best) = frames
    assert vanilla[0] == "c" and vanilla[1] == (0, 128 / 255, 0)
    np.testing.assert_allclose(vanilla[2], (1, 0))
    assert best[0] == "d" and best[1] == (0, 0, 1)
    np.testing.assert_allclose(best[2], (1, 1))
    hatched = [[tuple(x.get_center()) for x in plot.patches if x.get_hatch()] for plot in (a, b, c)]
    assert hatched == [[(0, 0), (1, 0)], [(1, 0), (1, 1)], []]


def test_why_cells_are_empty() -> None:
    points = lambdas((0.7, 0.8), (1.0, 1.0), (0.0, 0.5))["points"]
    points[2]["AP"] = dict.fromkeys(points[2]["AP"])
    found = [reasons(panel, grid_of(points, panel.mode)) for panel in PANELS]
    conv, fc = r"$\lambda^\mathrm{conv}$", r"$\lambda^\mathrm{fc}$"
    no_pair, zero = "pairs without a model", f"fc-head has no\nclasses at {fc} = 0"
    scores = f"hatched: conv-head has no\nclasses at {conv} = 1"
    assert found == [
        [scores, "not measured", no_pair],
        [f"hatched: fc-head has no\nboxes at {fc} = 1", zero, no_pair],
        [f"hatched: {zero}", no_pair],
        [scores, zero, no_pair],
    ]
    assert reasons(PANELS[2], grid_of(lambdas(*GRID)["points"], "unfused")) == []


def test_a_grid_without_numbers() -> None:
    content = lambdas((0.5, 0.5))
    content["points"][0]["AP"] = dict.fromkeys(content["points"][0]["AP"])
    figure = draw_lambda_grid(content)
    assert all(x.get_hatch() for plot in figure.axes[:4] for x in plot.patches)
