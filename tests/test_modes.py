"""One pass that scores one model several ways."""

from pathlib import Path

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances

from builders import EXT, IMAGE_SIZE, image_list, random_boxes, random_features, small_heads
from doublehead_d2 import model_zoo
from doublehead_d2.engine import argument_parser, main
from doublehead_d2.evaluation import (
    ModesEvaluator,
    configured_mode,
    find_heads,
    score_modes,
)
from doublehead_d2.evaluation.modes import modes_table

NODE = "MODEL.ROI_DOUBLE_HEAD"
FLOOR = f"{NODE}.SCORE_FLOOR"
ALL = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
FOUR = {
    "reg_head": ("reg_head", "reg_head"),
    "cls_head": ("cls_head", "cls_head"),
    "unfused": ("cls_head", "reg_head"),
    "fused": ("complementary", "reg_head"),
}


class Model(torch.nn.Module):
    """RoI heads where a detector has them."""

    def __init__(self, heads: torch.nn.Module) -> None:
        super().__init__()
        self.roi_heads = heads


class Recorder(DatasetEvaluator):
    """Keeps the detections it is given."""

    def __init__(self, results: dict) -> None:
        self.results, self.seen = results, []

    def reset(self) -> None:
        self.seen = []

    def process(self, inputs: list, outputs: list) -> None:
        self.seen += [output["instances"] for output in outputs]

    def evaluate(self) -> dict:
        return self.results


def lambdas(cls: float, reg: float) -> list:
    return [f"{NODE}.CLS_HEAD.LAMBDA", cls, f"{NODE}.REG_HEAD.LAMBDA", reg]


@pytest.mark.parametrize(
    ("opts", "names"),
    [
        (EXT, ["reg_head", "cls_head", "unfused", "fused"]),
        ([], ["unfused"]),
        (lambdas(1.0, 0.8), ["reg_head", "unfused", "fused"]),
        (lambdas(0.7, 1.0), ["cls_head", "unfused"]),
        (lambdas(0.0, 0.5) + [f"{NODE}.SCORE_FUSION", "reg_head"], ["reg_head"]),
        (lambdas(0.5, 0.0) + [f"{NODE}.BOX_SOURCE", "cls_head"], ["cls_head"]),
    ],
)
def test_modes_that_a_model_can_give(opts: list, names: list) -> None:
    modes = small_heads(*opts).scoring_modes()
    assert modes == {name: FOUR[name] for name in names}


def test_fused_is_the_configured_fusion() -> None:
    heads = small_heads(*EXT, f"{NODE}.SCORE_FUSION", "average")
    assert heads.scoring_modes()["fused"] == ("average", "reg_head")
    assert configured_mode(heads, heads.scoring_modes()) == "fused"
    heads = small_heads(*EXT, f"{NODE}.BOX_SOURCE", "cls_head")
    assert configured_mode(heads, heads.scoring_modes()) is None


@pytest.mark.parametrize("masks", [False, True])
def test_each_mode_detects_what_a_model_so_configured_detects(masks: bool) -> None:
    opts = [*EXT, *ALL, "MODEL.MASK_ON", masks, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
    heads, features = small_heads(*opts).eval(), random_features(2)
    for module in heads.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.1)
    boxes = [random_boxes(6), random_boxes(0)]
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=b) for b in boxes]
    runs = []
    heads.box_head.register_forward_hook(lambda *_: runs.append(1))
    with score_modes(Model(heads), FOUR):
        together, _ = heads(image_list(2), features, proposals)
    assert len(runs) == 1
    for index, (fusion, source) in enumerate(FOUR.values()):
        alone = small_heads(*opts, f"{NODE}.SCORE_FUSION", fusion, f"{NODE}.BOX_SOURCE", source)
        alone.load_state_dict(heads.state_dict())
        expected, _ = alone.eval()(image_list(2), features, proposals)
        for found, wanted in zip(together, expected, strict=True):
            found = found[found.modes == index]
            assert len(found) == len(wanted)
            torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
            torch.testing.assert_close(found.scores, wanted.scores)
            assert torch.equal(found.pred_classes, wanted.pred_classes)
            if masks:
                torch.testing.assert_close(found.pred_masks, wanted.pred_masks)
    assert len(together[0]) > 0 and len(together[1]) == 0


@pytest.mark.parametrize("spared", ["lazy", "floor"])
def test_modes_show_the_regression_head_everything(spared: str) -> None:
    """Other modes than the configured one need what it would leave out."""
    opts = [*EXT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99]
    opts += [f"{NODE}.SCORE_FUSION", "cls_head"] if spared == "lazy" else [FLOOR, 0.99]
    heads = small_heads(*opts).eval()
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(6))]
    with torch.no_grad():
        heads(image_list(1), random_features(1), proposals)
        assert heads.rois_shown["reg_head"] == 0
        with score_modes(Model(heads), FOUR):
            heads(image_list(1), random_features(1), proposals)
    assert heads.rois_shown["reg_head"] == 6


def test_after_the_context_the_model_is_as_before() -> None:
    heads = small_heads(*EXT).eval()
    with pytest.raises(KeyError), score_modes(Model(heads), FOUR):
        raise KeyError
    proposals = [Instances(IMAGE_SIZE, proposal_boxes=random_boxes(3))]
    detections, _ = heads(image_list(1), random_features(1), proposals)
    assert not detections[0].has("modes")


def test_evaluators_get_the_detections_of_their_mode() -> None:
    evaluators = {"a": Recorder({"bbox": {"AP": 1.0}}), "b": Recorder({"bbox": {"AP": 2.0}})}
    both = ModesEvaluator(evaluators, configured="b")
    both.reset()
    scores, modes = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 0])
    both.process([{}], [{"instances": Instances((8, 8), scores=scores, modes=modes)}])
    found = {mode: evaluator.seen[0].scores.tolist() for mode, evaluator in evaluators.items()}
    assert found == {"a": pytest.approx([0.1, 0.3]), "b": pytest.approx([0.2])}
    results = both.evaluate()
    assert {k: v["AP"] for k, v in results.items()} == {"bbox": 2, "bbox_a": 1, "bbox_b": 2}
    assert "modes" not in evaluators["a"].seen[0].get_fields()


def test_outputs_without_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="carry no modes: run the model within score_modes"):
        ModesEvaluator({}).process([{}], [{"instances": Instances((8, 8))}])


def test_a_single_head_has_no_modes() -> None:
    cfg = model_zoo.get_config("Shapes-Detection/single_fc_rcnn_tiny.yaml")
    heads = small_heads("MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    with pytest.raises(ValueError, match="'StandardROIHeads', .* allowed: 'DoubleHeadROIHeads'"):
        find_heads(Model(heads))
    assert not cfg.TEST.DOUBLE_HEAD_MODES


def test_table_has_a_row_a_mode() -> None:
    table = modes_table({"bbox_a": {"AP": 12.345, "AP-cat": 1.0}, "bbox_b": {"AP": 2.0}})
    assert "12.3" in table and "AP-cat" not in table
    assert len(table.splitlines()) == 4


@pytest.mark.slow
def test_four_ways_of_a_trained_model_on_both_protocols(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def evaluate(*opts: str) -> dict:
        words = ["--config-file", str(trained / "config.yaml"), "--eval-only"]
        words += ["DATASETS.TEST", "('shapes_val', 'shapes_voc_test')"]
        words += ["OUTPUT_DIR", str(trained / "modes"), *opts]
        return main(argument_parser().parse_args(words))

    four = evaluate("TEST.DOUBLE_HEAD_MODES", "True")
    assert "Every head sees all proposals" in capfd.readouterr().out
    alone = evaluate(f"{NODE}.SCORE_FUSION", "cls_head")
    for dataset, results in four.items():
        assert set(results) == {"bbox", *(f"bbox_{mode}" for mode in FOUR)}
        assert results["bbox"] == results["bbox_fused"]
        assert results["bbox_unfused"]["AP"] == pytest.approx(alone[dataset]["bbox"]["AP"])
        assert len({metrics["AP"] for metrics in results.values()}) > 1
