"""The notebook: what is stored in it, and a run of it on the model that the tests train."""

import io
import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from test_docs import anchors

from conftest import REPOSITORY
from doublehead_d2.tools.quickstart import final_ap

FOLDER = REPOSITORY / "notebooks"
PATH = FOLDER / "doublehead_d2.ipynb"
LARGEST = 600_000  # bytes: what a page of a repository shows at once
PICTURES = 3
# From the root of a disk or a user's folder, of Windows, too; not what follows a name or a field.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~}])(?:~?/(?!/)[\w.-]+/|[A-Za-z]:\\)|file://")


def read() -> Any:
    return nbformat.read(PATH, as_version=4)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any, name: str = "stdout") -> str:
    return "".join(x.text for x in cell.outputs if x.output_type == "stream" and x.name == name)


def pictures(cell: Any) -> list[Image.Image]:
    stored = [x.data for x in cell.outputs if x.output_type == "display_data"]
    return [Image.open(io.BytesIO(b64decode(data["image/jpeg"]))) for data in stored]


def texts(notebook: Any) -> str:
    """All that the file says, but for the pictures."""

    def without_pictures(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if not str(k).startswith("image/")}
            return {k: without_pictures(v) for k, v in kept.items()}
        return [without_pictures(x) for x in value] if isinstance(value, list) else value

    found: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict | list):
            for part in [*value, *value.values()] if isinstance(value, dict) else value:
                collect(part)

    collect(without_pictures(json.loads(nbformat.writes(notebook))))
    return "\n".join(found)


def ap_of(table: str, row: str) -> float:
    (ap,) = re.findall(rf"^\| {row} *\| *([\d.]+) ", table, re.MULTILINE)
    return float(ap)


def assert_ran(notebook: Any) -> None:
    """Every cell of code has run, in order, and said nothing but what it is there to say."""
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert {x.output_type for x in cell.outputs} <= {"stream", "display_data"}
        assert printed(cell, "stderr") == ""
    shown = [picture for cell in cells for picture in pictures(cell)]
    assert len(shown) == PICTURES and all(picture.width > 1000 for picture in shown)


def test_outputs_are_stored() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert_ran(notebook)
    # All but that with the paths say something.
    assert [bool(cell.outputs) for cell in code_of(notebook)][1:] == [True] * 9
    assert PATH.stat().st_size < LARGEST


def test_every_cell_has_its_sentence() -> None:
    kinds = [cell.cell_type for cell in read().cells]
    assert kinds == ["markdown"] + ["markdown", "code"] * 10


def test_nothing_names_a_place_of_some_machine() -> None:
    text = texts(read())
    assert "circle" in text and "output/demo/config.yaml" in text
    assert ABSOLUTE_PATH.findall(text) == []


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("in /tmp/x/y.py:3", True),
        ("'/home/me/x'", True),
        ("(~/x/y)", True),
        (r"C:\Users\x", True),
        ("file:///x", True),
        ("output/demo/config.yaml, ../docs/A.md, ./a/b", False),
        ("[a](https://github.com/a/b) 3 / 4, and/or", False),
    ],
)
def test_absolute_paths_are_seen(text: str, absolute: bool) -> None:
    assert bool(ABSOLUTE_PATH.search(text)) == absolute


def test_links_lead_somewhere() -> None:
    text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert len(links) == 2
    for link in links:
        name, _, anchor = link.partition("#")
        target = FOLDER / name
        assert target.is_file()
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))


def test_the_defaults_are_what_the_demo_leaves() -> None:
    first = code_of(read())[0].source
    assert '"DOUBLEHEAD_D2_CONFIG", "output/demo/config.yaml"' in first
    assert '"DOUBLEHEAD_D2_OUTPUT", "output/notebook"' in first


@pytest.mark.slow
def test_all_cells_run(
    trained: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    environment = {
        "DOUBLEHEAD_D2_CONFIG": str(trained / "config.yaml"),
        "DOUBLEHEAD_D2_OUTPUT": str(output),
        "PYTHONPATH": str(REPOSITORY),
        # Jupyter's own files; kernels that somebody has installed are not for this.
        **{f"JUPYTER_{x}_DIR": str(tmp_path / x) for x in ("CONFIG", "DATA", "RUNTIME")},
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = read()
    for cell in code_of(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    assert_ran(notebook)
    (table,) = [printed(x) for x in code_of(notebook) if "bbox_fused" in printed(x)]
    assert ap_of(table, "bbox") == ap_of(table, "bbox_fused")
    assert ap_of(table, "bbox") == pytest.approx(final_ap(str(trained)), abs=0.02)
    assert {path.name for path in (output / "inference").iterdir()} == {
        "reg_head", "cls_head", "unfused", "fused",
    }  # fmt: skip
