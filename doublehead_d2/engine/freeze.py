"""A hook for parts of a model that are not trained, chosen by name."""

import difflib
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

from detectron2.engine import HookBase
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from doublehead_d2.config.training import check_patterns

logger = logging.getLogger(__name__)


class FrozenNorms(HookBase):
    """Keeps batch norms that :func:`freeze` has frozen at their statistics.

    They stay what they are, in evaluation mode while the rest is trained, so that files of weights
    have the same tensors with and without frozen parts.

    In a `train_net.py` of your own: `model = freeze(model, patterns)` at the end of `build_model`,
    before optimizer and DDP are made, and this hook in every process.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: the trainer's.
        """
        self._norms = frozen_norms(model)

    def before_step(self) -> None:
        """Evaluation ends with the mode of the whole model."""
        for norm in self._norms:
            norm.eval()


def freeze(model: nn.Module, patterns: Sequence[str]) -> nn.Module:
    """Let parameters learn nothing, and say how many they are.

    Args:
        model: changed in place.
        patterns: names of parameters, or of modules with all that is below them, with * and ? as
            file names have them.

    Returns:
        `model`.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left to train.
    """
    check_patterns(patterns)
    if not patterns:
        return model
    modules = {name for name, _ in model.named_modules() if name}
    parameters = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        below = tuple(f"{name}." for name in modules if fnmatchcase(name, pattern))
        found = {n for n in parameters if fnmatchcase(n, pattern) or n.startswith(below)}
        if not below and not found:
            raise ValueError(_no_match(pattern, sorted(modules | parameters.keys())))
        frozen |= found
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(
            f"MODEL.FREEZE is {list(patterns)}, which leaves nothing to train; allowed: names of "
            "parts of the model"
        )
    still = [parameter for parameter in parameters.values() if not parameter.requires_grad]
    logger.info(
        "MODEL.FREEZE %s: %d parameters in %d tensors are frozen, and the statistics of %d "
        "batch norms; in all %d of %d parameters are not trained.",
        list(patterns),
        sum(parameters[name].numel() for name in frozen),
        len(frozen),
        len(frozen_norms(model)),
        sum(parameter.numel() for parameter in still),
        sum(parameter.numel() for parameter in parameters.values()),
    )
    return model


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Batch norms with parameters of which none is trained."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    own = [(norm, list(norm.parameters(recurse=False))) for norm in norms]
    return [norm for norm, tensors in own if tensors and not any(t.requires_grad for t in tensors)]


def _no_match(pattern: str, names: list[str]) -> str:
    """What to say of a pattern without a match: names near it, else the parts of the model."""
    close = difflib.get_close_matches(pattern.rstrip("*."), names, n=3, cutoff=0.6)
    close = close or [name for name in names if name.count(".") < 2]
    return (
        f"MODEL.FREEZE: no module or parameter of the model matches '{pattern}'; allowed, for "
        f"example: {', '.join(map(repr, close))}"
    )
