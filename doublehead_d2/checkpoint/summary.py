"""What of a model came from a file, for people."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

# Files with norms folded into weights and biases have none of these, and need none.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SHOWN = 6  # names in a line


class Loaded(NamedTuple):
    """A model after loading a file into it; tensors are meant by their names."""

    path: str
    model_keys: Sequence[str]
    loaded: Sequence[str]  # those of the model that the file has filled
    unused: Sequence[str]  # what else was in the file
    origins: Mapping[str, str]  # the name in the file, where it is another
    # what the file has in another shape: name, its shape there and in the model
    other_shapes: Sequence[tuple[str, Sequence[int], Sequence[int]]] = ()
    anew: Collection[str] = ()  # layers that the file was not to fill

    def text(self) -> str:
        """A line for each part of the model: how many of its tensors came from the file."""
        total, found = Counter(map(_part, self.model_keys)), Counter(map(_part, self.loaded))
        lines = [f"Loaded from {self.path}:"]
        for part, count in total.items():
            rest = "" if found[part] == count else ", the rest as initialised"
            sources = {
                _part(self.origins[key]): None
                for key in self.loaded
                if key in self.origins and _part(key) == part
            }
            rest = f", from {', '.join(sources)}{rest}" if sources else rest
            lines.append(f"  {part}: {found[part] or 'none'} of {count} tensors{rest}")
        # The first tensor of a layer speaks for the others.
        layers = {_layer(key): shapes for key, *shapes in reversed(self.other_shapes)}
        if layers:
            others = [
                f"{name} ({_times(theirs)}, here {_times(ours)})"
                for name, (theirs, ours) in reversed(layers.items())
            ]
            lines.append(f"  of another shape, as initialised: {_some(others)}")
        if self.anew:
            lines.append(f"  anew by MODEL.NEW_PREDICTORS: {_some(sorted(self.anew))}")
        if self.unused:
            parts = Counter(map(_part, self.unused))
            lines.append("  not used: " + ", ".join(f"{part} ({n})" for part, n in parts.items()))
        return "\n".join(lines)

    def half_filled(self, by_class: Collection[str], idle: Collection[str]) -> list[str]:
        """A sentence for each part that the file fills in part and should fill as a whole.

        Of a model with another number of classes, or with new predictors, the layers with outputs
        for each class are no surprise.

        Args:
            by_class: those layers.
            idle: norms of which it is said elsewhere that they have nothing.
        """
        scores = [layer for layer in by_class if layer.endswith(".cls_score")]
        other_classes = any(
            _layer(key) in scores and theirs[0] != ours[0]
            for key, theirs, ours in self.other_shapes
        )
        expected = {*idle, *(by_class if other_classes or self.anew else ())}
        filled, found = set(self.loaded), Counter(map(_part, self.loaded))
        missing: dict[str, list[str]] = {}
        for key in self.model_keys:
            folded = key.endswith(STATISTICS) and f"{_layer(key)}.weight" in filled
            if key not in filled and not folded and _layer(key) not in expected:
                missing.setdefault(_part(key), []).append(key)
        return [
            f"'{self.path}' fills {part} by half: {found[part]} of its tensors are from there "
            f"({_names(part, [key for key in self.loaded if _part(key) == part])}), and "
            f"{len(keys)} as initialised ({_names(part, keys)}). Either may not suit the other: "
            "see whether the settings of this part are those of the weights."
            for part, keys in missing.items()
            if found[part]
        ]


def _names(part: str, keys: Sequence[str]) -> str:
    return _some([key.removeprefix(f"{part}.") for key in keys])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _part(key: str) -> str:
    """The part of a detector that a tensor belongs to."""
    names = key.split(".")
    if names[0] == "backbone" and len(names) > 1 and names[1].startswith("fpn_"):
        return "backbone.fpn"
    return ".".join(names[:2]) if len(names) > 2 else names[0]
