"""The documents point at what is there: files, headings, tools, configs and config keys."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from conftest import REPOSITORY
from doublehead_d2 import add_doublehead_config

DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "dev" / "benchmarks" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
# An expectation of readers: more than this is no overview.
LINES_OF_README = 135

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")


def without_code(text: str) -> str:
    """Markdown without fenced blocks and code spans, which have neither links nor headings."""
    return CODE.sub("", FENCE.sub("", text))


def code_of(text: str) -> str:
    """The fenced blocks and code spans alone."""
    return "\n".join(FENCE.findall(text) + CODE.findall(FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    """Anchors of the headings, by GitHub's rule: lower case, no punctuation, hyphens for spaces."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        # The second heading of a name gets "-1", the third "-2".
        number = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", known) is not None for known in found
        )
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken_links(document: Path) -> list[str]:
    """Relative links and images that point to no file, or to no heading of one."""
    text = document.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", name):  # http: and the like
            continue
        target = document.parent / name if name else document
        if not (target.exists() and (not anchor or anchor in anchors(target.read_text("utf-8")))):
            broken.append(link)
    return broken


def unknown_tools(text: str) -> list[str]:
    """Names after `doublehead_d2.tools.` that are no tool."""
    names = re.findall(r"doublehead_d2\.tools\.(\w+)", text)
    return [n for n in names if not (REPOSITORY / "doublehead_d2" / "tools" / f"{n}.py").is_file()]


def missing_files(text: str, suffix: str, folders: Iterable[str]) -> list[str]:
    """Files named in code, with a folder before them, that are in none of the `folders`."""
    names = re.findall(rf"(?<![\w.>/-])(?:[\w.-]+/)+[\w.-]+\.{suffix}\b", code_of(text))
    # What a command writes is not there before.
    names = [name for name in names if not name.startswith("output/")]
    return [n for n in names if not any((REPOSITORY / f / n).is_file() for f in folders)]


def missing_configs(text: str) -> list[str]:
    """Configs named in code, by path or by name in the zoo, that are not there."""
    return missing_files(text, "yaml", (".", "configs"))


def missing_modules(text: str) -> list[str]:
    """Python files named in code, from the repository or from the package, that are not there."""
    return missing_files(text, "py", (".", "doublehead_d2"))


def repeated_headings(text: str) -> list[str]:
    """Headings that a document has more than once, as a merge of two branches leaves them."""
    headings = re.findall(r"^#{1,3} .*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return sorted({x for x in headings if headings.count(x) > 1})


def missing_rooms(text: str, title: str) -> list[str]:
    """Paths in the tree below the heading `title`, two spaces a level, that are not there."""
    tree = text.split(f"\n## {title}\n```\n")[1].split("\n```\n")[0]
    parents: list[str] = []
    missing = []
    for spaces, name in re.findall(r"^( *)(\S+)", tree, re.MULTILINE):
        parents[len(spaces) // 2 :] = [name.rstrip("/")]
        path = REPOSITORY.joinpath(*parents)
        if not (path.is_dir() if name.endswith("/") else path.exists()):
            missing.append("/".join(parents))
    return missing


def config() -> CfgNode:
    cfg = get_cfg()
    add_doublehead_config(cfg)
    return cfg


def has_key(node: CfgNode, key: str) -> bool:
    first, _, rest = key.partition(".")
    if first not in node:
        return False
    return not rest or (isinstance(node[first], CfgNode) and has_key(node[first], rest))


def unknown_keys(text: str) -> list[str]:
    """Keys named in code that are none: in full, from MODEL, or from MODEL.ROI_DOUBLE_HEAD on."""
    cfg = config()
    keys = re.findall(r"(?<![\w.])[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+\b(?!\.)", code_of(text))
    nodes = (cfg, cfg.MODEL, cfg.MODEL.ROI_DOUBLE_HEAD)
    return [key for key in keys if not any(has_key(node, key) for node in nodes)]


def name_of(document: Path) -> str:
    return document.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_document_points_at_what_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert broken_links(document) == []
    assert unknown_tools(text) == []
    assert missing_configs(text) == []
    assert missing_modules(text) == []
    assert unknown_keys(text) == []
    if document.name != "CHANGELOG.md":  # which has the same headings for each release
        assert repeated_headings(text) == []


@pytest.mark.parametrize(
    ("document", "title"),
    [("README.md", "Map of the repository"), ("docs/ARCHITECTURE.md", "Rooms")],
)
def test_map_shows_what_is_there(document: str, title: str) -> None:
    assert missing_rooms((REPOSITORY / document).read_text(encoding="utf-8"), title) == []


def test_readme_is_short() -> None:
    assert (
        len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= LINES_OF_README
    )


def test_readme_lists_every_document() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^- \[\w+\]\(docs/(\w+\.md)\)", text, re.MULTILINE))
    assert listed == {path.name for path in (REPOSITORY / "docs").glob("*.md")}


def test_repeated_headings_are_found() -> None:
    text = "# A\n## B\n```\n# a comment\n# a comment\n```\n### C\n## B\n"
    assert repeated_headings(text) == ["## B"]


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `b`, c-d\n## A\n## A\n```\n# no heading\n```\n")
    document = tmp_path / "document.md"
    good = "[a](other.md) [b](other.md#a-b-c-d) [c](#top) [d](https://x.org/y#z) [e](other.md#a-1)"
    document.write_text(f"# Top\n{good} `[f](code.md)`\n```\n[g](code.md)\n```\n")
    assert broken_links(document) == []
    bad = ["missing.md", "other.md#b", "#bottom", "other.md#no-heading", "other.md#a-2"]
    document.write_text("# Top\n![h](missing.png)\n" + " ".join(f"[x]({link})" for link in bad))
    assert broken_links(document) == ["missing.png", *bad]


def test_unknown_names_are_found() -> None:
    assert unknown_tools("python -m doublehead_d2.tools.doctor, `doublehead_d2.tools.docter`") == [
        "docter"
    ]
    tiny = "Shapes-Detection/double_head_rcnn_tiny.yaml"
    text = f"`configs/{tiny}`, `{tiny}`\n```\nrun output/a/config.yaml Imported/none.yaml\n```\n"
    assert missing_configs(f"{text} `configs/Base-<System>.yaml`, `config.yaml`") == [
        "Imported/none.yaml"
    ]
    text = "`tests/test_docs.py`, `doublehead_d2/model_zoo.py`, `tools/doctor.py`, `a/<system>.py`"
    assert missing_modules(f"{text} `tools/docter.py`") == ["tools/docter.py"]


def test_missing_rooms_are_found() -> None:
    tree = "tests/   x\ndoublehead_d2/  y\n  modeling/ z\n    blocks.py a\n    none.py\n  test.py b"
    text = f"# A\n## Rooms\n```\n{tree}\ntrain_net.py/ c\n```\n"
    missing = ["doublehead_d2/modeling/none.py", "doublehead_d2/test.py", "train_net.py"]
    assert missing_rooms(text, "Rooms") == missing


def test_unknown_keys_are_found() -> None:
    keys = ["MODEL.ROI_DOUBLE_HEAD.SCORE_FUSION", "TEST.DOUBLE_HEAD_MODES", "CONV_HEAD.FOLD_BN"]
    wrong = ["MODEL.ROI_DOUBLE_HEAD.FUSION", "TEST.DOUBLE_HEAD_MODE", "CONV_HEAD.FOLD"]
    text = "\n".join(f"`{key} True`" for key in keys + wrong)
    assert unknown_keys(f"{text} MODEL.NOT_IN_CODE `MODEL.<SYSTEM>` `README.md`") == wrong
    assert unknown_keys("```\npython train_net.py SOLVER.MAX_ITTER 5\n```\n") == [
        "SOLVER.MAX_ITTER"
    ]
