"""What a measurement was made on."""

import os
import platform
from importlib import metadata

import torch

from doublehead_d2.config.shared import devices_here


def machine(device: str) -> dict[str, str]:
    """The hardware that computes on `device`, and the versions of what computes there."""
    cpu = f"{os.cpu_count()} CPU cores ({_cpu_name()})"
    packages = ("torch", "torchvision", "detectron2", "numpy")
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    return {
        "hardware": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu,
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def _cpu_name() -> str:
    """The CPU's model where Linux tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def find_device(name: str | None) -> str:
    """The device to measure on: the named one, or the GPU if there is one.

    Raises:
        ValueError: no CPU or CUDA device, or one that torch does not find here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        known = torch.empty(0, device=name).device.type in ("cpu", "cuda")
    except (AssertionError, RuntimeError):  # a build without CUDA; no such device
        known = False
    if not known:
        allowed = [device for device in devices_here() if device != "mps"]
        raise ValueError(f"--device is '{name}'; allowed here: {', '.join(allowed)}")
    return "cpu" if torch.device(name).type == "cpu" else name  # there is one, cpu:0
