"""What the evaluators of this package call their metrics, known before anything is evaluated."""

import difflib

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from doublehead_d2.config.training import LOSSES

# By evaluator_type and task: detectron2's, and AP70
METRICS: dict[str, dict[str, tuple[str, ...]]] = {
    "coco": {
        "bbox": ("AP", "AP50", "AP70", "AP75", "APs", "APm", "APl"),
        "segm": ("AP", "AP50", "AP70", "AP75", "APs", "APm", "APl"),
        "keypoints": ("AP", "AP50", "AP70", "AP75", "APm", "APl"),
    },
    "pascal_voc": {"bbox": ("AP", "AP50", "AP70", "AP75")},
}


def check_metric(cfg: CfgNode) -> None:
    """Refuse a TEST.BEST.METRIC that no evaluation of this config gives.

    Metrics of a class and results by mode are left to the first evaluation, and so is every metric
    where a data set has an evaluator of others.

    Raises:
        ValueError: names the metric and those that there are.
    """
    metric, known = cfg.TEST.BEST.METRIC, known_metrics(cfg)
    by_mode = cfg.TEST.DOUBLE_HEAD_MODES and "_" in metric
    if not metric or metric.startswith(f"{LOSSES}/") or metric in known or not known or by_mode:
        return
    if metric.partition("AP-")[0] + "AP" in known:  # a class's, e.g. "bbox/AP-circle"
        return
    close = difflib.get_close_matches(metric, known, n=3, cutoff=0.5)
    raise ValueError(
        f"TEST.BEST.METRIC is '{metric}', which no evaluation gives; allowed: "
        f"{', '.join(map(repr, close + [name for name in known if name not in close]))}"
    )


def known_metrics(cfg: CfgNode) -> list[str]:
    """Names of the metrics of an evaluation on DATASETS.TEST; none where an evaluator is others'.

    They are those of metrics.json: "bbox/AP", with several data sets "my_val/bbox/AP".
    """
    tasks = {"segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON, "bbox": True}
    found = []
    for dataset in cfg.DATASETS.TEST:
        evaluator = MetadataCatalog.get(dataset).get("evaluator_type")
        if evaluator not in METRICS:
            return []
        prefix = f"{dataset}/" if len(cfg.DATASETS.TEST) > 1 else ""
        for task, names in METRICS[evaluator].items():
            found += [f"{prefix}{task}/{name}" for name in names if tasks[task]]
    return found
