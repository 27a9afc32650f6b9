"""The formats that detectors are exported to: how a file is written, and how it is run."""

import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.export import TracingAdapter

from doublehead_d2.export.detector import INPUTS, quiet, trace

# Under this name the files carry what is to be known of them, as JSON.
INFO = "doublehead_d2"
# RoIAlign as detectron2 aligns it came with 16; torch 2.3 writes at most 17 without onnxscript.
OPSET = 17

Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]  # of image and size to outputs


class Format(NamedTuple):
    """A format of files."""

    suffixes: tuple[str, ...]
    packages: tuple[str, ...]  # beside those that this package needs
    write: Callable[[TracingAdapter, list[str], str, str], None]  # outputs, information, path
    load: Callable[[str], Run]


def format_of(path: str, name: str | None = None) -> str:
    """The name of a file's format, by default told by its suffix.

    Raises:
        ValueError: the suffix is none of those known, or packages are missing.
    """
    if name is None:
        suffix = os.path.splitext(path)[1]
        name = next((n for n, f in FORMATS.items() if suffix in f.suffixes), None)
    if name is None:
        known = ", ".join(s for f in FORMATS.values() for s in f.suffixes)
        raise ValueError(f"'{path}' ends in none of {known}; allowed: one of them, or --format")
    missing = [p for p in FORMATS[name].packages if importlib.util.find_spec(p) is None]
    if missing:
        raise ValueError(
            f"--format {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    return name


def _write_torchscript(adapter: TracingAdapter, outputs: list[str], info: str, path: str) -> None:
    with quiet():
        torch.jit.save(trace(adapter), path, _extra_files={INFO: info})


def _load_torchscript(path: str) -> Run:
    with quiet():
        model = torch.jit.load(path)

    @torch.inference_mode()
    def run(image: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
        return [x.cpu().numpy() for x in model(torch.tensor(image), torch.tensor(size))]

    return run


def _write_onnx(adapter: TracingAdapter, outputs: list[str], info: str, path: str) -> None:
    import onnx

    # The exporter by torch.export, now the default, cannot follow choices that depend on data,
    # such as which RoIs a head is shown. torch 2.3 knows no other than that by a trace.
    known = inspect.signature(torch.onnx.export).parameters
    by_trace: dict[str, Any] = {"dynamo": False} if "dynamo" in known else {}
    with torch.no_grad(), quiet():
        torch.onnx.export(
            adapter,
            adapter.flattened_inputs,
            path,
            input_names=list(INPUTS),
            output_names=outputs,
            dynamic_axes={INPUTS[0]: {0: "height", 1: "width"}}
            | {name: {0: "detections"} for name in outputs},
            opset_version=OPSET,
            **by_trace,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {INFO: info})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _load_onnx(path: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(image: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
        return session.run(None, dict(zip(INPUTS, (image, size), strict=True)))

    return run


FORMATS = {
    "onnx": Format((".onnx",), ("onnx", "onnxruntime"), _write_onnx, _load_onnx),
    "torchscript": Format((".ts", ".pt"), (), _write_torchscript, _load_torchscript),
}
