"""Tools that take detectron2's models take ours: the documents' examples, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "USE.md"
TOOLS = ("sahi", "supervision")


def example(tool: str) -> str:
    """The block of Python that imports a tool."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if re.search(rf"^(import|from) {tool}\b", block, re.M)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_the_example_of_the_documents_runs(tool: str, trained: Path, shapes: Path) -> None:
    text = example(tool).replace("output/demo/config.yaml", str(trained / "config.yaml"))
    text = text.replace("datasets/shapes/", f"{shapes}/")
    text = text.replace("0.75", "0.3")  # trained for seconds, not for minutes
    if tool == "sahi":
        text += "assert {x.category.name for x in result.object_prediction_list} <= "
        text += "{'circle', 'rectangle', 'triangle'}\n"
        text += "assert result.object_prediction_list\n"
    else:
        text += "assert len(detections) and (picture != image).any()\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout


@pytest.mark.slow
def test_heads_are_known_once_the_package_is_imported() -> None:
    code = "from detectron2.modeling import ROI_HEADS_REGISTRY as heads\n"
    code += "assert 'DoubleHeadROIHeads' not in heads\n"
    code += "import doublehead_d2\n"
    code += "assert 'DoubleHeadROIHeads' in heads and 'TSDROIHeads' in heads"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
