"""The installer of a pure-Python detectron2, without its network and without its build."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "dev" / "install_detectron2.py"


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    assert spec is not None and spec.loader is not None, f"{SCRIPT} cannot be loaded"
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_commands(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed, and nothing may be run."""

    def refuse(what: str, *arguments: str, **_: object) -> None:
        raise AssertionError(f"{what} was started: {arguments}")

    monkeypatch.setattr(installer, "run", refuse)
    monkeypatch.setattr(installer, "find_installed", lambda: None)
    monkeypatch.setattr(installer, "check_tools", lambda with_torch: None)


@pytest.mark.parametrize("size", [0, 1000, 518688])
@pytest.mark.usefixtures("no_commands")
def test_another_archive_is_refused(
    installer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    archive, wheels = tmp_path / "a.tar.gz", tmp_path / "wheels"
    archive.write_bytes(b"x" * size)
    assert installer.main(["--archive", str(archive), "--wheel-dir", str(wheels)]) == 1
    message = capsys.readouterr().err
    assert installer.SHA256 in message and "518688 bytes" in message
    assert f"{size} bytes" in message and "nothing was installed" in message
    assert not wheels.exists(), "a wheel was built from a refused archive"


@pytest.mark.usefixtures("no_commands")
def test_missing_archive_is_named(
    installer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert installer.main(["--archive", str(tmp_path / "none.tar.gz")]) == 1
    assert "none.tar.gz: no such file" in capsys.readouterr().err


@pytest.mark.usefixtures("no_commands")
def test_an_installed_detectron2_is_kept(
    installer: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(installer, "find_installed", lambda: ("0.7", tmp_path))
    assert installer.main([]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and "0.7" in output and str(tmp_path) in output


def test_a_folder_is_not_an_installation(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "detectron2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    assert installer.find_installed() is None
    (tmp_path / "detectron2" / "__init__.py").write_text('__version__ = "0.6"\n')
    importlib.invalidate_caches()
    assert installer.find_installed() == ("0.6", tmp_path / "detectron2")


def test_torch_is_asked_for(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(installer.InstallError, match="pip install torch torchvision"):
        installer.check_tools(with_torch=True)


def test_a_failing_command_shows_its_end(installer: ModuleType, tmp_path: Path) -> None:
    program = "print('\\n'.join(map(str, range(100)))); raise SystemExit(3)"
    with pytest.raises(installer.InstallError, match=r"^It failed:\n  88\n(.*\n)*  99$"):
        installer.run("It", "-c", program, cwd=tmp_path)


def test_every_edit_is_complete(installer: ModuleType) -> None:
    for edit in installer.EDITS:
        assert len(edit.reason) > 20, f"no reason given: {edit}"
        assert edit.files and all(count > 0 for count in edit.files.values()), edit


# What stands in a file before the edits, and what must stand there afterwards.
BEFORE_AFTER = {
    "layers/rotated_boxes.py": (
        "from detectron2 import _C\n",
        "try:\n    from detectron2 import _C\n"
        "except ImportError:\n    from detectron2 import _missing_ops as _C\n",
    ),
    "data/build.py": (
        "a = np.zeros(3, dtype=np.int)\nb = np.array([1], dtype=np.int) + np.int64(1)\n",
        "a = np.zeros(3, dtype=int)\nb = np.array([1], dtype=int) + np.int64(1)\n",
    ),
    "export/__init__.py": (
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:\n    pass\n",
    ),
    "model_zoo/model_zoo.py": (
        "import pkg_resources\nf = pkg_resources.resource_filename(\n"
        '    "a.b", os.path.join("c", d)\n)\n',
        'from importlib import resources\nf = str(resources.files("a.b").joinpath("c", d))\n',
    ),
}


@pytest.mark.parametrize("name", sorted(BEFORE_AFTER))
def test_edits_on_a_tiny_tree(installer: ModuleType, tmp_path: Path, name: str) -> None:
    before, after = BEFORE_AFTER[name]
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(before)
    edits = [
        installer.Edit(edit.reason, {name: edit.files[name]}, edit.pattern, edit.replacement)
        for edit in installer.EDITS
        if name in edit.files
    ]
    installer.apply_edits(tmp_path, edits)
    # Two edits of one file leave one notice.
    assert path.read_text() == installer.NOTICE + after
    with pytest.raises(installer.InstallError, match=f"{name}: expected . place.* found 0"):
        installer.apply_edits(tmp_path, edits[-1:] if "zoo" in name else [_absent(installer, name)])


def _absent(installer: ModuleType, name: str) -> object:
    return installer.Edit("a place that is not there", {name: 1}, r"nowhere to be found", "")


def test_a_missing_file_is_drift(installer: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(installer.InstallError, match=r"gone.py: expected 1 place"):
        installer.apply_edits(tmp_path, [_absent(installer, "gone.py")])


def test_a_missing_operator_says_so(installer: ModuleType) -> None:
    module = ModuleType("_missing_ops")
    exec(installer.MISSING_OPS, module.__dict__)
    with pytest.raises(ImportError, match="box_iou_rotated is a compiled operator"):
        _ = module.box_iou_rotated
    # Python itself asks modules for such names; they must be absent, not fail.
    assert not hasattr(module, "__path__")


def test_a_pip_that_refuses_the_archive_is_explained(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(what: str, *arguments: str, **_: object) -> None:
        raise installer.InstallError(f"{what} failed: cannot declare direct URL dependencies")

    monkeypatch.setattr(installer, "run", refuse)
    with pytest.raises(installer.InstallError, match=r"pip<26\.3.*--archive FILE"):
        installer.download(tmp_path)
