"""Say what is installed, what would fail, and the command that mends it.

    python -m doublehead_d2.tools.doctor

It must speak in environments where nothing can be imported, so it uses the standard library alone
and leaves every import to a process of its own. It ends with 1 if anything would fail.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from doublehead_d2.environment import (
    INSTALL_DETECTRON2,
    declared_requirements,
    distribution_of,
    module_of,
)

REINSTALL_DETECTRON2 = f"pip uninstall -y detectron2 && {INSTALL_DETECTRON2}"
REINSTALL_TORCH = "pip install --force-reinstall torch torchvision"

# One of them is enough.
OPENCV = tuple(f"opencv-{x}" for x in ("python", "python-headless", "contrib-python"))
PARTS = ("config", "data", "modeling", "checkpoint", "engine", "evaluation", "utils.visualizer")

# The importing process answers a line per statement: the first one without an answer crashed it.
CHILD = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for name, statement in json.loads(sys.argv[1]).items():
    scope, error = {"value": None}, None
    try:
        exec(statement, scope)
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    print(json.dumps([name, error, scope["value"]]), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Finding:
    """A failure, or a mere note, with the command that mends it."""

    severity: str  # "fail" or "note"
    what: str
    command: str = ""


@dataclass(frozen=True)
class Answer:
    """What became of a statement: an error, or what it left in `value`."""

    error: str | None = None
    value: str | None = None


@dataclass
class Facts:
    """Everything the findings are drawn from."""

    versions: dict[str, str | None]  # distribution -> version
    requirements: tuple[str, ...]  # none: nobody knows them
    answers: dict[str, Answer]  # statement's name -> answer
    detectron2: Path | None = None  # the package's folder
    compiled: bool = False  # it holds a file _C.*
    zoo_needs_pkg_resources: bool = False
    has_pkg_resources: bool = True
    data_folder: Path = Path("datasets")


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, None without one."""
    for name in OPENCV if distribution == "opencv-python" else (distribution,):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # A module may be there without metadata, as in a checkout that is merely on the path.
    module = module_of(distribution).split(".")[0]
    return "of unknown version" if find_module(module) is not None else None


def find_module(name: str) -> Path | None:
    """File of a top-level module, found without importing it; None where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def statements(requirements: Sequence[str]) -> dict[str, str]:
    """The imports to try, from the ground up; `value` is what is shown of each."""
    modules = [module_of(split_requirement(line)[0]) for line in requirements]
    # Of a package that was not wholly removed, a folder may be left that can be imported.
    whole = "\nassert {0}.__file__, 'nothing is left of {0} but a folder'"
    one_box = "torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5"
    cuda = (
        "import torch\ncount = torch.cuda.device_count() if torch.cuda.is_available() else 0\n"
        "value = ', '.join(torch.cuda.get_device_name(i) for i in range(count))"
    )
    return {
        **{
            name: f"import {name}" + whole.format(name.split(".")[0])
            for name in modules
            if name not in ("torch", "torchvision")
        },
        "torch": "import torch; value = str(torch.version.cuda)",
        "torchvision": f"import torch, torchvision; torchvision.ops.nms({one_box})",
        "cuda": cuda,
        **{f"detectron2.{part}": f"import detectron2.{part}" for part in PARTS},
        "detectron2._C": "import detectron2._C",
    }


def try_statements(steps: Mapping[str, str]) -> dict[str, Answer]:
    """Run the statements in a process of their own, and again behind each that ends it."""
    answers: dict[str, Answer] = {}
    while left := {name: step for name, step in steps.items() if name not in answers}:
        # Warnings that are errors here are errors there.
        options = [f"-W{option}" for option in sys.warnoptions]
        command = [sys.executable, *options, "-c", CHILD, json.dumps(left)]
        try:
            child = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=300
            )
            lines, end = child.stdout.splitlines(), f"Python died with code {child.returncode}"
        except subprocess.TimeoutExpired:
            lines, end = [], "no answer within 300 s"
        for line in lines:
            name, error, value = json.loads(line)
            answers[name] = Answer(error, value)
        crashed = next((name for name in left if name not in answers), None)
        if crashed is not None:
            answers[crashed] = Answer(error=end)
    return answers


def collect_facts() -> Facts:
    """Look around: the only part of the doctor that depends on the environment."""
    requirements = declared_requirements(Path(__file__).resolve().parents[1])
    origin = find_module("detectron2")
    folder = origin.parent if origin is not None else None
    names = (*(split_requirement(line)[0] for line in requirements), "setuptools")
    versions = {name: version_of(name) for name in names}
    facts = Facts(versions, requirements, try_statements(statements(requirements)), folder)
    facts.has_pkg_resources = find_module("pkg_resources") is not None
    facts.data_folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if folder is not None:
        facts.compiled = any(folder.glob("_C.*"))
        facts.versions["detectron2"] = read(folder / "__init__.py", r"^__version__ = \"(.+)\"")
        zoo = read(folder / "model_zoo" / "model_zoo.py", r"^(import pkg_resources)")
        facts.zoo_needs_pkg_resources = zoo is not None
    return facts


def read(path: Path, pattern: str) -> str | None:
    """The first match of a pattern's group in a file, None without one."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1) if match else None


def split_requirement(line: str) -> tuple[str, tuple[int, ...]]:
    """Split `"torch>=2.0"` into the name in lower case and the least release, (2, 0)."""
    match = re.match(r"([\w.-]+)[^>]*(?:>=\s*([\d.]+))?", line)
    assert match is not None, f"not a requirement: {line!r}"
    return match.group(1).lower(), release(match.group(2) or "")


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 1, 5) of 0.1.5.post20221221."""
    digits = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, digits.group().split("."))) if digits else ()


def find_requirements(facts: Facts) -> list[Finding]:
    """The required packages that are missing or too old."""
    findings: list[Finding] = []
    if not facts.requirements:
        what = "doublehead_d2 is not installed, and no pyproject.toml beside it says what it needs"
        findings.append(Finding("fail", f"{what}; in a checkout run", "pip install -e ."))
    for line in facts.requirements:
        name, least = split_requirement(line)
        version = facts.versions.get(name)
        # torch and torchvision must fit each other, and are therefore installed together.
        together = name in ("torch", "torchvision")
        command = f"pip install {'--upgrade torch torchvision' if together else repr(line)}"
        if version is None:
            findings.append(Finding("fail", f"{name} is not installed", command))
        elif release(version) and release(version) < least:
            findings.append(Finding("fail", f"{name} is {version}, needed is {line}", command))
    return findings


def find_broken(facts: Facts) -> list[Finding]:
    """The installed packages, below detectron2, that cannot be imported."""
    findings = []
    for name, answer in facts.answers.items():
        distribution = distribution_of(name)
        known = facts.versions.get(distribution) is not None
        if answer.error is None or is_warning(answer.error) or not known:
            continue
        if distribution in ("torch", "torchvision"):
            what = f"{name} does not work; torch and torchvision may not fit each other"
            findings.append(Finding("fail", f"{what} ({answer.error})", REINSTALL_TORCH))
        elif distribution != "detectron2":
            command = f"pip install --force-reinstall {distribution}"
            findings.append(Finding("fail", f"{name} does not work ({answer.error})", command))
    return findings


def find_detectron2(facts: Facts) -> list[Finding]:
    """What is wrong with detectron2 itself."""
    if facts.detectron2 is None:
        return [Finding("fail", "detectron2 is not installed", INSTALL_DETECTRON2)]
    for part in PARTS:
        error = facts.answers.get(f"detectron2.{part}", Answer()).error
        if error is not None and not is_warning(error):
            missing = re.match(r"ModuleNotFoundError: No module named '(\w+)", error)
            name = missing.group(1) if missing else "detectron2"
            command = f"pip install {distribution_of(name)}"
            if name in ("detectron2", "pkg_resources", "caffe2"):
                command = REINSTALL_DETECTRON2
            return [Finding("fail", f"detectron2.{part} cannot be imported ({error})", command)]
    return []


def is_warning(error: str) -> bool:
    """Whether an error is a warning that Python was told to raise."""
    return re.match(r"\w*Warning: ", error) is not None


def find_warnings(facts: Facts) -> list[Finding]:
    """The imports that warn where warnings are errors."""
    errors = {name: answer.error for name, answer in facts.answers.items()}
    raised = {name: error for name, error in errors.items() if error and is_warning(error)}
    if not raised:
        return []
    what = f"warnings are errors here, and these warn: {', '.join(raised)}"
    command = "unset PYTHONWARNINGS  # and run python without -W error"
    return [Finding("fail", f"{what} ({next(iter(raised.values()))})", command)]


def find_notes(facts: Facts) -> list[Finding]:
    """What is absent and may stay so."""
    notes = []
    operators = "only deformable convolution and rotated boxes are unavailable"
    compiled = facts.answers.get("detectron2._C", Answer())
    if facts.detectron2 is not None and not facts.compiled:
        notes.append(Finding("note", f"detectron2 has no compiled part: {operators}"))
    elif facts.detectron2 is not None and compiled.error is not None:
        what = f"detectron2's compiled part does not load ({compiled.error}): {operators}"
        notes.append(Finding("note", what, REINSTALL_DETECTRON2))
    if facts.zoo_needs_pkg_resources and not facts.has_pkg_resources:
        what = "detectron2.model_zoo needs pkg_resources, which setuptools 82 removed"
        notes.append(Finding("note", f"{what}; doublehead_d2.model_zoo works"))
    cuda = facts.answers.get("cuda", Answer())
    if cuda.error is None and not cuda.value:
        notes.append(Finding("note", "no CUDA device: MODEL.DEVICE falls back to the CPU"))
    if not facts.data_folder.is_dir():
        what = f"no folder {facts.data_folder}: COCO and VOC need DETECTRON2_DATASETS to name one"
        notes.append(Finding("note", what))
    return notes


def diagnose(facts: Facts) -> list[Finding]:
    """Draw the findings from the facts; failures come first, in the order to mend them in."""
    failures = [*find_requirements(facts), *find_warnings(facts), *find_broken(facts)]
    # Where its ground is broken, what detectron2's imports say is only an echo of it.
    if not failures or facts.detectron2 is None:
        failures += find_detectron2(facts)
    return [*failures, *find_notes(facts)]


def describe(facts: Facts) -> list[str]:
    """The versions, a line each."""
    lines = [f"{'Python':<16}{platform.python_version()} ({sys.executable})"]
    names = [name for name in facts.versions if name != "detectron2"]
    lines += [f"{name:<16}{facts.versions[name] or 'not installed'}" for name in names]
    compiled = "not there"
    if facts.compiled:
        compiled = facts.answers.get("detectron2._C", Answer()).error or "importable"
    version = facts.versions.get("detectron2") or "of unknown version"
    where = f"{version}, {facts.detectron2}, compiled part _C: {compiled}"
    lines.append(f"{'detectron2':<16}{where if facts.detectron2 else 'not installed'}")
    build = facts.answers.get("torch", Answer()).value
    devices = facts.answers.get("cuda", Answer()).value or "no device available"
    lines.append(f"{'CUDA':<16}torch's build: {build or 'unknown'}; {devices}")
    return lines


def main() -> int:
    """Print versions and findings; returns the exit code."""
    facts = collect_facts()
    print("\n".join(describe(facts)))
    findings = diagnose(facts)
    for finding in findings:
        print(f"{finding.severity}: {finding.what}")
        if finding.command:
            print(f"      {finding.command}")
    failures = sum(finding.severity == "fail" for finding in findings)
    print(f"{failures} thing(s) would fail." if failures else "Nothing would fail.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
