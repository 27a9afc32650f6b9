"""TEST.COCO_API: which implementation computes COCO's metric."""

import importlib

from doublehead_d2.config.shared import check_word

COCO_APIS = ("auto", "hotcoco", "pycocotools")


def uses_hotcoco(coco_api: str) -> bool:
    """Whether a value of TEST.COCO_API means hotcoco here.

    Raises:
        ValueError: another word, or hotcoco is asked for and not installed.
    """
    check_word("TEST.COCO_API", coco_api, COCO_APIS)
    if coco_api == "pycocotools":
        return False
    try:
        importlib.import_module("hotcoco")
    except ImportError as error:
        if coco_api == "hotcoco":
            raise ValueError(
                f"TEST.COCO_API is 'hotcoco', which cannot be imported ({error}): "
                "pip install \"hotcoco>=1.3\"; allowed without it: 'auto', 'pycocotools'"
            ) from None
        return False
    return True
