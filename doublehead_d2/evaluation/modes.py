"""Score one model several ways in one pass over a data set (Fig. 8 and Table 3 of the paper).

The heads run once on every proposal; each mode then combines their scores and boxes its own way.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from doublehead_d2.config.checks import heads_with_modes

logger = logging.getLogger(__name__)

Modes = Mapping[str, Any]  # name to what the heads call it, e.g. (score fusion, box source)


class HeadsWithModes(Protocol):
    """RoI heads that can score in more ways than the one they are configured to."""

    modes: dict[str, Any]  # to score in at once; empty: as configured

    @property
    def scoring(self) -> Any:
        """The way that they are configured to."""

    def scoring_modes(self) -> dict[str, Any]:
        """The ways that the paper compares, by name."""


def find_heads(model: nn.Module) -> HeadsWithModes:
    """The RoI heads of a detector, which must have ways to score.

    Raises:
        ValueError: they have one alone.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    heads: Any = getattr(model, "roi_heads", None)
    if not hasattr(heads, "scoring_modes"):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{type(heads).__name__}', which can be scored in one way "
            f"alone; allowed: {heads_with_modes()} (for other models TEST.DOUBLE_HEAD_MODES False)"
        )
    return heads


def configured_mode(heads: HeadsWithModes, modes: Modes) -> str | None:
    """The mode that scores as `heads` are configured to; None if there is none."""
    return next((name for name, mode in modes.items() if mode == heads.scoring), None)


def all_modes(heads: HeadsWithModes) -> tuple[dict[str, Any], str]:
    """The ways to score `heads`, the one that they are configured to among them, and its name."""
    modes = heads.scoring_modes()
    configured = configured_mode(heads, modes)
    if configured is None:  # e.g. the average of both scores with the boxes of the fc-head
        configured = "configured"
        modes[configured] = heads.scoring
    return modes, configured


@contextmanager
def score_modes(model: nn.Module, modes: Modes) -> Iterator[None]:
    """Within the context, `model` returns the detections of all `modes` together.

    Their field `modes` tells them apart; :class:`ModesEvaluator` takes such outputs.
    """
    heads = find_heads(model)
    before = heads.modes
    heads.modes = dict(modes)
    try:
        yield
    finally:
        heads.modes = before


class ModesEvaluator(DatasetEvaluator):
    """An evaluator for each mode, their results side by side."""

    def __init__(
        self, evaluators: Mapping[str, DatasetEvaluator], configured: str | None = None
    ) -> None:
        """
        Args:
            evaluators: one for each mode, in the order of the `modes` given to
                :func:`score_modes`.
            configured: the mode whose results also keep their own names, without "_<mode>".
        """
        self._evaluators = dict(evaluators)
        self._configured = configured

    def reset(self) -> None:
        """Start a new evaluation."""
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Give every evaluator the detections of its mode.

        Raises:
            ValueError: the outputs were not made within :func:`score_modes`.
        """
        for output in outputs:
            if not output["instances"].has("modes"):
                raise ValueError(
                    "detections carry no modes: run the model within score_modes, "
                    "or evaluate with TEST.DOUBLE_HEAD_MODES False"
                )
        for index, evaluator in enumerate(self._evaluators.values()):
            selected = []
            for output in outputs:
                instances = output["instances"]
                instances = instances[instances.modes == index]
                instances.remove("modes")
                selected.append({**output, "instances": instances})
            evaluator.process(inputs, selected)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Results by task and mode, e.g. "bbox", "bbox_cls_head"; empty where there are none."""
        configured: dict[str, dict[str, float]] = OrderedDict()
        by_mode: dict[str, dict[str, float]] = OrderedDict()
        for mode, evaluator in self._evaluators.items():
            for task, metrics in (evaluator.evaluate() or {}).items():
                by_mode[f"{task}_{mode}"] = metrics
                if mode == self._configured:
                    configured[task] = metrics
        if by_mode:
            logger.info("Results by mode:\n%s", modes_table(by_mode))
        return OrderedDict({**configured, **by_mode})


def modes_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Results of several modes as a table, a row each; per-class columns are left out."""
    columns: list[str] = []
    for metrics in results.values():
        columns += [name for name in metrics if "-" not in name and name not in columns]
    rows = [[task, *(metrics.get(name) for name in columns)] for task, metrics in results.items()]
    return tabulate(rows, headers=["", *columns], tablefmt="pipe", floatfmt=".2f", missingval="-")
