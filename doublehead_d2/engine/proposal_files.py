"""Files of proposals (MODEL.LOAD_PROPOSALS), looked at before detectron2 unpickles them."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from doublehead_d2.checkpoint.reading import refuse_code_in_pickle

# What detectron2 and, after it, Detectron call the entries
ENTRIES = (("ids", "indexes"), ("boxes",), ("objectness_logits", "scores"))


def check_proposal_files(cfg: CfgNode, split: str) -> None:
    """Stop before a file of proposals runs code or ends a loader with a bare KeyError.

    Args:
        cfg: with MODEL.LOAD_PROPOSALS; without it nothing is looked at.
        split: "TRAIN" or "TEST".

    Raises:
        ValueError: a file holds more than arrays, is no dict of ids, boxes and objectness logits,
            as many of each, or lacks an image of its data set. Names the file.
        OSError: a file cannot be read.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    files = cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
    for name, file in zip(cfg.DATASETS[split], files, strict=True):
        ids = _ids(file)
        if ids is None:
            continue
        missing = [r["image_id"] for r in DatasetCatalog.get(name) if str(r["image_id"]) not in ids]
        if missing:
            raise ValueError(
                f"'{file}' has no proposals for {len(missing)} images of {name}, with the ids "
                f"{', '.join(map(str, missing[:5]))}{' ...' if len(missing) > 5 else ''}; allowed: "
                "an entry, which may be empty, for each image"
            )


def _ids(file: str) -> set[str] | None:
    """The images that a file of proposals is about; None if an array, unread here, says so."""
    content = refuse_code_in_pickle(PathManager.get_local_path(file))
    entries = content if isinstance(content, dict) else {}
    found = [next((entries[name] for name in names if name in entries), None) for names in ENTRIES]
    lengths = {len(x) for x in found if isinstance(x, list)}
    if any(x is None for x in found) or len(lengths) > 1:
        has = [f"{key} ({len(x)})" if isinstance(x, list) else key for key, x in entries.items()]
        raise ValueError(
            f"'{file}' is no file of proposals: it holds a {type(content).__name__} of "
            f"{', '.join(map(str, has)) or 'something else'}; allowed: a pickled dict with as many "
            f"entries each of {', '.join(map(' or '.join, ENTRIES))}"
        )
    ids = found[0]
    return set(map(str, ids)) if isinstance(ids, list) else None
