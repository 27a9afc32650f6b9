"""Every way to run the conv-head gives its output, up to what the way rounds."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.layers import Conv2d

from doublehead_d2.benchmark import conv_head
from doublehead_d2.benchmark.conv_head import REFERENCE, WAYS, build_conv_head, time_ways
from doublehead_d2.modeling import DoubleHeadConvHead
from doublehead_d2.modeling.box_head import CPU_CHUNK
from doublehead_d2.tools import benchmark_conv_head as tool
from doublehead_d2.tools import options

# A compiler takes a minute, and half precision a CPU 30 times as long.
FAST = [way for way in WAYS if way not in ("compiled", "float16")]


@pytest.mark.slow
@pytest.mark.parametrize("layout", conv_head.LAYOUTS)
def test_ways_agree_up_to_rounding(layout: str) -> None:
    # Of half precision two RoIs, which take some CPUs as long as twenty of the others.
    half_precision = [REFERENCE, "bfloat16"]
    for ways, count in (([x for x in FAST if x != "bfloat16"], 20), (half_precision, 2)):
        rois = torch.randn(count, 256, 7, 7)
        check_ways(time_ways(build_conv_head(layout), rois, ways, repetitions=1), ways)


def check_ways(results: dict, ways: list[str]) -> None:
    assert list(results) == ways and results[REFERENCE]["difference"] == 0
    for way, result in results.items():
        half = way == "bfloat16"
        assert result["difference"] <= (0.05 if half else 1e-5), way
        assert (result["difference"] > 1e-5) == half, way  # autocast does take place
        assert result["ratio"] == pytest.approx(result["seconds"] / results[REFERENCE]["seconds"])


def test_ways_are_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    head = build_conv_head("mmdet")
    heads = {way: conv_head._way(way, head) for way in FAST if way != "bfloat16"}
    chunks = {way: heads[way].cpu_chunk for way in heads}
    assert chunks == {
        **dict.fromkeys(heads, CPU_CHUNK),
        REFERENCE: 1 << 30,
        "chunks of 16": 16,
        "chunks of 64": 64,
    }
    assert all(conv.norm is None for conv in convolutions(heads["folded"]))
    for conv in convolutions(heads["channels last"]):
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert conv.norm is not None
    assert [way for way in heads if heads[way].fold_bn] == ["folded, channels last"]
    monkeypatch.setattr(torch, "compile", lambda module: ("compiled", module.cpu_chunk))
    assert conv_head._way("compiled", head) == ("compiled", 1 << 30)
    for way in ("bfloat16", "float16"):
        with torch.no_grad():
            under_autocast = conv_head._way(way, head)(torch.randn(1, 256, 7, 7))
        assert under_autocast.dtype == getattr(torch, way)


def convolutions(head: DoubleHeadConvHead) -> list[Conv2d]:
    return [module for module in head.modules() if isinstance(module, Conv2d)]


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
    monkeypatch.setattr(options, "keep_freed_memory", lambda: True)
    path = tmp_path / "new" / "ways.json"
    words = ["--device", "cpu", "--layouts", "mmdet", "--rois", "3", "--repetitions", "1"]
    assert tool.main([*words, "--ways", "folded", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    (run,) = content["runs"]
    assert list(run["results"]) == [REFERENCE, "folded"]  # the reference is always there
    assert (run["rois"], content["keeps_freed_memory"]) == (3, True)
    assert "mmdet, 3 RoIs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rois", "5", "0"], "--rois is 0; allowed: 1 or more"),
        (["--repetitions", "-1"], "--repetitions is -1; allowed: 1 or more"),
        (["--device", "gpu"], "--device is 'gpu'; allowed here: cpu"),
        (["--json", "."], "'.' is a folder; allowed: a file to write"),
    ],
)
def test_tool_refuses(words: list, message: str, capsys: pytest.CaptureFixture) -> None:
    assert tool.main(words) == 1
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
