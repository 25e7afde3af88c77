"""What a published layout of weights is: a table that says how its names become ours, and what must be in it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How one kind of published file names its tensors. Patterns are regular expressions that match a whole name.

    Our names begin with `encoder.` (then the encoder's own, such as `timm_model.norm.weight`) or with `head.` (those of
    the first objective's head).

    name: for messages and the report.
    has, lacks: names of theirs that tell this kind of file from the others.
    rename: (pattern of theirs, ours) in order, the first that matches counts. Tensors that get the same name of ours
        are concatenated along their first axis, in the order of these rules (separate query, key and value).
    absent: pattern of ours that the file need not bring.
    left_over: pattern of theirs that may find no place in the model.
    """

    name: str
    has: frozenset[str]
    rename: tuple[tuple[str, str], ...]
    lacks: frozenset[str] = frozenset()
    absent: str = ""
    left_over: str = ""

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether a state dict with these names is of this kind."""
        return self.has <= set(names) and not self.lacks & set(names)

    def origins(self, names: Iterable[str]) -> dict[str, list[str]]:
        """{our name: their names, in the order in which they are concatenated}."""
        left, origins = list(names), dict[str, list[str]]()
        for old, new in self.rename:
            found = {name: match for name in left if (match := re.fullmatch(old, name))}
            for name, match in found.items():
                origins.setdefault(match.expand(new), []).append(name)
            left = [name for name in left if name not in found]
        return origins
