"""Detectors as single files that run without this package: ONNX and TorchScript."""

from doublehead_d2.export.checks import check_export
from doublehead_d2.export.exporter import Exporter
from doublehead_d2.export.formats import FORMATS, format_of
from doublehead_d2.export.parity import Parity

__all__ = ["FORMATS", "Exporter", "Parity", "check_export", "format_of"]
