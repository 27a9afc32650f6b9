"""What a GPU changes; needs one."""

import itertools

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from builders import EXT, random_boxes, random_features, sampled_proposals, small_heads
from doublehead_d2.benchmark.timing import time_inference
from doublehead_d2.benchmark.variants import Setting, build_variant, prepare, random_inputs
from doublehead_d2.engine.amp import AMPTrainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def to_cuda(features: dict) -> dict:
    return {name: value.cuda() for name, value in features.items()}


def test_predictions_equal_those_of_the_cpu() -> None:
    heads, boxes = small_heads(*EXT).eval(), random_boxes(20)
    expected = heads.predict(random_features(1), [boxes])
    got = heads.cuda().predict(to_cuda(random_features(1)), [boxes.to("cuda")])
    for head, reference in zip(got, expected, strict=True):
        for value, wanted in zip(head, reference, strict=True):
            # convolutions may use TF32
            torch.testing.assert_close(value.cpu(), wanted, atol=5e-3, rtol=5e-3)


def test_own_step_trains_in_float16_with_scaled_gradients() -> None:
    class Model(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(x).float().square().mean()}

    batch = torch.ones(4, 8, device="cuda")
    model = Model(8, 2).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.weight.clone()
    trainer = AMPTrainer(model, itertools.repeat(batch), optimizer)
    trainer.train(0, 3)
    assert trainer.precision == torch.float16 and trainer.grad_scaler.is_enabled()
    assert model.weight.isfinite().all() and not torch.equal(model.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_trains_and_detects(dtype: torch.dtype) -> None:
    heads = small_heads(*EXT).cuda().train()
    proposals = [x.to("cuda") for x in sampled_proposals()]
    with EventStorage(), torch.autocast("cuda", dtype=dtype):
        losses = heads._forward_box(to_cuda(random_features(2)), proposals)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters())
    proposals = [Instances((64, 64), proposal_boxes=random_boxes(6).to("cuda"))]
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype):
        detections = heads.eval()._forward_box(to_cuda(random_features(1)), proposals)
    assert detections[0].pred_boxes.tensor.dtype == torch.float32


@torch.no_grad()
def test_folded_head_gives_the_same() -> None:
    heads, boxes = small_heads(*EXT).cuda().eval(), [random_boxes(20).to("cuda")]
    features = to_cuda(random_features(1))
    expected = heads.predict(features, boxes).reg_head
    heads.reg_head.fold_bn = True
    for value, wanted in zip(heads.predict(features, boxes).reg_head, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_checkpoints_and_foreground_train(dtype: torch.dtype) -> None:
    node = "MODEL.ROI_DOUBLE_HEAD"
    opts = [f"{node}.TRAIN_REG_HEAD_ON", "foreground", f"{node}.CONV_HEAD.USE_ACT_CHECKPOINT", True]
    losses = []
    for changes in ([], opts):
        heads = small_heads(f"{node}.CONV_HEAD.NORM", "FrozenBN", *changes).cuda().train()
        proposals = [x.to("cuda") for x in sampled_proposals()]
        with EventStorage(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            losses.append(heads._forward_box(to_cuda(random_features(2)), proposals))
        sum(losses[-1].values()).backward()
        assert all(p.grad.isfinite().all() for p in heads.parameters())
    torch.testing.assert_close(losses[1], losses[0], atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_benchmark_measures_time_and_memory(precision: torch.dtype) -> None:
    setting = Setting(image_size=(128, 160), num_proposals=100)
    model, inputs = build_variant("double_head", "cuda"), random_inputs(setting)
    prepare(model, inputs, setting)
    results = time_inference({"m": model}, [inputs], repetitions=2, precision=precision)["m"]
    weights = sum(p.nbytes for p in model.parameters()) / 2**20
    assert results["seconds"] > 0 and results["peak_mib"] > weights
