"""Pictures of what one head misses or detects twice and the other does not (Figures A.4, A.5).

Source: Double-Head R-CNN (https://arxiv.org/abs/1904.06493), Appendix A.3; issue 22.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from doublehead_d2.analysis.asking import modes_of
from doublehead_d2.analysis.case_book import CaseBook
from doublehead_d2.analysis.case_runs import ALONE, Side, find_cases, open_book, sides_of
from doublehead_d2.analysis.figure_runs import BLOCK, load, mapper_of, stamp
from doublehead_d2.case_pictures import draw_case
from doublehead_d2.files import write_json
from doublehead_d2.inference.images import read_bgr
from doublehead_d2.visualize import save_picture


class Comparison(NamedTuple):
    """Two heads, of one model or of two, that are compared."""

    name: str
    sides: list[Side]


def comparisons_of(models: Sequence[tuple[str, CfgNode]]) -> list[Comparison]:
    """The heads of each model whose heads detect alone; without such a model, the first two models.

    Raises:
        ValueError: there is neither.
    """
    loaded = [(name, load(cfg), mapper_of(cfg)) for name, cfg in models]
    found = [
        Comparison(name, sides_of(model, mapper))
        for name, model, mapper in loaded
        if {*ALONE} <= {*modes_of(model)}
    ]
    if found:
        return found
    if len(loaded) < 2:
        raise ValueError(
            f"cases need two heads that detect alone, and '{models[0][0]}' has none; allowed: a "
            "model whose heads learned both tasks (as Double-Head-Ext), or two models"
        )
    sides = [
        Side(name, model, mapper, next(iter(modes_of(model)))) for name, model, mapper in loaded[:2]
    ]
    return [Comparison(" and ".join(side.title for side in sides), sides)]


def draw_cases(
    models: Sequence[tuple[str, CfgNode]], folder: Path, num_images: int, keep: int
) -> list[str]:
    """Find and draw cases; a run that was stopped goes on.

    Args:
        models: names and configs, with weights and one data set in DATASETS.TEST.
        folder: `cases.json` and the folder `cases` are written in it.
        num_images: the first ones of the data set; 0: all.
        keep: pictures of each kind, the plainest.

    Returns:
        the files.

    Raises:
        ValueError: as :func:`comparisons_of` and `case_runs.open_book`.
    """
    dataset = models[0][1].DATASETS.TEST[0]
    metadata = MetadataCatalog.get(dataset)
    place = folder / "cases"
    place.mkdir(parents=True, exist_ok=True)
    key = [[name, stamp(cfg.MODEL.WEIGHTS), cfg.dump()] for name, cfg in models]
    content: dict[str, Any] = {"data": dataset, "comparisons": []}
    written = [str(folder / "cases.json")]
    for number, comparison in enumerate(comparisons_of(models)):
        book = open_book(comparison.sides, metadata.thing_classes, keep=keep)
        path = place / f"{number}.json"
        book = _read_on(comparison, book, path, [*key, keep, num_images], dataset, num_images)
        state = book.state()
        content["comparisons"].append({"name": comparison.name} | state)
        for kind in book.kinds:
            cases = [case for case in state["cases"] if case["kind"] == kind]
            for rank, case in enumerate(cases):
                name = "_".join(kind.replace(",", "").split())
                picture = place / f"{number}_{name}_{rank}.png"
                save_picture(picture, draw_case(read_bgr(case["image"]), case, metadata))
                written.append(str(picture))
    write_json(written[0], content)
    return written


def count_table(content: dict[str, Any]) -> str:
    """How many objects each head misses and detects twice, in Markdown.

    Args:
        content: of cases.json.
    """
    lines = ["| heads | what | objects |", "|---|---|---|"]
    for comparison in content["comparisons"]:
        lines += [
            f"| {comparison['name']} | {what} | {count:,} |"
            for what, count in comparison["counts"].items()
            if count and what != "images"
        ]
    return "\n".join(lines)


def _read_on(
    comparison: Comparison,
    book: CaseBook,
    path: Path,
    key: list[Any],
    dataset: str,
    num_images: int,
) -> CaseBook:
    """Go through the images that a book does not know yet; it is written down now and then."""
    records = DatasetCatalog.get(dataset)
    records = records[: num_images or len(records)]
    done = 0
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["key"] == key:
            book, done = CaseBook.from_state(kept["book"]), kept["images"]
    with tqdm(
        total=len(records), initial=done, unit="image", desc=f"cases of {comparison.name}",
        disable=None,
    ) as bar:  # fmt: skip
        for start in range(done, len(records), BLOCK):
            block = records[start : start + BLOCK]
            find_cases(comparison.sides, block, book)
            images = start + len(block)
            write_json(path, {"key": key, "images": images, "book": book.state()})
            bar.update(len(block))
    return book
