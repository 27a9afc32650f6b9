"""The keys of this package: those of every system, and those of none."""

from detectron2.config import CfgNode

from doublehead_d2.config import detnet, double_head, grcn, training, tsd

# A file each, with `add_keys(cfg)` and `check(cfg)`; a further system is a line here.
SYSTEMS = (double_head, tsd, detnet, grcn)


def add_doublehead_config(cfg: CfgNode) -> None:
    """Add the keys of this package, with their defaults, to `cfg` in place."""
    for system in SYSTEMS:
        system.add_keys(cfg)
    training.add_keys(cfg)

    # Names of the classes in the order of their indices. Training fills it in from the metadata
    # of its data set, so that a saved config carries the names to where the data set is not.
    cfg.DATASETS.CLASS_NAMES = []

    # Data sets of the user's own, by name: a text, "coco:ANNOTATIONS.json:IMAGES",
    # "voc:FOLDER:SPLIT" or "yolo:data.yaml:SPLIT", or a mapping {layout, annotations, images,
    # folder, split, classes, rename, evaluator, year, boxes} of what applies to the layout
    # (data/entries.py). Relative paths start from the file that states them, then from
    # $DETECTRON2_DATASETS. DATASETS.TRAIN and TEST name them as they do detectron2's own.
    cfg.DATASETS.REGISTER = CfgNode(new_allowed=True)

    # A training from MODEL.WEIGHTS starts class scores, and boxes and masks of a class each, anew
    # although the file has them: for as many classes of another meaning. --resume keeps them.
    cfg.MODEL.NEW_PREDICTORS = False

    # How images are resized to INPUT.MIN_SIZE_* and MAX_SIZE_*: as detectron2 does, or, for
    # published models, as "mmdet" (OpenCV) or "maskrcnn_benchmark" (truncated size) does. Honoured
    # by train_net.py and inference.Predictor; DefaultPredictor and test-time augmentation keep
    # detectron2's.
    cfg.INPUT.RESIZE_RULE = "detectron2"

    # Score one model in several ways in one evaluation pass. Of Double-Head (Fig. 8): results
    # "bbox_reg_head" (regression head alone), "bbox_cls_head" (classification head alone),
    # "bbox_unfused" (scores of the classification head, boxes of the regression head) and
    # "bbox_fused" (fused scores) beside "bbox". Those that a model cannot give are left out.
    cfg.TEST.DOUBLE_HEAD_MODES = False

    # What computes COCO's metric: "hotcoco", "pycocotools", or "auto", which is hotcoco where it is
    # installed. The numbers are the same to the last bit; hotcoco takes a hundredth of the time.
    cfg.TEST.COCO_API = "auto"

    # Images per batch, over all GPUs, that lr and schedule are written for. If > 0, the lr is
    # multiplied by IMS_PER_BATCH / this, and iterations, steps, warm-up and periods are divided by
    # it. 0 = off.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
