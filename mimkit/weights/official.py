"""Authors' weights into a model: every name on both sides is accounted for, or nothing is loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.types import Encoder
from mimkit.weights.published import Published, recognise, some


@dataclass(frozen=True)
class Report:
    """What became of every tensor.

    layout: the kind of file that was recognised.
    matched, absent: names in the model. left_over: names in the file. note: what else must be known.
    """

    layout: str
    matched: tuple[str, ...]
    absent: tuple[str, ...]
    left_over: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.layout}: {len(self.matched)} tensors of the model matched\n"
            f"absent in the file:   {some(self.absent)}\n"
            f"left over in the file: {some(self.left_over)}" + (f"\nnote: {self.note}" if self.note else "")
        )


def load_official(model: Model | Encoder, source: str | Path | Mapping[str, Tensor] | Published) -> Report:
    """Load published weights, a file or a state dict, into a model or an encoder; prints and gives the report.

    Positions are loaded like all else, fixed ones too, so the model computes what its authors' did whichever axis comes
    first in them. Raises UserError, and loads nothing, unless all that this kind of file must bring has its place with an
    equal shape.
    """
    published = source if isinstance(source, Published) else recognise(source)
    report, tensors = match(model, published)
    for part, module in _parts(model).items():
        own = {ours.removeprefix(f"{part}."): x for ours, x in tensors.items() if ours.startswith(f"{part}.")}
        module.load_state_dict(own, strict=False)
    if isinstance(model, Model):
        model.restart_targets()
    print(report)
    return report


def match(model: Model | Encoder, published: Published) -> tuple[Report, dict[str, Tensor]]:
    """What would become of every tensor, and the file's tensors by our names; the model, which may be on meta, stays.

    Raises UserError where the file does not fit the model.
    """
    encoder, parts = model if isinstance(model, Encoder) else model.encoder, _parts(model)
    places = {f"{part}.{name}": x for part in parts for name, x in parts[part].state_dict().items()}
    tensors = {ours: tensor for ours, tensor in published.tensors(encoder).items() if ours in places}
    matched = {name for ours in tensors for name in published.origins[ours]}
    report = Report(
        published.layout.name,
        matched=tuple(tensors),
        absent=tuple(ours for ours in places if ours not in tensors),
        left_over=tuple(name for name in published.theirs if name not in matched),
        note=published.layout.note,
    )
    _check_grid(encoder, tensors, published.where)
    _check_windows(encoder, tensors, published.where)
    _check_names_and_shapes(published, report, tensors, places, parts)
    return report, tensors


def _parts(model: Model | Encoder) -> dict[str, nn.Module]:
    """What layouts name: the encoder, the first objective's head as `head`, and that of each other as `OBJECTIVE.head`."""
    if isinstance(model, Encoder):
        return {"encoder": model}
    heads = {f"{name}.head": one.head for name, one in model.objectives.items() if isinstance(one.head, nn.Module)}
    first = next(iter(heads))
    return {"encoder": model.encoder, "head": heads.pop(first), **heads}


def _check_names_and_shapes(
    published: Published,
    report: Report,
    tensors: Mapping[str, Tensor],
    places: Mapping[str, Tensor],
    parts: Mapping[str, nn.Module],
) -> None:
    """Raise UserError where a shape differs or a name that counts has no counterpart.

    tensors: the file's by our names; places: the model's. parts: of the model; an encoder alone has no use for heads and
    for what it masks with, and a model none for the heads of objectives that it has not.
    """
    layout = published.layout
    ours_of = {name: ours for ours, names in published.origins.items() for name in names}
    head = parts.get("head")
    unused = {name for name, ours in ours_of.items() if not ours.startswith(tuple(f"{part}." for part in parts))}
    homeless = [name for name in report.left_over if not re.fullmatch(layout.left_over, name) and name not in unused]
    absent = layout.absent if head is not None else rf"{layout.absent}|encoder\.(?!timm_model\.).+"
    missing = [name for name in report.absent if not re.fullmatch(absent, name)]
    reshaped = [name for name, tensor in tensors.items() if tensor.shape != places[name].shape]
    trouble = [*reshaped, *missing, *(ours_of.get(name, name) for name in homeless)]
    if not trouble:
        return
    what = "the model"
    if all(name.startswith("head.") for name in trouble):
        what += f"'s head '{type(head).__module__.rpartition('.')[2]}'"
    told = {
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} there and {tuple(places[name].shape)} here" for name in reshaped
        ],
        "only in the file": homeless,
        "only in the model": missing,
    }
    differences = "; ".join(f"{kind}: {some(words)}" for kind, words in told.items() if words)
    raise UserError(f"{published.where} does not fit {what}; {differences}")


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
