"""Parts of a model that start from one another's weights where a file has those of one alone."""

from typing import Any


def fill_missing(module: Any, state_dict: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Fill parts of which a state dict has nothing from their siblings in it.

    A part is filled where all that both have by name agrees in shape. What the state dict has is
    never overwritten.

    Args:
        module: its `siblings` name a part, and the one that stands in for it, which need not be
            built.
        state_dict: tensors or arrays by name, changed in place. Tensors of a part that the module
            does not have are moved; others are then in it under both names.
        prefix: of the module's keys.

    Returns:
        the key that each new one was filled from.
    """
    own = module.state_dict()
    filled: dict[str, str] = {}
    for part, sibling in module.siblings.items():
        if any(key.startswith(f"{prefix}{part}.") for key in state_dict):
            continue
        sources = {
            name: f"{prefix}{sibling}{name.removeprefix(part)}"
            for name in own
            if name.startswith(f"{part}.")
        }
        sources = {name: source for name, source in sources.items() if source in state_dict}
        if all(state_dict[x].shape == own[name].shape for name, x in sources.items()):
            filled |= {f"{prefix}{name}": source for name, source in sources.items()}
    state_dict.update({key: state_dict[source] for key, source in filled.items()})
    for source in filled.values():
        if source.removeprefix(prefix) not in own:
            state_dict.pop(source, None)
    return filled
