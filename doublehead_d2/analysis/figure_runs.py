"""Passes over a data set in blocks of images, that several processes share and that can be stopped.

A block is a file with all that was counted in it, written whole or not at all. So a run that was
stopped goes on where it was, with as many processes as it likes, and the numbers are the same.
"""

import contextlib
import io
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import GeneralizedRCNN
from tqdm import tqdm

from doublehead_d2.analysis.difficulty import difficulties_of
from doublehead_d2.analysis.figure_pass import Mapper, Request, examine
from doublehead_d2.analysis.tally import Tally
from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.data.naming_mapper import NamingMapper
from doublehead_d2.data.resize import build_mapper
from doublehead_d2.engine.trainer import Trainer
from doublehead_d2.evaluation import build_coco_evaluator
from doublehead_d2.files import write_json

BLOCK = 8  # images: what a run that is stopped loses at most, in each process
SETTINGS_FILE, DIFFICULTY_FILE = "settings.json", "difficulty.json"


class Pass(NamedTuple):
    """A detector's pass over a data set."""

    cfg: CfgNode  # with MODEL.WEIGHTS and one data set in DATASETS.TEST
    folder: Path  # of its blocks
    request: Request
    num_images: int  # the first ones; 0: all
    # The model that says which classes are hard; None where no number depends on it
    baseline: CfgNode | None = None

    @property
    def blocks(self) -> dict[Path, range]:
        """The file of each block, and the places of its images in the data set."""
        count = len(DatasetCatalog.get(self.cfg.DATASETS.TEST[0]))
        count = min(count, self.num_images or count)
        blocks = [range(x, min(x + BLOCK, count)) for x in range(0, count, BLOCK)]
        return {self.folder / f"{x.start:07}-{x.stop:07}.json": x for x in blocks}


def prepare(one: Pass) -> None:
    """Make the folder of a pass whose config `error_runs.check_model` has seen.

    Raises:
        ValueError: it holds numbers of other settings.
    """
    settings = {
        **_identity(one.cfg),
        "request": json.loads(json.dumps(one.request._asdict())),
        "baseline": None if one.baseline is None else _identity(one.baseline),
    }
    path = one.folder / SETTINGS_FILE
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(
            f"{one.folder} holds numbers of another config, weights, request or baseline; allowed: "
            "another --output, or without this folder"
        )
    one.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def run_blocks(
    one: Pass, difficulties: Sequence[int], part: int = 0, parts: int = 1, *, bar: bool = True
) -> None:
    """Count those blocks of a pass that are not there yet.

    Args:
        one: that :func:`prepare` has seen.
        difficulties: of the classes.
        part, parts: blocks part, part + parts, ... are this process's.
        bar: whether to show progress.
    """
    todo = [x for x in list(one.blocks.items())[part::parts] if not x[0].exists()]
    if not todo:
        return
    model, mapper = load(one.cfg), mapper_of(one.cfg)
    records = DatasetCatalog.get(one.cfg.DATASETS.TEST[0])
    total = sum(len(places) for _, places in todo)
    with tqdm(
        total=total, unit="image", desc=one.folder.name, disable=None if bar else True
    ) as progress:
        for path, places in todo:
            images = ((place, records[place]) for place in places)
            tally = examine(model, images, mapper, one.request, difficulties)
            write_json(path, tally.state())
            progress.update(len(places))


def share(one: Pass, commands: Sequence[Sequence[str]]) -> None:
    """Run the blocks of a pass in several processes, with their progress together.

    Args:
        one: that :func:`prepare` has seen.
        commands: one a process, which calls :func:`run_blocks` with its part.

    Raises:
        ValueError: one of them failed; names its log.
    """
    threads = str(max(1, (os.cpu_count() or 1) // len(commands)))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}  # a user's own number stands
    logs = [one.folder / f"part_{part}.log" for part in range(len(commands))]
    processes = []
    for path, command in zip(logs, commands, strict=True):
        with open(path, "w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    try:
        _watch(one, processes)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    failed = [log for log, x in zip(logs, processes, strict=True) if x.returncode]
    if failed:
        raise ValueError(f"a process failed, see {failed[0]}: {failed[0].read_text()[-500:]}")


def _watch(one: Pass, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Show how many images are counted until the last process has ended."""
    blocks = one.blocks
    total = sum(map(len, blocks.values()))
    with tqdm(total=total, unit="image", desc=one.folder.name, disable=None) as bar:
        while True:
            running = any(process.poll() is None for process in processes)
            bar.n = sum(len(places) for path, places in blocks.items() if path.exists())
            bar.refresh()
            if not running:
                return
            time.sleep(0.5)


def merged(one: Pass) -> Tally:
    """All blocks of a pass together, in the order of the images."""
    whole: Tally | None = None
    for path in one.blocks:
        tally = Tally.from_state(json.loads(path.read_text()))
        if whole is None:
            whole = tally
        else:
            whole.merge(tally)
    assert whole is not None, "a data set without images"
    return whole


def load(cfg: CfgNode) -> GeneralizedRCNN:
    """The model of a config with its weights, in evaluation mode."""
    model = Trainer.build_model(cfg)
    DoubleHeadCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def stamp(path: str) -> list[Any]:
    """What tells a file of weights from what it was: its path, size and time."""
    if not os.path.isfile(path):
        return [path]
    found = os.stat(path)
    return [path, found.st_size, found.st_mtime_ns]


def _identity(cfg: CfgNode) -> dict[str, Any]:
    """What tells a model from another."""
    return {"config": cfg.dump(), "weights": stamp(cfg.MODEL.WEIGHTS)}


def mapper_of(cfg: CfgNode) -> Mapper:
    """What makes the network's input of a record, as in evaluation."""
    mapper = NamingMapper(build_mapper(cfg, is_train=False))

    def mapped(record: dict[str, Any]) -> dict[str, Any]:
        found = mapper(record)
        assert found is not None, "in evaluation no image is left out"
        return found

    return mapped


def difficulties_by(cfg: CfgNode, folder: Path) -> list[int]:
    """How hard each class is for a baseline: thirds by its AP on the data set (A.1).

    Args:
        cfg: of the baseline, with one data set in DATASETS.TEST.
        folder: that the evaluation is kept in, for the next run.
    """
    (dataset,) = cfg.DATASETS.TEST
    names = MetadataCatalog.get(dataset).thing_classes
    path = folder / DIFFICULTY_FILE
    key = _identity(cfg)
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["baseline"] == key:
            return difficulties_of(kept["AP"])
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder / "baseline")
    # COCO's, whatever the data set's own is: Pascal VOC's gives no AP by class.
    evaluator = build_coco_evaluator(dataset, cfg.OUTPUT_DIR)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own tables
        results = Trainer.test(cfg, load(cfg), [evaluator])["bbox"]
    found = [results.get(f"AP-{name}", results["AP"]) for name in names]
    aps = [None if x != x else x for x in found]
    write_json(path, {"AP": aps, "classes": list(names), "baseline": key})
    return difficulties_of(aps)


def device_of(part: int) -> str:
    """The device of one of several processes: the GPUs in turn, or the CPU."""
    count = torch.cuda.device_count()
    return f"cuda:{part % count}" if count else "cpu"
