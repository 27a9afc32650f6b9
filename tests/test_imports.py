"""What never imports what (docs/ARCHITECTURE.md), read from the files."""

import ast
import re
from pathlib import Path

import pytest

from conftest import REPOSITORY
from doublehead_d2.config.defaults import SYSTEMS

PACKAGE = "doublehead_d2"
# The importing module, and what it must not import: patterns of whole names
RULES = {
    "modeling imports only the sources of checkpoint": (
        r"modeling\b.*",
        r"checkpoint(?!\.sources\b).*",
    ),
    "modeling imports no room that uses it": (
        r"modeling\b.*",
        r"(engine|evaluation|data|inference|benchmark|analysis|tools|model_zoo|plots|visualize)\b.*",
    ),
    "engine imports no analysis": (r"engine\b.*", r"analysis\b.*"),
    "config and data import no modeling": (r"(config|data)\b.*", r"modeling\b.*"),
    "nothing imports tools": (r"(?!tools\b).*", r"tools\b.*"),
}
FOREIGN_RULES = {
    "only plots imports matplotlib": (r"(?!plots\b).*", r"matplotlib\b.*"),
    "what detectron2's model zoo needs is gone from setuptools": (
        r".*",
        r"(pkg_resources|detectron2\.model_zoo)\b.*",
    ),
}
NAMES_OF_SYSTEMS = [system.__name__.rpartition(".")[2] for system in SYSTEMS]

Imports = dict[str, set[str]]  # by module, both without "doublehead_d2."; "" is the package itself


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str) -> set[str]:
    """All that a file imports, as dotted names; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def read_imports() -> Imports:
    root = REPOSITORY / PACKAGE
    return {
        module_of(path, root): {
            name.removeprefix(f"{PACKAGE}.")
            if re.match(rf"{PACKAGE}\.[a-z_]", name)
            else f"::{name}"
            for name in imported_names(path.read_text(encoding="utf-8"))
            if name != PACKAGE
        }
        for path in sorted(root.rglob("*.py"))
    }


def violations(imports: Imports) -> list[str]:
    """Every import that breaks a rule, as "rule: module imports name"."""
    found = []
    for module, names in imports.items():
        for name in sorted(names):
            own = not name.startswith("::")
            for rule, (importer, imported) in (RULES if own else FOREIGN_RULES).items():
                target = name.removeprefix("::")
                if re.fullmatch(importer, module) and re.fullmatch(imported, target):
                    found.append(f"{rule}: {module} imports {target}")
            if own and crosses_systems(module, name):
                found.append(f"systems never import one another: {module} imports {name}")
            if not own and re.fullmatch(rf"{PACKAGE}\.[A-Z]\w*", name.removeprefix("::")):
                found.append(f"what the package exports is for others: {module} imports {name}")
            if own and knows_a_system(module, name):
                found.append(f"shared rooms import no system: {module} imports {name}")
    return found


def system_of(name: str, systems: list[str]) -> str | None:
    return next((s for s in systems if re.match(rf"(modeling|config)\.{s}\b", name)), None)


def crosses_systems(module: str, name: str, systems: list[str] = NAMES_OF_SYSTEMS) -> bool:
    ours, theirs = system_of(module, systems), system_of(name, systems)
    return ours is not None and theirs is not None and ours != theirs


def knows_a_system(module: str, name: str) -> bool:
    """A system is registered by its room's `__init__` and asked for by name in configs alone."""
    if module in ("", "modeling", "config", "config.defaults") or system_of(
        module, NAMES_OF_SYSTEMS
    ):
        return False
    return system_of(name, NAMES_OF_SYSTEMS) is not None or bool(
        re.fullmatch(r"modeling\.\w+ROIHeads", name)
    )


def test_the_rules_hold() -> None:
    imports = read_imports()
    assert len(imports) > 60 and "modeling.double_head" in imports
    assert "modeling.output_layers" in imports["modeling.double_head"]  # it does read them
    assert violations(imports) == []


@pytest.mark.parametrize(
    ("module", "name", "rule"),
    [
        ("modeling.double_head", "checkpoint.convert", "only the sources"),
        ("modeling.blocks", "evaluation.modes", "no room that uses it"),
        ("modeling", "model_zoo", "no room that uses it"),
        ("engine.trainer", "analysis.study", "engine imports no analysis"),
        ("config.checks", "modeling", "config and data import no modeling"),
        ("data.shapes.easy", "modeling.blocks", "config and data import no modeling"),
        ("benchmark.timing", "tools.options", "nothing imports tools"),
        ("benchmark.variants", "::matplotlib.pyplot", "only plots imports matplotlib"),
        ("visualize", "::matplotlib.patches", "only plots imports matplotlib"),
        ("model_zoo", "::detectron2.model_zoo", "gone from setuptools"),
        ("evaluation.modes", "modeling.DoubleHeadROIHeads", "shared rooms import no system"),
        ("benchmark.timing", "modeling.double_head", "shared rooms import no system"),
        ("evaluation.modes", "config.double_head", "shared rooms import no system"),
        ("data.check", "::doublehead_d2.DoubleHeadROIHeads", "exports is for others"),
    ],
)
def test_a_planted_import_is_found(module: str, name: str, rule: str) -> None:
    imports = read_imports()
    imports[module] = imports[module] | {name}
    (found,) = violations(imports)
    assert rule in found and module in found and name.removeprefix("::") in found


def test_what_is_allowed_is_not_found() -> None:
    imports = {
        "modeling.double_head": {"checkpoint.sources", "checkpoint.sources.recognise", "config"},
        "plots.style": {"::matplotlib.pyplot"},
        "plots.scaling": {"::matplotlib", "benchmark.variants"},
        "tools.demo": {"tools.options", "inference"},
        "analysis.study": {"engine.trainer", "analysis.paper_tables"},
        "engine_room": {"analysis"},  # only whole names count
    }
    assert violations(imports) == []


def test_systems_are_kept_apart() -> None:
    systems = ["double_head", "tsd"]
    assert crosses_systems("modeling.tsd", "modeling.double_head.DoubleHeadROIHeads", systems)
    assert crosses_systems("modeling.double_head", "config.tsd", systems)
    assert not crosses_systems("modeling.tsd", "config.tsd", systems)
    assert not crosses_systems("modeling.tsd", "modeling.tsd_pooling", systems)


def test_imports_are_read_wherever_they_stand() -> None:
    source = "import a.b\ndef f():\n    from c import d\nif True:\n    import e as g\n"
    assert imported_names(source) == {"a.b", "c", "c.d", "e"}
