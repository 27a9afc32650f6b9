"""Checks that all systems share, in the words that all errors about a config share."""

import importlib.util
from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY

# Names that detectron2's `get_norm` takes for 2D maps
NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def check_word(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{key} is '{value}'; allowed: {', '.join(map(repr, allowed))}")


def check_positive(key: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number above 0."""
    # `not >` so that NaN is refused, too
    if not 0 < value < float("inf"):
        raise ValueError(f"{key} is {value}; allowed: a number above 0")


def check_between(key: str, value: float, lowest: float, highest: float = float("inf")) -> None:
    """Raise ValueError unless `value` is a finite number from `lowest` to `highest`."""
    # `not <=` so that NaN is refused, too
    if not lowest <= value <= highest or value == float("inf"):
        allowed = f"{lowest} or more" if highest == float("inf") else f"{lowest} to {highest}"
        raise ValueError(f"{key} is {value}; allowed: {allowed}")


def check_int(key: str, value: int, lowest: int, highest: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number from `lowest` to `highest`."""
    # True is an int
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < lowest or (highest is not None and value > highest):
        allowed = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
        raise ValueError(f"{key} is {value}; allowed: a whole number, {allowed}")


def check_box_heads(names: Mapping[str, str]) -> None:
    """Raise ValueError unless every key's value is a name of ROI_BOX_HEAD_REGISTRY."""
    types = tuple(name for name, _ in ROI_BOX_HEAD_REGISTRY)
    for key, name in names.items():
        check_word(key, name, types)


def check_legacy_pooler(cfg: CfgNode, key: str) -> None:
    """Raise ValueError for another RoIAlign than legacy boxes, switched on by `key`, need."""
    pooler_type = cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE
    if pooler_type != "ROIAlign":
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.POOLER_TYPE is '{pooler_type}'; with {key} True allowed: "
            "'ROIAlign', which does not move RoIs by half a pixel"
        )


def devices_here() -> list[str]:
    """Names of the devices that a model can be on here, "cpu" first."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def check_device(key: str, name: str) -> None:
    """Raise ValueError unless `name` is a device that computes here."""
    found = devices_here()
    known = name in found
    # The CPU has no number: others ask for "cpu". Of other kinds only torch itself knows.
    if not known and not name.startswith(("cpu", "cuda")):
        try:
            torch.zeros(1, device=name).item()
            known = True
        except (AssertionError, ImportError, RuntimeError):  # NotImplementedError is one, too
            known = False
    if not known:
        raise ValueError(f"{key} is '{name}'; allowed here: {', '.join(map(repr, found))}")


def check_deformable_convolution(cfg: CfgNode) -> None:
    """Refuse deformable convolution where it cannot run.

    detectron2 fails only in the first iteration, or, on upstream main without compiled operators,
    while it builds the backbone.

    Raises:
        ValueError: names the key, what is missing and what is allowed.
    """
    if not any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        return
    missing = []
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        missing.append(f"a GPU, and MODEL.DEVICE is '{cfg.MODEL.DEVICE}'")
    elif not torch.cuda.is_available():  # the model would fall back to the CPU
        missing.append("a GPU, and CUDA is not available")
    if importlib.util.find_spec("detectron2._C") is None:
        missing.append("detectron2's compiled operators, and this detectron2 is built without them")
    if missing:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {list(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)}: "
            f"deformable convolution needs {'; it needs '.join(missing)}. "
            "Allowed here: [False, False, False, False]"
        )
