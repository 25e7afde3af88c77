"""What a published layout of weights is: a table that says how its names become ours, and what must be in it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mimkit.types import Encoder

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
Convert = Callable[[Tensor, Encoder], Tensor]


@dataclass(frozen=True)
class Layout:
    """How one kind of published file names its tensors. Patterns are regular expressions that match a whole name.

    Our names begin with `encoder.` (then the encoder's own, such as `timm_model.norm.weight`), with `head.` (those of
    the first objective's head), or with `OBJECTIVE.head.` (those of another one's).

    name: for messages and the report.
    has, lacks: names of theirs that tell this kind of file from the others.
    rename: (pattern of theirs, ours) in order, the first that matches counts; ours is a template or, as for `re.sub`, a
        function of the match. Tensors that get the same name of ours are concatenated along their first axis, in the
        order of these rules (separate query, key and value).
    convert: (pattern of ours, function of the tensor and the model's encoder) for tensors that lie otherwise than ours.
        A function leaves a tensor alone that cannot be of this model, so that its shape is told.
    absent: pattern of ours that the file need not bring.
    left_over: pattern of theirs that may find no place in the model.
    width: ours, the bias of the layer that predicts the target: its length says how wide the target is; `pixels` where
        the head paints images, so that it is a patch.
    note: what its user must know, for the report.
    shapes: whether the file's shapes are this kind's, for kinds that share their names.
    """

    name: str
    has: frozenset[str]
    rename: tuple[Rule, ...]
    lacks: frozenset[str] = frozenset()
    convert: tuple[tuple[str, Convert], ...] = ()
    absent: str = ""
    left_over: str = ""
    width: str = "head.predict.bias"
    note: str = ""
    shapes: Callable[[Mapping[str, Tensor]], bool] = lambda _: True

    def recognises(self, theirs: Mapping[str, Tensor]) -> bool:
        """Whether a state dict is of this kind."""
        return self.has <= theirs.keys() and not self.lacks & theirs.keys() and self.shapes(theirs)

    def origins(self, names: Iterable[str]) -> dict[str, list[str]]:
        """{our name: their names, in the order in which they are concatenated}."""
        left, origins = list(names), dict[str, list[str]]()
        for old, new in self.rename:
            found = {name: match for name in left if (match := re.fullmatch(old, name))}
            for name, match in found.items():
                ours = match.expand(new) if isinstance(new, str) else new(match)
                origins.setdefault(ours, []).append(name)
            left = [name for name in left if name not in found]
        return origins

    def converted(self, ours: str, tensor: Tensor, encoder: Encoder) -> Tensor:
        """The tensor that is to get the name `ours`, as it lies in our models."""
        convert = next((convert for pattern, convert in self.convert if re.fullmatch(pattern, ours)), None)
        return convert(tensor, encoder) if convert else tensor
