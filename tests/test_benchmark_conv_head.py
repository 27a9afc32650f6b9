"""Every way to run the conv-head gives its output, up to what the way rounds."""

import json
from pathlib import Path

import pytest
import torch

from doublehead_d2.analysis import conv_head
from doublehead_d2.analysis.conv_head import REFERENCE, WAYS, build_conv_head, time_ways
from doublehead_d2.tools import benchmark_conv_head as tool

# A compiler takes a minute, and half precision a CPU 30 times as long.
FAST = [way for way in WAYS if way not in ("compiled", "float16")]


@pytest.mark.parametrize("layout", conv_head.LAYOUTS)
def test_ways_agree_up_to_rounding(layout: str) -> None:
    results = time_ways(build_conv_head(layout), torch.randn(20, 256, 7, 7), FAST, repetitions=1)
    assert list(results) == FAST and results[REFERENCE]["difference"] == 0
    for way, result in results.items():
        half = way == "bfloat16"
        assert result["difference"] <= (0.05 if half else 1e-5), way
        assert (result["difference"] > 1e-5) == half, way  # autocast does take place
        assert result["ratio"] == pytest.approx(result["seconds"] / results[REFERENCE]["seconds"])


def test_layouts_are_the_published_ones() -> None:
    names = {
        layout: [type(block).__name__ for block in build_conv_head(layout).blocks]
        for layout in conv_head.LAYOUTS
    }
    assert names == {
        "authors": ["ResidualBlock"] + 2 * ["NonLocalBlock", "BottleneckBlock"],
        "mmdet": ["ResidualBlock"] + 4 * ["BottleneckBlock"],
    }


def test_tool_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "keep_freed_memory", lambda: True)
    path = tmp_path / "new" / "ways.json"
    words = ["--device", "cpu", "--layouts", "mmdet", "--rois", "3", "--repetitions", "1"]
    assert tool.main([*words, "--ways", "folded", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    (run,) = content["runs"]
    assert list(run["results"]) == [REFERENCE, "folded"]  # the reference is always there
    assert (run["rois"], content["keeps_freed_memory"]) == (3, True)
    assert "mmdet, 3 RoIs" in capsys.readouterr().out
    assert tool.main(["--rois", "0"]) == 1
    assert "--rois and --repetitions: allowed: 1 or more" in capsys.readouterr().err
