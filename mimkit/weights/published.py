"""Published weights, read and recognised: by their names, and by ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from math import prod
from pathlib import Path
from pkgutil import iter_modules

import torch
from torch import Tensor

from mimkit.errors import UserError
from mimkit.types import Encoder
from mimkit.weight_files import read_weights
from mimkit.weights.layout import Layout

WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile write before every name
SHOWN = 3  # names of a kind that a message or the report spells out


@dataclass(frozen=True)
class Published:
    """Published weights whose kind is known.

    theirs: by their names. where: names the file and its kind in messages.
    """

    layout: Layout
    theirs: Mapping[str, Tensor]
    where: str

    @cached_property
    def origins(self) -> dict[str, list[str]]:
        """{our name: their names}."""
        return self.layout.origins(self.theirs)

    def tensors(self, encoder: Encoder) -> dict[str, Tensor]:
        """By our names, as they lie in models with such an encoder. Raises UserError for parts that cannot be joined."""
        joined = {
            ours: _joined([self.theirs[name] for name in names], self.where) for ours, names in self.origins.items()
        }
        return {ours: self.layout.converted(ours, tensor, encoder) for ours, tensor in joined.items()}

    def width(self, encoder: Encoder) -> int:
        """How wide a target it predicts in models with such an encoder; 1 where it has no prediction layer."""
        if self.layout.width == "pixels":
            return encoder.patch_size**2 * encoder.in_chans
        predicted = self.tensors(encoder).get(self.layout.width)
        if predicted is None:
            return 1
        places = prod(encoder.grid) // prod(encoder.out_grid)  # of one token
        return max(1, predicted.numel() // places)


def recognise(source: str | Path | Mapping[str, Tensor]) -> Published:
    """The weights of a file or state dict. Raises UserError where it cannot be read or is of no known kind."""
    theirs = source if isinstance(source, Mapping) else read_weights(Path(source))
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in theirs):
            theirs = {name.removeprefix(wrapper): tensor for name, tensor in theirs.items()}
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    layout = next((layout for layout in known_layouts() if layout.recognises(theirs)), None)
    if layout is None:
        known = "; ".join(dict.fromkeys(layout.name.partition(",")[0] for layout in known_layouts()))
        raise UserError(f"{where}: no known layout, it holds {some(tuple(theirs))}. Known: {known}")
    return Published(layout, theirs, f"{where} ({layout.name})")


def known_layouts() -> tuple[Layout, ...]:
    """All layouts: those of the modules in `mimkit/weights/layouts`, in alphabetical order of the modules."""
    home = import_module("mimkit.weights.layouts")
    modules = sorted(module.name for module in iter_modules(home.__path__) if not module.name.startswith("_"))
    return tuple(layout for name in modules for layout in import_module(f"{home.__name__}.{name}").LAYOUTS)


def some(words: Sequence[str]) -> str:
    """The first words and how many more there are, or "nothing"."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more or "nothing"


def _joined(tensors: Sequence[Tensor], where: str) -> Tensor:
    """One tensor as it is, several along their first axis."""
    if len(tensors) == 1:
        return tensors[0]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len({shape[1:] for shape in shapes}) > 1 or () in shapes:
        raise UserError(
            f"{where}: tensors of shapes {', '.join(map(str, shapes))} do not fit together; the file is damaged"
        )
    return torch.cat(list(tensors))
