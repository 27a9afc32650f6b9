"""What the package needs around it, known before anything of it is imported.

Only the standard library is used here: the package asks this module whether it can be imported at
all, and the doctor runs where nothing else can be.
"""

import ast
import importlib.metadata
import importlib.util
import itertools
import re
import sys
import warnings
from pathlib import Path

# As run from a checkout.
INSTALL_DETECTRON2 = "python dev/install_detectron2.py"
DOCTOR = "doublehead_d2.tools.doctor"

# What to import of a distribution where that is not its name: what is used of it, a compiled part
# if it has one.
MODULES = {
    "opencv-python": "cv2",
    "matplotlib": "matplotlib.pyplot",
    "pillow": "PIL.Image",
    "pycocotools": "pycocotools.mask",
    "pyyaml": "yaml",
    "hydra-core": "hydra",
    "tensorboard": "tensorboard.summary.writer.event_file_writer",
}
# What torch tells detectron2 and fvcore, by its beginning; nothing that a user does changes it.
WARNINGS = (
    r"`torch\.jit\.script` is deprecated",
    r"torch\.meshgrid: in an upcoming release",
    r"TypedStorage is deprecated",
    r"`broadcast_buffers` is deprecated",
)


def require_detectron2() -> None:
    """Raise an ImportError that says how to install detectron2 when there is none."""
    spec = importlib.util.find_spec("detectron2")
    # A mere folder of that name in the working directory has a spec, but no file.
    if spec is None or spec.origin is None:
        raise ImportError(
            f"detectron2 is not installed: run `{INSTALL_DETECTRON2}` in a checkout of "
            "doublehead_d2, or build detectron2 from its repository as docs/INSTALL.md shows.",
            name="detectron2",
        )


def running_doctor() -> bool:
    """Whether this process was started as `python -m doublehead_d2.tools.doctor`."""
    words = sys.orig_argv
    return any(words[i : i + 2] == ["-m", DOCTOR] for i in range(1, len(words)))


def running_program(package: Path) -> bool:
    """Whether this process was started as train_net.py or as a tool, rather than by others.

    Args:
        package: folder of the package.
    """
    script = Path(sys.argv[0] if sys.argv else "").resolve()
    words = sys.orig_argv
    tools = any(
        word == "-m" and module.startswith(f"{package.name}.tools.")
        for word, module in itertools.pairwise(words)
    )
    # The processes that one starts inherit its script.
    return tools or script in (package.parent / "train_net.py", *package.glob("tools/*.py"))


def ignore_warnings() -> None:
    """Ignore `WARNINGS`, unless a filter that is there, such as -W, says otherwise."""
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", message=beginning, append=True)


def declared_requirements(package: Path) -> tuple[str, ...]:
    """What the package in this folder asks for, nothing where that is not written down.

    A checkout's pyproject.toml counts before what pip noted of it, which may be older.
    """
    project = package.parent / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    if re.search(r'(?m)^name = "doublehead_d2"$', text):
        # Python 3.10 has no tomllib, but a list of strings is written alike in TOML and in Python.
        listed = re.search(r"(?ms)^dependencies = (\[.*?^\])", text)
        assert listed is not None, f"{project} has no list of dependencies"
        return tuple(ast.literal_eval(listed.group(1)))
    try:
        lines = importlib.metadata.requires("doublehead_d2") or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(line for line in lines if "extra ==" not in line)


def module_of(distribution: str) -> str:
    """The module that shows whether a distribution works."""
    return MODULES.get(distribution, distribution)


def distribution_of(module: str) -> str:
    """What pip must bring for a module, or for one inside it."""
    top = module.split(".")[0]
    return next((name for name, known in MODULES.items() if known.split(".")[0] == top), top)
