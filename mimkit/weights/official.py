"""Authors' weights into a model: every name on both sides is accounted for, or nothing is loaded."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isqrt
from pathlib import Path
from pkgutil import iter_modules

import torch
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.types import Encoder
from mimkit.weight_files import read_weights
from mimkit.weights.layout import Layout

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


def load_official(model: Model | Encoder, source: str | Path | Mapping[str, Tensor]) -> Report:
    """Load published weights, a file or a state dict, into a model or an encoder; prints and gives the report.

    Positions are loaded like all else, fixed ones too, so the model computes what its authors' did whichever axis comes
    first in them. Raises UserError, and loads nothing, unless all that this kind of file must bring has its place with an
    equal shape.
    """
    theirs = source if isinstance(source, Mapping) else read_weights(Path(source))
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    layout = _recognise(theirs, where)
    where = f"{where} ({layout.name})"
    encoder = model if isinstance(model, Encoder) else model.encoder
    places, origins = _places(model), layout.origins(theirs)
    tensors = {ours: _joined([theirs[name] for name in origins[ours]], where) for ours in origins if ours in places}
    matched = {name for ours in tensors for name in origins[ours]}
    report = Report(
        layout.name,
        matched=tuple(tensors),
        absent=tuple(ours for ours in places if ours not in tensors),
        left_over=tuple(name for name in theirs if name not in matched),
    )
    heads = {name for ours, names in origins.items() if ours.startswith("head.") for name in names}
    unused = heads if model is encoder else set()  # an encoder alone has no use for a head
    homeless = [name for name in report.left_over if not re.fullmatch(layout.left_over, name) and name not in unused]
    missing = [name for name in report.absent if not re.fullmatch(layout.absent, name)]
    _check_grid(encoder, tensors, where)
    if differences := _differences(places, tensors, homeless, missing):
        raise UserError(f"{where} does not fit the model; {differences}")
    with torch.no_grad():
        for ours, tensor in tensors.items():
            places[ours].copy_(tensor)
    if isinstance(model, Model):
        model.restart_targets()
    print(report)
    return report


def known_layouts() -> tuple[Layout, ...]:
    """All layouts: those of the modules in `mimkit/weights/layouts`, in alphabetical order of the modules."""
    home = import_module("mimkit.weights.layouts")
    modules = sorted(module.name for module in iter_modules(home.__path__))
    return tuple(layout for name in modules for layout in import_module(f"{home.__name__}.{name}").LAYOUTS)


def _recognise(theirs: Mapping[str, Tensor], where: str) -> Layout:
    found = next((layout for layout in known_layouts() if layout.recognises(theirs)), None)
    if found is None:
        known = "; ".join(layout.name for layout in known_layouts())
        raise UserError(f"{where}: no known layout, it holds {_some(tuple(theirs))}. Known: {known}")
    return found


def _places(model: Model | Encoder) -> dict[str, Tensor]:
    """The model's tensors by the names that layouts use."""
    parts: dict[str, nn.Module] = {"encoder": model}
    if isinstance(model, Model):
        objective = next(iter(model.objectives.values()))
        parts = {"encoder": model.encoder, "head": objective.get_submodule("head")}
    return {f"{part}.{name}": x for part in parts for name, x in parts[part].state_dict(keep_vars=True).items()}


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


def _differences(
    places: Mapping[str, Tensor], tensors: Mapping[str, Tensor], homeless: Sequence[str], missing: Sequence[str]
) -> str:
    """What keeps a file from fitting the model, or an empty string."""
    shapes = [
        f"{name} {tuple(tensor.shape)} there and {tuple(places[name].shape)} here"
        for name, tensor in tensors.items()
        if tensor.shape != places[name].shape
    ]
    told = {"of another shape": shapes, "only in the file": homeless, "only in the model": missing}
    return "; ".join(f"{what}: {_some(words)}" for what, words in told.items() if words)


def _some(words: Sequence[str]) -> str:
    """The first words and how many more there are, or "nothing"."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more or "nothing"
