"""Settings of a model that do not suit the weights that it is given."""

from collections.abc import Collection

from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from doublehead_d2.checkpoint.sources.source import Settings


def differing_settings(model: nn.Module, settings: Settings) -> list[str]:
    """What a detector is built with and its backbone was not trained with.

    Args:
        model: a `GeneralizedRCNN` or another with pixel_mean, pixel_std and input_format. What it
            does not say of itself is not compared.
        settings: of the weights.

    Returns:
        "KEY is ..., and was ...", a string for each.
    """
    found = {
        "INPUT.FORMAT": (getattr(model, "input_format", None), settings.input_format),
        "MODEL.PIXEL_MEAN": (_values(model, "pixel_mean"), settings.pixel_mean),
        "MODEL.PIXEL_STD": (_values(model, "pixel_std"), settings.pixel_std),
        "MODEL.RESNETS.STRIDE_IN_1X1": (_stride_in_1x1(model), settings.stride_in_1x1),
    }
    return [
        f"{key} is {ours!r} and was {theirs!r}"
        for key, (ours, theirs) in found.items()
        if ours is not None and ours != theirs
    ]


def idle_norms(model: nn.Module, loaded: Collection[str]) -> list[str]:
    """Names of frozen batch norms without loaded statistics: they normalise nothing.

    Args:
        model: after loading.
        loaded: names of its tensors that were loaded.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, FrozenBatchNorm2d) and f"{name}.weight" not in loaded
    ]


def _values(model: nn.Module, name: str) -> tuple[float, ...] | None:
    tensor = getattr(model, name, None)
    # rounded: they are float32
    return None if tensor is None else tuple(round(x, 4) for x in tensor.flatten().tolist())


def _stride_in_1x1(model: nn.Module) -> bool | None:
    """Whether the first block of res3 has its stride in its first convolution."""
    for name, module in model.named_modules():
        if name.endswith("res3.0.conv1") and isinstance(module, nn.Conv2d):
            return module.stride != (1, 1)
    return None
