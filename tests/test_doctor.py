"""The doctor, and what the package says where detectron2 is missing."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from doublehead_d2.environment import (
    INSTALL_DETECTRON2,
    declared_requirements,
    distribution_of,
    ignore_warnings,
    module_of,
    require_detectron2,
    running_doctor,
    running_program,
)
from doublehead_d2.tools.doctor import (
    REINSTALL_DETECTRON2,
    REINSTALL_TORCH,
    Answer,
    Facts,
    Finding,
    diagnose,
    find_broken,
    find_detectron2,
    release,
    split_requirement,
    statements,
    try_statements,
)

ROOT = Path(__file__).resolve().parents[1]
DECLARED = declared_requirements(ROOT / "doublehead_d2")
PROJECT = """
[project]
name = "{name}"
dependencies = [
    "torch>=2.3",  # a comment
    # "left-out",
    "tabulate[widechars]",
]

[project.optional-dependencies]
dev = ["pytest>=8"]
"""
# Python imports a sitecustomize from PYTHONPATH before anything else.
HIDE = """
import sys
import warnings
from importlib.machinery import PathFinder

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in {modules} or name.partition(".")[0] in {modules}:
            return None
        return super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *args):
        found = super().find_distributions(*args)
        return [x for x in found if x.metadata["Name"] not in {distributions}]

sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")
                 or "detectron2" not in str(getattr(f, "MAPPING", ""))]
"""


def healthy() -> Facts:
    return Facts(
        versions={"torch": "2.5.1+cu121", "numpy": "2.1.0", "detectron2": "0.6"},
        requirements=("torch>=2.0", "numpy"),
        answers={"torch": Answer(value="12.1"), "cuda": Answer(value="a device")},
        detectron2=Path("detectron2"),
        compiled=True,
        data_folder=Path("."),
    )


def python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    parts = [str(path or ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in parts if part)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def hide(folder: Path, modules: list[str], distributions: list[str]) -> None:
    text = HIDE.replace("{modules}", repr(modules)).replace("{distributions}", repr(distributions))
    (folder / "sitecustomize.py").write_text(text)


@pytest.fixture
def without_detectron2(tmp_path: Path) -> Path:
    hide(tmp_path, modules=["detectron2"], distributions=[])
    return tmp_path


def test_nothing_to_say_of_a_healthy_environment() -> None:
    assert diagnose(healthy()) == []


def test_missing_and_old_requirements_have_commands() -> None:
    facts = healthy()
    facts.requirements = ("torch>=3", "iopath>=0.1.7", "numpy")
    torch, iopath = diagnose(facts)
    assert torch.what == "torch is 2.5.1+cu121, needed is torch>=3"
    assert torch.command == "pip install --upgrade torch torchvision"
    assert iopath == Finding("fail", "iopath is not installed", "pip install 'iopath>=0.1.7'")


def test_mismatched_torchvision_hides_its_echo() -> None:
    facts = healthy()
    facts.versions["torchvision"] = "0.1"
    error = "RuntimeError: operator torchvision::nms does not exist"
    facts.answers.update({name: Answer(error) for name in ("torchvision", "detectron2.engine")})
    (finding,) = diagnose(facts)
    assert finding.command == REINSTALL_TORCH and error in finding.what


@pytest.mark.parametrize("line", DECLARED)
def test_each_requirement_missing_or_broken(line: str) -> None:
    facts = healthy()
    facts.requirements = (line,)
    name, _ = split_requirement(line)
    facts.versions[name] = None
    (finding,) = diagnose(facts)
    together = name in ("torch", "torchvision")
    expected = "pip install --upgrade torch torchvision" if together else f"pip install {line!r}"
    assert finding == Finding("fail", f"{name} is not installed", expected)

    facts.versions[name] = "99"
    module = module_of(name)
    step = statements([line])[module]
    assert step.startswith("import ") and module in step
    facts.answers[module] = Answer("ImportError: no")
    (finding,) = diagnose(facts)
    assert finding.severity == "fail" and "(ImportError: no)" in finding.what
    again = REINSTALL_TORCH if together else f"pip install --force-reinstall {name}"
    assert finding.command == again


def test_a_new_requirement_is_imported() -> None:
    step = statements(["some_package>=1"])["some_package"]
    assert step.splitlines()[0] == "import some_package"


def test_modules_and_distributions_are_each_others_inverse() -> None:
    for name in (split_requirement(line)[0] for line in DECLARED):
        assert importlib.util.find_spec(module_of(name)) is not None, f"nothing to import: {name}"
        assert distribution_of(module_of(name)) == name
    modules = {"PIL": "pillow", "cv2.dnn": "opencv-python", "hydra": "hydra-core", "numpy": "numpy"}
    assert {module: distribution_of(module) for module in modules} == modules


def test_requirements_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["older"])
    package = tmp_path / "doublehead_d2"
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(name="doublehead_d2"))
    assert declared_requirements(package) == ("torch>=2.3", "tabulate[widechars]")


def test_requirements_of_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = ["torch>=2.3", 'pytest>=8; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: noted)
    assert declared_requirements(tmp_path / "doublehead_d2") == ("torch>=2.3",)
    # Beside a copy of the package lies what another project needs.
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(name="doublehead_d2_user"))
    assert declared_requirements(tmp_path / "doublehead_d2") == ("torch>=2.3",)


def test_unknown_requirements_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    facts = healthy()
    facts.requirements = declared_requirements(tmp_path / "doublehead_d2")
    (finding,) = diagnose(facts)
    assert finding.severity == "fail" and "is not installed" in finding.what
    assert finding.command == "pip install -e ."


@pytest.mark.parametrize(
    ("error", "command"),
    [
        ("ImportError: cannot import name '_C'", REINSTALL_DETECTRON2),
        ("ModuleNotFoundError: No module named 'pkg_resources'", REINSTALL_DETECTRON2),
        ("ModuleNotFoundError: No module named 'hydra'", "pip install hydra-core"),
        ("ModuleNotFoundError: No module named 'omegaconf'", "pip install omegaconf"),
    ],
)
def test_broken_detectron2(error: str, command: str) -> None:
    facts = healthy()
    facts.answers["detectron2.config"] = Answer(error)
    (finding,) = diagnose(facts)
    assert finding.severity == "fail" and error in finding.what and finding.command == command


def test_missing_detectron2() -> None:
    facts = healthy()
    facts.detectron2 = None
    assert diagnose(facts) == [Finding("fail", "detectron2 is not installed", INSTALL_DETECTRON2)]


def test_what_may_stay_absent_is_only_noted() -> None:
    facts = healthy()
    facts.compiled, facts.answers["cuda"] = False, Answer(value="")
    facts.zoo_needs_pkg_resources, facts.has_pkg_resources = True, False
    facts.data_folder = Path("no such folder")
    notes = diagnose(facts)
    assert {note.severity for note in notes} == {"note"}
    words = ("compiled part", "pkg_resources", "CUDA", "DETECTRON2_DATASETS")
    for note, word in zip(notes, words, strict=True):
        assert word in note.what, f"{word} not in {note.what}"


def test_a_crash_is_an_answer() -> None:
    steps = {
        "fine": "value = 'seen'; print('noise')",
        "raises": "raise OSError('no libGL')",
        "exits": "raise SystemExit",
        "dies": "import os; os._exit(11)",
        "after": "value = 'reached'",
    }
    assert try_statements(steps) == {
        "fine": Answer(value="seen"),
        "raises": Answer("OSError: no libGL"),
        "exits": Answer("SystemExit: "),
        "dies": Answer("Python died with code 11"),
        "after": Answer(value="reached"),
    }


def test_versions_are_read() -> None:
    assert release("0.1.5.post20221221") == (0, 1, 5) and release("of unknown version") == ()
    assert split_requirement("torch>=2.0") == ("torch", (2, 0))
    assert split_requirement("Pillow") == ("pillow", ())


def test_require_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"^detectron2 is not installed: run `.*docs/INSTALL\.md shows\.$"
    ):
        require_detectron2()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python", "-m", "doublehead_d2.tools.doctor"], True),
        (["python", "-W", "ignore", "-m", "doublehead_d2.tools.doctor", "x"], True),
        (["python", "-m", "doublehead_d2.tools.train_net"], False),
        (["python", "doctor.py"], False),
    ],
)
def test_running_doctor(words: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", words)
    assert running_doctor() is expected


@pytest.mark.slow
def test_doctor_here() -> None:
    result = python("-m", "doublehead_d2.tools.doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("Python", "torch ", "torchvision", "detectron2", "CUDA", "setuptools"):
        assert f"\n{name}" in "\n" + result.stdout, f"no line for {name}"
    assert result.stdout.endswith("Nothing would fail.\n") and not result.stderr


@pytest.mark.slow
def test_doctor_without_detectron2(without_detectron2: Path) -> None:
    result = python("-m", "doublehead_d2.tools.doctor", path=without_detectron2)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"fail: detectron2 is not installed\n      {INSTALL_DETECTRON2}\n" in result.stdout


@pytest.mark.slow
def test_doctor_without_requirements(tmp_path: Path) -> None:
    hide(tmp_path, modules=["matplotlib", "tabulate"], distributions=["matplotlib"])
    result = python("-m", "doublehead_d2.tools.doctor", path=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    error = "ModuleNotFoundError: No module named 'tabulate'"
    failures = [
        *("fail: matplotlib is not installed", "      pip install 'matplotlib'"),
        *(
            f"fail: tabulate does not work ({error})",
            "      pip install --force-reinstall tabulate",
        ),
    ]
    assert "\n".join(["", *failures, ""]) in result.stdout
    assert result.stdout.endswith("\n2 thing(s) would fail.\n")


def test_package_without_detectron2(without_detectron2: Path) -> None:
    result = python("-c", "import doublehead_d2", path=without_detectron2)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: detectron2 is not installed: run `" + INSTALL_DETECTRON2)


@pytest.mark.slow
def test_doctor_where_matplotlib_is_not_whole(tmp_path: Path) -> None:
    hide(tmp_path, modules=["matplotlib.pyplot"], distributions=[])
    result = python("-m", "doublehead_d2.tools.doctor", path=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    error = "ModuleNotFoundError: No module named 'matplotlib.pyplot'"
    assert f"\nfail: matplotlib.pyplot does not work ({error})\n" in result.stdout


def test_what_is_left_of_a_package_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "removed" / "data").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = try_statements({"removed": statements(["removed"])["removed"]})["removed"]
    assert answer.error == "AssertionError: nothing is left of removed but a folder"
    (tmp_path / "removed" / "__init__.py").touch()
    assert try_statements({"removed": statements(["removed"])["removed"]})["removed"] == Answer()


def test_warnings_that_are_errors_are_not_blamed_on_packages() -> None:
    facts = healthy()
    warns, fails = "FutureWarning: old\nstyle", "ImportError: no"
    facts.answers["detectron2.data"] = Answer(warns)
    facts.answers["numpy"] = Answer(warns)
    facts.answers["detectron2.engine"] = Answer(fails)
    warned, broken = diagnose(facts)[0], find_detectron2(facts)[0]
    assert warned.what.startswith("warnings are errors here, and these warn: detectron2.data, num")
    assert warned.severity == "fail" and "PYTHONWARNINGS" in warned.command
    assert find_broken(facts) == [] and fails in broken.what


@pytest.mark.slow
def test_doctor_where_warnings_are_errors() -> None:
    result = python("-W", "error", "-m", "doublehead_d2.tools.doctor")
    # Were nothing of it to warn one day, nothing would fail.
    code = "import detectron2.engine, detectron2.evaluation, detectron2.data"
    fails = python("-W", "error", "-c", code).returncode
    assert result.returncode == fails, result.stdout + result.stderr
    assert ("fail: warnings are errors here" in result.stdout) == bool(fails)


# --------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        (str(ROOT / "train_net.py"), ["python", "train_net.py"], True),
        (str(ROOT / "doublehead_d2" / "tools" / "demo.py"), ["python", "-c", "spawn"], True),
        ("-m", ["python", "-W", "error", "-m", "doublehead_d2.tools.demo"], True),
        ("elsewhere/train_net.py", ["python", "elsewhere/train_net.py"], False),
        ("", ["python"], False),
        ("-m", ["python", "-m", "pytest", "doublehead_d2.tools.demo"], False),
    ],
)
def test_running_program(
    script: str, words: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert running_program(ROOT / "doublehead_d2") is expected


def test_filters_of_the_user_count(recwarn: pytest.WarningsRecorder) -> None:
    said = (
        "`torch.jit.script` is deprecated. Please switch",
        "torch.meshgrid: in an upcoming release",
    )
    for action, expected in ((None, 0), ("always", 2)):
        with warnings.catch_warnings():
            warnings.resetwarnings()
            if action:
                warnings.simplefilter(action)
            ignore_warnings()
            for message in said:
                warnings.warn(message, FutureWarning, stacklevel=1)
        assert len(recwarn) == expected
    recwarn.clear()
    with warnings.catch_warnings():
        warnings.resetwarnings()
        ignore_warnings()
        warnings.warn("torch.something is deprecated", FutureWarning, stacklevel=1)
    assert len(recwarn) == 1


@pytest.mark.slow
def test_importing_the_package_leaves_filters_alone() -> None:
    code = "import warnings; import detectron2.engine; n = len(warnings.filters); "
    code += "import doublehead_d2; assert len(warnings.filters) == n"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_tool_says_what_it_has_to_say() -> None:
    command = ("-m", "doublehead_d2.tools.complexity", "nowhere.yaml")
    result = python(*command)
    assert result.returncode == 1
    assert result.stderr.startswith("no config file 'nowhere.yaml'")
    # A new warning of torch is seen here; a user who asks for this one sees it, too.
    assert "is deprecated" in python("-W", "default", *command).stderr
