"""What the package needs around it, known before anything of it is imported.

Only the standard library is used here: the package asks this module whether it can be imported at
all, and the doctor runs where nothing else can be.
"""

import importlib.util
import sys

# As run from a checkout.
INSTALL_DETECTRON2 = "python dev/install_detectron2.py"
DOCTOR = "doublehead_d2.tools.doctor"


def require_detectron2() -> None:
    """Raises an ImportError that says how to install detectron2 when there is none."""
    spec = importlib.util.find_spec("detectron2")
    # A mere folder of that name in the working directory has a spec, but no file.
    if spec is None or spec.origin is None:
        raise ImportError(
            f"detectron2 is not installed: run `{INSTALL_DETECTRON2}` in a checkout of "
            "doublehead_d2, or build detectron2 from its repository as the README shows.",
            name="detectron2",
        )


def running_doctor() -> bool:
    """Tells whether this process was started as ``python -m doublehead_d2.tools.doctor``."""
    words = sys.orig_argv
    return any(words[i : i + 2] == ["-m", DOCTOR] for i in range(1, len(words)))
