"""Names of metrics before there is an evaluation."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.evaluation import build_evaluator
from doublehead_d2.evaluation.metrics import check_metric, known_metrics


def cfg_of(metric: str, *opts: object) -> CfgNode:
    cfg = model_zoo.get_config(TINY_EXT)
    cfg.merge_from_list(["TEST.BEST.METRIC", metric, *opts])
    return cfg


BOTH = ("DATASETS.TEST", ("shapes_val", "shapes_voc_test"))


@pytest.mark.parametrize(
    ("metric", "opts"),
    [
        ("", ()),
        ("bbox/AP", ()),
        ("bbox/AP-circle", ()),
        ("segm/AP50", ("MODEL.MASK_ON", True)),
        ("keypoints/APl", ("MODEL.KEYPOINT_ON", True)),
        ("validation/total_loss", ()),
        ("bbox_reg_head/AP", ("TEST.DOUBLE_HEAD_MODES", True)),
        ("shapes_voc_test/bbox/AP70", BOTH),
    ],
)
def test_metrics_of_an_evaluation(metric: str, opts: tuple) -> None:
    check_metric(cfg_of(metric, *opts))


@pytest.mark.parametrize(
    ("metric", "opts", "allowed"),
    [
        ("bbox/AP51", (), "'bbox/AP50'"),
        ("AP", (), "'bbox/AP'"),
        ("segm/AP", (), "'bbox/AP'"),
        ("bbox_reg_head/AP", (), "'bbox/AP'"),
        ("shapes_voc_test/bbox/APs", BOTH, "'shapes_voc_test/bbox/AP'"),
    ],
)
def test_metrics_that_no_evaluation_gives(metric: str, opts: tuple, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"METRIC is '{metric}', which no .*allowed: .*{allowed}"):
        check_metric(cfg_of(metric, *opts))


def test_evaluators_of_others_are_left_to_the_first_evaluation(catalogs: None) -> None:
    DatasetCatalog.register("test_other", list)
    MetadataCatalog.get("test_other").evaluator_type = "other"
    cfg = cfg_of("PQ", "DATASETS.TEST", ("test_other",))
    check_metric(cfg)
    assert known_metrics(cfg) == []


@pytest.mark.parametrize("name", ["shapes_val", "shapes_voc_test"])
def test_names_are_those_of_the_evaluators(name: str, shapes: Path, tmp_path: Path) -> None:
    evaluator = build_evaluator(name, str(tmp_path))
    evaluator.reset()
    record = DatasetCatalog.get(name)[0]
    one = Instances(
        (128, 128),
        pred_boxes=Boxes(torch.tensor([[1.0, 1, 50, 50]])),
        scores=torch.ones(1),
        pred_classes=torch.zeros(1, dtype=torch.int64),
    )
    evaluator.process([record], [{"instances": one}])
    found = [f"bbox/{key}" for key in evaluator.evaluate()["bbox"] if "-" not in key]
    assert sorted(found) == sorted(known_metrics(cfg_of("", "DATASETS.TEST", (name,))))
