"""Keys of how a model is trained, whatever the system, and their check."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.utils import comm

from doublehead_d2.config.shared import check_between, check_int, check_word

MODES = ("max", "min")
LOSSES = "validation"  # what TEST.LOSS gives is called "validation/loss_cls" and so on


def add_keys(cfg: CfgNode) -> None:
    """Add the keys, with their defaults, to `cfg` in place."""
    # Names of modules or parameters that are not trained, with * and ?, e.g. "backbone.*" or
    # "roi_heads.box_head". Batch norms among them keep their statistics, too.
    cfg.MODEL.FREEZE = []

    # Parts that a batch of SOLVER.IMS_PER_BATCH images is cut into. They are run one after the
    # other and their gradients averaged, so that a large batch fits into little memory. Batch
    # norms see the images of a part alone.
    cfg.SOLVER.ACCUMULATION_STEPS = 1

    # Two trainings give the same weights: deterministic algorithms, where there are some (torch
    # warns of the others). Needs a SEED of 0 or more.
    cfg.SOLVER.DETERMINISTIC = False

    # Checkpoints of SOLVER.CHECKPOINT_PERIOD that are kept, the newest; 0: all. model_best.pth and
    # model_final.pth stay in any case.
    cfg.SOLVER.KEEP_CHECKPOINTS = 0

    # Keep the weights of the best evaluation in OUTPUT_DIR/model_best.pth.
    cfg.TEST.BEST = CfgNode()
    # What is compared, as metrics.json calls it: "bbox/AP"; with several test sets
    # "my_val/bbox/AP"; with TEST.LOSS also "validation/total_loss". "" = off.
    cfg.TEST.BEST.METRIC = ""
    # Whether the highest value is the best ("max") or the lowest ("min")
    cfg.TEST.BEST.MODE = "max"
    # Evaluations in a row without an improvement after which the training ends. 0 = never.
    cfg.TEST.BEST.PATIENCE = 0
    # By how much the metric must improve for that count to begin anew, in its own unit
    cfg.TEST.BEST.MIN_DELTA = 0.0
    # Whether the config.yaml that training leaves names model_best.pth instead of model_final.pth
    cfg.TEST.BEST.IN_CONFIG = False

    # At each evaluation, also the losses of training on DATASETS.TEST
    cfg.TEST.LOSS = False


def check(cfg: CfgNode) -> None:
    """Refuse what a training would stumble over.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    check_int("SOLVER.ACCUMULATION_STEPS", cfg.SOLVER.ACCUMULATION_STEPS, 1)
    check_int("SOLVER.KEEP_CHECKPOINTS", cfg.SOLVER.KEEP_CHECKPOINTS, 0)
    check_parts(cfg)
    check_patterns(cfg.MODEL.FREEZE)
    if cfg.SOLVER.DETERMINISTIC and cfg.SEED < 0:
        raise ValueError(
            f"SOLVER.DETERMINISTIC is True and SEED is {cfg.SEED}, which is another number each "
            "time; allowed: SEED 0 or more"
        )
    if cfg.TEST.LOSS and not cfg.DATASETS.TEST:
        raise ValueError(
            "TEST.LOSS is True and DATASETS.TEST is empty; allowed: a data set or more"
        )
    _check_best(cfg)


def check_parts(cfg: CfgNode) -> None:
    """Refuse a batch that cannot be cut into equal parts, each with images for all processes.

    Raises:
        ValueError: names both keys and what is allowed.
    """
    batch, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    processes = comm.get_world_size()
    if parts > 1 and batch % (parts * processes):
        among = f" by {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {parts} and SOLVER.IMS_PER_BATCH is {batch}, which "
            f"cannot be cut into that many equal parts{among}; allowed: a multiple of "
            f"{parts * processes}"
        )


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuse patterns of MODEL.FREEZE that are none; whether they match the model must say.

    Raises:
        ValueError: shows the value and what is allowed.
    """
    listed = isinstance(patterns, list | tuple)
    if not listed or not all(isinstance(x, str) and x for x in patterns):
        raise ValueError(
            f"MODEL.FREEZE is {patterns!r}; allowed: a list of names of modules or parameters, "
            "such as ['backbone.*', 'roi_heads.box_head']"
        )


def _check_best(cfg: CfgNode) -> None:
    best = cfg.TEST.BEST
    check_word("TEST.BEST.MODE", best.MODE, MODES)
    check_int("TEST.BEST.PATIENCE", best.PATIENCE, 0)
    check_between("TEST.BEST.MIN_DELTA", best.MIN_DELTA, 0)
    if not best.METRIC:
        for key in ("PATIENCE", "IN_CONFIG"):
            if best[key]:
                raise ValueError(
                    f"TEST.BEST.{key} is {best[key]} and TEST.BEST.METRIC is empty; allowed: a "
                    "metric, such as 'bbox/AP'"
                )
        return
    if cfg.TEST.EVAL_PERIOD < 1:
        raise ValueError(
            f"TEST.BEST.METRIC is '{best.METRIC}' and TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, "
            "so that only the last iteration is evaluated; allowed: 1 or more iterations"
        )
    if not cfg.DATASETS.TEST:
        raise ValueError(
            f"TEST.BEST.METRIC is '{best.METRIC}' and DATASETS.TEST is empty; allowed: a data set "
            "or more"
        )
    _check_metric(cfg)


def _check_metric(cfg: CfgNode) -> None:
    """What can be known of the metric's name before there is an evaluation."""
    metric, mode = cfg.TEST.BEST.METRIC, cfg.TEST.BEST.MODE
    first, *rest = metric.split("/")
    if first == LOSSES:
        if not cfg.TEST.LOSS:
            raise ValueError(f"TEST.BEST.METRIC is '{metric}', which needs TEST.LOSS True")
        if mode != "min":
            raise ValueError(
                f"TEST.BEST.MODE is '{mode}'; with TEST.BEST.METRIC '{metric}', a loss, allowed: "
                "'min'"
            )
        return
    datasets = list(cfg.DATASETS.TEST)
    if len(datasets) > 1 and first not in datasets:
        names = ", ".join(repr(f"{name}/{metric}") for name in datasets)
        raise ValueError(
            f"TEST.BEST.METRIC is '{metric}', and DATASETS.TEST has {len(datasets)} data sets; "
            f"allowed: {names}"
        )
    if len(datasets) == 1 and first == datasets[0]:
        raise ValueError(
            f"TEST.BEST.METRIC is '{metric}', and DATASETS.TEST has one data set alone, whose "
            f"metrics are without its name; allowed: '{'/'.join(rest)}'"
        )
