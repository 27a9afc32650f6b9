"""What cannot be exported, said before a model is built."""

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY

from doublehead_d2.config.shared import check_word

# Proposals of others come from files, which are no part of a model; those of rotated boxes are
# suppressed by detectron2's own compiled operators.
_GENERATORS = ("RPN", "LegacyRPN", "Mmdet1RPN")


def check_export(cfg: CfgNode, file_format: str) -> None:
    """Refuse a model that no file of this format can be made of.

    Args:
        cfg: of a model that can be built.
        file_format: one of `FORMATS`.

    Raises:
        ValueError: names the key that stands against it, its value and what is allowed.
    """
    model = cfg.MODEL
    check_word("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, ("GeneralizedRCNN",))
    check_word("MODEL.PROPOSAL_GENERATOR.NAME", model.PROPOSAL_GENERATOR.NAME, _GENERATORS)
    if any(model.RESNETS.DEFORM_ON_PER_STAGE):
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {model.RESNETS.DEFORM_ON_PER_STAGE}: deformable "
            "convolutions are operators of detectron2, without which the file is to run; allowed: "
            "False for all stages"
        )
    if file_format != "onnx":
        return
    if model.KEYPOINT_ON:
        raise ValueError(
            "MODEL.KEYPOINT_ON is True: keypoints are decoded in a loop over detections, of which "
            "torch makes no ONNX; allowed: --format torchscript, or MODEL.KEYPOINT_ON False"
        )
    name = model.ROI_HEADS.NAME
    obstacle = getattr(ROI_HEADS_REGISTRY.get(name), "onnx_obstacle", "")
    if obstacle:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is '{name}': {obstacle}; allowed: --format torchscript"
        )
