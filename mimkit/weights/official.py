"""Authors' weights into a model: every name on both sides is accounted for, or nothing is loaded."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isqrt
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.types import Encoder
from mimkit.weight_files import read_weights
from mimkit.weights.layout import Layout

WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile write before every name
SHOWN = 3  # names of a kind that a message or the report spells out


@dataclass(frozen=True)
class Report:
    """What became of every tensor.

    layout: the kind of file that was recognised.
    matched, absent: names in the model. left_over: names in the file.
    """

    layout: str
    matched: tuple[str, ...]
    absent: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.layout}: {len(self.matched)} tensors of the model matched\n"
            f"absent in the file:   {_some(self.absent)}\n"
            f"left over in the file: {_some(self.left_over)}"
        )


@dataclass(frozen=True)
class Published:
    """Published weights whose kind is known.

    theirs: by their names. where: names the file and its kind in messages.
    """

    layout: Layout
    theirs: Mapping[str, Tensor]
    where: str

    def tensors(self, encoder: Encoder) -> dict[str, Tensor]:
        """By our names, as they lie in models with such an encoder. Raises UserError for parts that cannot be joined."""
        origins = self.layout.origins(self.theirs)
        joined = {ours: _joined([self.theirs[name] for name in names], self.where) for ours, names in origins.items()}
        return {ours: self.layout.converted(ours, tensor, encoder) for ours, tensor in joined.items()}


def load_official(model: Model | Encoder, source: str | Path | Mapping[str, Tensor]) -> Report:
    """Load published weights, a file or a state dict, into a model or an encoder; prints and gives the report.

    Positions are loaded like all else, fixed ones too, so the model computes what its authors' did whichever axis comes
    first in them. Raises UserError, and loads nothing, unless all that this kind of file must bring has its place with an
    equal shape.
    """
    published = recognise(source)
    if isinstance(model, Encoder):
        report = fill(published, model, None)
    else:
        head = next(iter(model.objectives.values())).get_submodule("head")
        report = fill(published, model.encoder, head)
        model.restart_targets()
    print(report)
    return report


def recognise(source: str | Path | Mapping[str, Tensor]) -> Published:
    """The weights of a file or state dict. Raises UserError where it cannot be read or is of no known kind."""
    theirs = source if isinstance(source, Mapping) else read_weights(Path(source))
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in theirs):
            theirs = {name.removeprefix(wrapper): tensor for name, tensor in theirs.items()}
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    layout = next((layout for layout in known_layouts() if layout.recognises(theirs)), None)
    if layout is None:
        known = "; ".join(layout.name for layout in known_layouts())
        raise UserError(f"{where}: no known layout, it holds {_some(tuple(theirs))}. Known: {known}")
    return Published(layout, theirs, f"{where} ({layout.name})")


def fill(published: Published, encoder: Encoder, head: nn.Module | None) -> Report:
    """Load published weights into an encoder and, unless it is None, a head. Raises UserError, and loads nothing, where
    they do not fit.
    """
    layout, where = published.layout, published.where
    parts = {"encoder": encoder, **({} if head is None else {"head": head})}
    places = {f"{part}.{name}": x for part in parts for name, x in parts[part].state_dict().items()}
    tensors = {ours: tensor for ours, tensor in published.tensors(encoder).items() if ours in places}
    origins = layout.origins(published.theirs)
    matched = {name for ours in tensors for name in origins[ours]}
    report = Report(
        layout.name,
        matched=tuple(tensors),
        absent=tuple(ours for ours in places if ours not in tensors),
        left_over=tuple(name for name in published.theirs if name not in matched),
    )
    ours_of = {name: ours for ours, names in origins.items() for name in names}
    homeless = [
        name
        for name in report.left_over
        if not re.fullmatch(layout.left_over, name)
        and (head is not None or not ours_of.get(name, name).startswith("head."))  # an encoder alone needs no head
    ]
    missing = [name for name in report.absent if not re.fullmatch(layout.absent, name)]
    _check_grid(encoder, tensors, where)
    _check_windows(encoder, tensors, where)
    reshaped = [name for name, tensor in tensors.items() if tensor.shape != places[name].shape]
    if trouble := [*reshaped, *missing, *(ours_of.get(name, name) for name in homeless)]:
        what = "the model" if any(not name.startswith("head.") for name in trouble) else _head_name(head)
        told = {"of another shape": [_shapes(name, tensors, places) for name in reshaped]}
        told |= {"only in the file": homeless, "only in the model": missing}
        listed = "; ".join(f"{kind}: {_some(words)}" for kind, words in told.items() if words)
        raise UserError(f"{where} does not fit {what}; {listed}")
    for part, module in parts.items():
        own = {ours.removeprefix(f"{part}."): x for ours, x in tensors.items() if ours.startswith(f"{part}.")}
        module.load_state_dict(own, strict=False)
    return report


def known_layouts() -> tuple[Layout, ...]:
    """All layouts: those of the modules in `mimkit/weights/layouts`, in alphabetical order of the modules."""
    home = import_module("mimkit.weights.layouts")
    modules = sorted(module.name for module in iter_modules(home.__path__) if not module.name.startswith("_"))
    return tuple(layout for name in modules for layout in import_module(f"{home.__name__}.{name}").LAYOUTS)


def _check_grid(encoder: Encoder, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError where a file's positions are of another number of places than the encoder's grid.

    tensors: by our names, of an encoder that drives a timm ViT.
    """
    positions = tensors.get("encoder.timm_model.pos_embed")
    patches = tensors.get("encoder.timm_model.patch_embed.proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return  # the names and shapes are told by other checks
    places = positions.shape[1] - ("encoder.timm_model.cls_token" in tensors)
    height, width = encoder.grid
    if places == height * width:
        return
    side, patch_size = isqrt(places), patches.shape[-1]
    fits = f"image_size={side * patch_size} with encoder.patch_size={patch_size} would fit"
    if side * side != places:
        fits = f"an image_size of {places} patches of {patch_size}x{patch_size} pixels would fit"
    raise UserError(f"{where}: its positions are of {places} places, the encoder's grid is {height}x{width}; {fits}")


def _check_windows(encoder: Encoder, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError where a file's relative positions are of another window than the encoder's.

    tensors: by our names, all of them names of the model.
    """
    for name, table in tensors.items():
        path, _, last = name.removeprefix("encoder.").rpartition(".")
        if last != "relative_position_bias_table" or table.ndim != 2:
            continue
        module: Any = encoder.get_submodule(path)
        height, width = module.window_size
        rows = len(module.relative_position_bias_table)
        if len(table) == rows:
            continue
        of_class = rows - (2 * height - 1) * (2 * width - 1)
        side = (isqrt(max(0, len(table) - of_class)) + 1) // 2
        fits = "take the image_size and encoder.window_size of the file"
        if (height, width) == encoder.grid:
            fits = f"image_size={side * encoder.patch_size} would fit"
        raise UserError(
            f"{where}: its relative positions are of a window of {side}x{side} places, here it is {height}x{width}; {fits}"
        )


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


def _shapes(name: str, there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(there[name].shape)} there and {tuple(here[name].shape)} here"


def _head_name(head: nn.Module | None) -> str:
    return f"the model's head '{type(head).__module__.rpartition('.')[2]}'"


def _some(words: Sequence[str]) -> str:
    """The first words and how many more there are, or "nothing"."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more or "nothing"
