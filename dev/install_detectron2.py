"""Install detectron2 0.6 without a compiler.

detectron2 has no release on PyPI under its own name, and building its repository needs a compiler.
Nothing in Faster R-CNN, in Double-Head or in the COCO and VOC evaluation uses the compiled
operators, so this script takes the Python sources of 0.6 from a source archive on PyPI, makes the
few edits below that today's libraries ask for, and installs that. An existing detectron2 is kept.

    python dev/install_detectron2.py [--archive FILE.tar.gz] [--wheel-dir DIR]
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
SIZE = 518688
# An optional requirement in the archive's metadata is a URL.
HINT = "pip 26.3 refuses this archive: run `pip install 'pip<26.3'` first, or pass --archive FILE."
NOTICE = "# Changed from detectron2 0.6 by doublehead_d2's dev/install_detectron2.py.\n"

# Without 0.6's outdated pins on iopath and black, and without what only caffe2 and linters need.
PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "detectron2 0.6 without compiled operators, with compatibility edits"
license = "Apache-2.0"
license-files = ["LICENSE"]
requires-python = ">=3.9"
dependencies = [
    "torch>=1.8", "torchvision", "numpy", "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2",
    "termcolor>=1.1", "yacs>=0.1.8", "tabulate", "cloudpickle", "tqdm>4.29.0", "tensorboard",
    "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7", "omegaconf>=2.1", "hydra-core>=1.1",
]

[tool.setuptools.packages.find]
include = ["detectron2*"]
namespaces = false

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*"]
"""

# It must not be called detectron2._C: collect_env would then ask it for the compiler's version.
MISSING_OPS = '''\
"""Takes the place of the compiled operators, which this installation does not have."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"{name} is a compiled operator of detectron2, and this detectron2 was installed without "
        "them; build detectron2 from its repository to use it."
    )
'''


class InstallError(RuntimeError):
    """Something the user has to know about; the message says all of it."""


@dataclass(frozen=True)
class Edit:
    """One compatibility edit; pattern and replacement are those of `re.sub`."""

    reason: str  # what fails without it
    files: dict[str, int]  # path under detectron2/ -> places that must change
    pattern: str
    replacement: str


EDITS = (
    Edit(
        reason="the compiled operators are imported although most models never call them",
        files={
            "layers/deform_conv.py": 1,
            "layers/roi_align_rotated.py": 1,
            "layers/rotated_boxes.py": 1,
        },
        pattern=r"^from detectron2 import _C$",
        replacement="try:\n    from detectron2 import _C\n"
        "except ImportError:\n    from detectron2 import _missing_ops as _C",
    ),
    Edit(
        reason="the fast COCO evaluation is compiled; pycocotools computes the same numbers",
        files={"evaluation/coco_evaluation.py": 1},
        pattern=r"^(from detectron2\.evaluation\.fast_eval_api import COCOeval_opt)$",
        replacement=r"try:\n    \1\nexcept ImportError:\n    COCOeval_opt = COCOeval",
    ),
    Edit(
        reason="numpy 1.24 removed the aliases of Python's types (numpy 2 brought np.bool back)",
        files={
            "data/build.py": 2,
            "data/datasets/pascal_voc.py": 1,
            "evaluation/pascal_voc_evaluation.py": 2,
            "evaluation/sem_seg_evaluation.py": 7,
            "structures/masks.py": 3,
            "utils/video_visualizer.py": 1,
            "utils/visualizer.py": 3,
        },
        pattern=r"\bnp\.(bool|int|float|str)\b",
        replacement=r"\1",
    ),
    Edit(
        reason="numpy 2 raises where copy=False would have to copy",
        files={"layers/mask_ops.py": 1},
        pattern=r"np\.array\(mask, copy=False\)",
        replacement="np.asarray(mask)",
    ),
    Edit(
        reason="Pillow 10 removed the old name",
        files={"data/transforms/transform.py": 1},
        pattern=r"\bImage\.LINEAR\b",
        replacement="Image.BILINEAR",
    ),
    Edit(
        reason="the caffe2 export cannot be imported, torch no longer has caffe2",
        files={"export/__init__.py": 1},
        pattern=r"^from \.api import \*$",
        replacement="try:\n    from .api import *\nexcept ImportError:\n    pass",
    ),
    Edit(
        reason="setuptools 82 removed pkg_resources (its import)",
        files={"model_zoo/model_zoo.py": 1},
        pattern=r"^import pkg_resources$",
        replacement="from importlib import resources",
    ),
    Edit(
        reason="setuptools 82 removed pkg_resources (its use)",
        files={"model_zoo/model_zoo.py": 1},
        pattern=r"pkg_resources\.resource_filename\(\s*(\"[\w.]+\"), os\.path\.join\((.+)\)\s*\)",
        replacement=r"str(resources.files(\1).joinpath(\2))",
    ),
)


def apply_edits(package: Path, edits: Sequence[Edit] = EDITS) -> None:
    """Change the sources under the folder `detectron2`; raise for other sources than expected."""
    for edit in edits:
        for name, expected in edit.files.items():
            path = package / name
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            text, found = re.subn(edit.pattern, edit.replacement, text, flags=re.MULTILINE)
            if found != expected:
                raise InstallError(
                    f"{name}: expected {expected} place(s) to edit, found {found} ({edit.reason})."
                )
            # The licence asks that changed files say so.
            path.write_text(NOTICE + text.removeprefix(NOTICE), encoding="utf-8")


def find_installed() -> tuple[str, Path] | None:
    """Version and folder of the detectron2 that Python would import, None without one."""
    spec = importlib.util.find_spec("detectron2")
    # A mere folder of that name beside the user's files is found too, as a namespace without file.
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    version = re.search(r"^__version__ = \"(.+)\"", origin.read_text(encoding="utf-8"), re.M)
    return (version.group(1) if version else "of unknown version"), origin.parent


def check_archive(archive: Path) -> None:
    """Raise unless the file is the one source archive that was examined."""
    if not archive.is_file():
        raise InstallError(f"{archive}: no such file.")
    data = archive.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise InstallError(
            f"{archive} is not the source archive of {REQUIREMENT}; nothing was installed.\n"
            f"  expected sha256 {SHA256}, {SIZE} bytes\n"
            f"  found    sha256 {found}, {len(data)} bytes"
        )


def run(what: str, *arguments: str, cwd: Path, **variables: str) -> None:
    """Run this interpreter quietly, with these variables set; show how it ends if it fails."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
    )
    if result.returncode != 0:
        tail = "\n".join("  " + line for line in result.stdout.splitlines()[-12:])
        raise InstallError(f"{what} failed:\n{tail}")


def download(work: Path) -> Path:
    """Fetch the archive. pip checks the hash before it runs anything of the archive."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ("--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes")
    command = ("-m", "pip", "download", *options, "--dest", "archive", "-r", str(requirements))
    # With a GPU in sight, the setup.py that pip asks for metadata would look for a CUDA compiler.
    try:
        run("The download", *command, cwd=work, FORCE_CUDA="0", CUDA_VISIBLE_DEVICES="")
    except InstallError as error:
        raise InstallError(f"{error}\n{HINT}" if "direct URL" in str(error) else error) from None
    return next((work / "archive").glob("*.tar.gz"))


def prepare(archive: Path, work: Path) -> Path:
    """Unpack the archive into a folder that setuptools can build; its setup.py stays behind."""
    check_archive(archive)
    with tarfile.open(archive) as tar:
        # Pythons before 3.10.12 have no filters; the hash has vouched for the members.
        tar.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    tree = work / "tree"
    tree.mkdir()
    for name in ("detectron2", "LICENSE"):
        shutil.move(work / "pb1-detectron2-0.6" / name, tree / name)
    apply_edits(tree / "detectron2")
    (tree / "detectron2" / "_missing_ops.py").write_text(MISSING_OPS, encoding="utf-8")
    (tree / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    return tree


def build_wheel(tree: Path, target: Path) -> Path:
    """Build the wheel with the installed setuptools, which works without a network."""
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(target))
    run("Building the wheel", "-m", "pip", "wheel", *options, str(tree), cwd=tree)
    return next(target.glob("detectron2-0.6-*.whl"))


def install(wheel: Path, work: Path) -> None:
    """Install the wheel with what it requires, and import it once."""
    run("The installation", "-m", "pip", "install", str(wheel), cwd=work)
    program = "import detectron2.engine, detectron2.evaluation, detectron2.export"
    run("detectron2 was installed, but importing it", "-c", program, cwd=work)


def check_tools(with_torch: bool) -> None:
    """Raises when the environment lacks what the download and the build take from it."""
    # The archive's setup.py imports torch as soon as pip asks it for the metadata.
    if with_torch and importlib.util.find_spec("torch") is None:
        raise InstallError(
            "torch is not installed: run `make install` or `pip install torch torchvision` first."
        )
    found = [item.version for item in importlib.metadata.distributions(name="setuptools")]
    # 70 brought the wheel command, 77 the licence fields of the metadata.
    if not found or int(found[0].split(".")[0]) < 77:
        raise InstallError(
            "setuptools is missing or too old: run `pip install --upgrade 'setuptools>=77'` first."
        )


def make(archive: Path | None, wheel_dir: Path | None) -> str:
    """Do what the command line asks for; returns the sentence that reports it."""
    installed = find_installed()
    if installed is not None and wheel_dir is None:
        return f"detectron2 {installed[0]} is already installed in {installed[1]}; left as it is."
    check_tools(with_torch=archive is None or wheel_dir is None)
    with tempfile.TemporaryDirectory(prefix="detectron2-") as folder:
        work = Path(folder)
        tree = prepare(archive or download(work), work)
        if wheel_dir is not None:
            return f"Built {build_wheel(tree, wheel_dir.resolve())}."
        install(build_wheel(tree, work / "wheel"), work)
    return "Installed detectron2 0.6 (without compiled operators)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Installs detectron2 0.6 without a compiler.")
    parser.add_argument("--archive", type=Path, help="use this source archive, do not download")
    parser.add_argument("--wheel-dir", type=Path, help="build the wheel there, do not install")
    args = parser.parse_args(argv)
    try:
        print(make(args.archive, args.wheel_dir))
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
