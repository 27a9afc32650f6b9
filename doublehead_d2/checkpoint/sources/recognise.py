"""Tell by its keys which code base a state dict is from."""

from collections.abc import Iterable
from typing import Any

from doublehead_d2.checkpoint.sources import SOURCES
from doublehead_d2.checkpoint.sources.source import PREFIX

COMMAND = "python -m doublehead_d2.tools.convert_checkpoint IN OUT"


def find_source(keys: Iterable[Any]) -> str | None:
    """The source whose models have such keys, a name of `SOURCES`; None if there is none."""
    keys = [str(key).removeprefix("module.") for key in keys]
    theirs = [s for s in SOURCES.values() if any(key.startswith(s.mark) for key in keys)]
    # Of several systems of one code base, the one whose model it is
    exact = [s for s in theirs if any(key.startswith(s.model_mark) for key in keys)]
    return next((source.name for source in (*exact, *theirs)), None)


def refuse_foreign_keys(keys: Iterable[str]) -> None:
    """Stop where a state dict of another code base is about to be loaded as it stands.

    Raises:
        ValueError: names the source and what to use instead.
    """
    source = find_source(keys)
    if source is not None:
        published = " or ".join(f"{PREFIX}{name}" for name in SOURCES[source].published)
        raise ValueError(
            f"these weights have the keys of {SOURCES[source].title} and would load nothing; "
            f"convert them (`{COMMAND}`, or doublehead_d2.checkpoint.convert_checkpoint)"
            + (f", or name a published model: MODEL.WEIGHTS {published}" if published else "")
        )
