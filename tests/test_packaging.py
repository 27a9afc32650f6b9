"""What pip installs: every package, every config once, and whatever is imported."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from doublehead_d2.environment import declared_requirements, module_of
from doublehead_d2.tools.doctor import split_requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "doublehead_d2"
# detectron2 cannot be declared: see pyproject.toml.
OURS = {"detectron2", "doublehead_d2"}


def imported(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports, also within functions and conditions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.module.split(".")[0]


def undeclared(files: list[Path]) -> dict[str, list[str]]:
    """The third-party modules, and the files that import them, which pip would not bring."""
    names = (split_requirement(line)[0] for line in declared_requirements(PACKAGE))
    known = {module_of(name).split(".")[0] for name in names} | OURS | sys.stdlib_module_names
    found: dict[str, list[str]] = {}
    for path in files:
        for module in sorted(set(imported(path)) - known):
            found.setdefault(module, []).append(path.name)
    return found


def test_whatever_is_imported_is_declared() -> None:
    found = undeclared([ROOT / "train_net.py", *PACKAGE.rglob("*.py")])
    # The extra "fast", and what a method that is named after it asks for
    assert found == {"hotcoco": ["fast_coco.py"], "supervision": ["results.py"]}


def test_an_undeclared_import_is_seen(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import os.path, one.inner as x, torch.nn\nfrom . import near\nfrom .far import y\n"
        "def f():\n    from two.inner import z\n    import cv2, PIL.Image, yaml, detectron2\n"
    )
    assert undeclared([planted]) == {"one": ["planted.py"], "two": ["planted.py"]}


def test_every_folder_of_modules_is_a_package() -> None:
    """Setuptools finds packages by their `__init__.py`: a folder without one is left out."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_wheel(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("doublehead_d2", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    new = tmp_path / "doublehead_d2" / "new" / "newer"
    new.mkdir(parents=True)
    for folder in (new.parent, new):
        (folder / "__init__.py").touch()
    # Modules only leave a folder that setuptools took for a package.
    (tmp_path / "configs" / "no_package.py").touch()
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)

    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    configs = (path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
    modules = (path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))
    expected = [path.as_posix() for path in modules]
    expected += [f"doublehead_d2/{path.as_posix()}" for path in configs]
    expected += [f"doublehead_d2/{name}" for name in ("py.typed", "new/__init__.py")]
    assert sorted(names) == sorted([*expected, "doublehead_d2/new/newer/__init__.py"])
