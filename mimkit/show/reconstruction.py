"""What a model makes of what is hidden, as a picture that says whose mean and variance it uses."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mimkit.drawing.colours import GREY, fit_components, heat, rgb, right_or_wrong, shown_channels
from mimkit.drawing.sheet import ROWS, draw_sheet
from mimkit.evaluate.reconstruction import Reconstruction, ToImages, place_pixels, reconstruct
from mimkit.model import Model
from mimkit.types import Images

Columns = dict[str, Float[Tensor, "B 3 H W"]]


def draw_reconstructions(model: Model, images: Images, path: Path, seed: int = 0) -> None:
    """Write a PNG with a row for each of the first 8 images (B, C, H, W): original, masked, what the model predicts.

    The mask is drawn from `seed`, so that pictures of one run are comparable. Grey is hidden, or not predicted: the
    prediction is shown where something is hidden or the loss counts, nowhere else, since elsewhere nothing is trained.
    Pixel targets: the prediction pasted into the visible part, and alone. If a normalizer took each patch's mean and
    variance, both are drawn with those of the visible neighbours; once more pasted with the true ones, titled so. Where
    nothing is hidden (a tokenizer): the reconstruction beside the original.
    Other continuous targets: target and prediction by the target's first three principal components, and the loss of
    each place. Codes: where the most likely code is right.
    """
    found = reconstruct(model, images[:ROWS], seed)
    columns = _shared_columns(found) | _masked_columns(found)
    if isinstance(found.objective.target, ToImages) and found.mask.hidden.any():
        columns |= _further_pixel_columns(found)
    draw_sheet(columns, _caption(model, found, f"mask: {model.recipe.mask.name}, grey is hidden"), path)


def draw_side_by_side(models: Iterable[tuple[str, Model]], images: Images, path: Path) -> None:
    """Write a PNG with a row for each of the first 8 images (B, C, H, W): original, then a block for each titled model.

    models: the same weights under other masks, each mask drawn from its recipe's seed.
    A block holds what `draw_reconstructions` shows of a mask; of pixels only the prediction pasted into the visible part.
    """
    columns: Columns = {}
    for title, model in models:
        found = reconstruct(model, images[:ROWS], model.recipe.seed)
        columns = columns or _shared_columns(found)
        columns |= {f"{title}\n{name}": tiles for name, tiles in _masked_columns(found).items()}
    draw_sheet(columns, _caption(model, found, "grey is hidden"), path)


def _shared_columns(found: Reconstruction) -> Columns:
    """What no mask changes."""
    columns = {"original": rgb(found.images)}
    if not isinstance(found.objective.target, ToImages) and found.target.is_floating_point():
        wanted = found.objective.normalized(found.target)
        colours = fit_components(wanted.flatten(0, 1))
        columns["target, first 3\nprincipal components"] = _on_pixels(colours(wanted), found)
    return columns


def _masked_columns(found: Reconstruction) -> Columns:
    """What the encoder sees, and what is predicted from it; where nothing is hidden (a tokenizer), the reconstruction."""
    if not found.mask.hidden.any() and isinstance(found.objective.target, ToImages):
        return {"reconstruction": rgb(found.pixels(found.from_truth()))}
    share = 100 * found.mask.hidden.float().mean().item()
    hidden = _on_pixels(found.mask.hidden[..., None], found)
    columns = {f"masked, {share:.0f} % hidden:\nwhat the encoder sees": torch.where(hidden, GREY, rgb(found.images))}
    if isinstance(found.objective.target, ToImages):
        values, whose = _without_leak(found)
        return columns | {f"prediction pasted\ninto the visible{whose}": _pasted(found, values)}
    return columns | (_feature_columns(found) if found.target.is_floating_point() else _code_columns(found))


def _further_pixel_columns(found: Reconstruction) -> Columns:
    """The prediction alone and, where it differs, what it would be with the truth's statistics."""
    values, whose = _without_leak(found)
    predicted = _on_pixels(found.mask.predicted[..., None], found)
    columns = {f"prediction alone{whose}": torch.where(predicted, rgb(found.pixels(values)), GREY)}
    if found.per_place:
        true = "prediction pasted\ninto the visible,\nTRUE mean/variance\nof each patch: leaks"
        columns[true] = _pasted(found, found.from_truth())
    return columns


def _without_leak(found: Reconstruction) -> tuple[Tensor, str]:
    """The prediction as pixel values, with nothing of what is hidden, and a word for titles on how."""
    if not found.per_place:
        return found.prediction, ""
    return found.from_visible(), ",\nmean/variance of the\nvisible neighbours"


def _pasted(found: Reconstruction, values: Tensor) -> Tensor:
    hidden = _on_pixels(found.mask.hidden[..., None], found)
    return torch.where(hidden, rgb(found.pixels(values)), rgb(found.images))


def _feature_columns(found: Reconstruction) -> Columns:
    objective, predicted, prediction = found.objective, found.mask.predicted, found.prediction
    wanted = objective.normalized(found.target)
    colours = fit_components(wanted.flatten(0, 1))
    loss = objective(prediction, wanted)
    if objective.compare.direction_only:  # as long as what is wanted, or the colours would tell of lengths
        prediction = F.normalize(prediction, dim=-1) * wanted.norm(dim=-1, keepdim=True)
    most = loss[predicted].max().item()
    neutral = wanted.new_full((3,), GREY)
    maps = {
        "prediction, colours\nof the target": torch.where(predicted[..., None], colours(prediction), neutral),
        f"loss of each place,\nblack 0, yellow {most:.3g}": torch.where(
            predicted[..., None], heat(loss, max(most, 1e-12)), neutral
        ),
    }
    return {title: _on_pixels(values, found) for title, values in maps.items()}


def _code_columns(found: Reconstruction) -> Columns:
    predicted = found.mask.predicted
    right = found.prediction.argmax(-1) == found.target
    share = 100 * right[predicted].float().mean().item()
    colours = torch.where(predicted[..., None], right_or_wrong(right), GREY)
    return {f"code right (blue, {share:.1f} %)\nor wrong (orange)": _on_pixels(colours, found)}


def _on_pixels(values: Tensor, found: Reconstruction) -> Tensor:
    return place_pixels(values, found.grid, found.images)


def _caption(model: Model, found: Reconstruction, mask: str) -> str:
    objective = next(iter(model.recipe.objectives.values()))
    return (
        f"{model.recipe.method} | {mask} | target: {objective.target.name}, "
        f"normalizer: {objective.normalizer.name}{shown_channels(found.images.shape[1])}"
    )
