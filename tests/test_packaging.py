"""What pip installs: every package, every config once, and whatever is imported."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "doublehead_d2"


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
