"""Small detectors: such whose random heads say something else of each RoI, and such in files."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model

from builders import narrow, read_once
from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.analysis.asking import ask, modes_of, see
from places import CLASSES

THRESHOLD = 0.45  # of scores in inference
EXT = "Shapes-Detection/double_head_ext_rcnn_tiny.yaml"


def built_detector(name: str, *opts: object) -> GeneralizedRCNN:
    """A small model in evaluation mode."""
    cfg = read_once(name).clone()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    if name.startswith("Ablations"):
        narrow(cfg, backbone=16, heads=32)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 40
    # Below it the regression head is shown nothing, where it is lazy.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = THRESHOLD
    cfg.merge_from_list(list(opts))
    torch.manual_seed(0)
    return build_model(cfg).eval()


@cache
def random_detector(name: str, *opts: object) -> GeneralizedRCNN:
    """A small model whose random heads say something, in evaluation mode; not to be changed."""
    model = built_detector(name, *opts)
    spread(model)
    return model


def spread(model: GeneralizedRCNN) -> None:
    """Make random heads say something else of each RoI: logits and deltas far apart, around 0."""
    heads = model.roi_heads
    if hasattr(heads, "offset_head"):  # TSD's, before what is pooled at its offsets
        rescale(model, {heads.offset_head.delta_c[-1]: 0.5, heads.offset_head.delta_r[-1]: 0.5})
    deviations: dict[torch.nn.Module, float] = {}
    for layers in (heads.box_predictor, getattr(heads, "reg_predictor", None)):
        if layers is not None:
            deviations |= {layers.cls_score: 2.0, layers.bbox_pred: 0.5}
    rescale(model, {m: x for m, x in deviations.items() if isinstance(m, torch.nn.Linear)})


def rescale(model: GeneralizedRCNN, deviations: dict) -> None:
    """Give what linear layers say of the RPN's proposals mean 0 and these standard deviations."""
    seen: dict = {}
    hooks = [m.register_forward_hook(lambda m, x, _: seen.update({m: x[0]})) for m in deviations]
    modes, what = modes_of(model), see(model, inputs())
    ask(model, modes, what.features, [x.proposal_boxes for x in what.proposals], what.image_sizes)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for module, deviation in deviations.items():
            module.weight *= deviation / (seen[module] @ module.weight.T).std(dim=0)[:, None]
            module.bias.copy_(-module.weight @ seen[module].mean(dim=0))


def inputs() -> list[dict]:
    """Two images of different sizes: one is padded."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(3, h, w, generator=generator) * 255} for h, w in ((96, 128), (128, 80))
    ]


def write_model(folder: Path, dataset: str, name: str = TINY_EXT, *opts: Any) -> str:
    """A config of a small model with random weights, of which many boxes are detections."""
    cfg: CfgNode = model_zoo.get_config(name)
    width = cfg.MODEL.RESNETS.clone()
    narrow(cfg, backbone=1, heads=32)
    cfg.MODEL.RESNETS = width  # a ResNet-18 has one width
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (dataset,)
    cfg.DATASETS.CLASS_NAMES = CLASSES
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.merge_from_list(list(opts))
    torch.manual_seed(0)
    folder.mkdir()
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    (folder / "config.yaml").write_text(cfg.dump())
    return str(folder / "config.yaml")
