"""What a model makes of what is hidden, as a picture that says whose mean and variance it uses."""

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
    columns: Columns = {"original": rgb(found.images)}
    hidden = _on_pixels(found.mask.hidden[..., None], found)
    if found.mask.hidden.any():
        columns["masked: what\nthe encoder sees"] = torch.where(hidden, GREY, columns["original"])
    if isinstance(found.objective.target, ToImages):
        columns |= _pixel_columns(found, columns["original"], hidden)
    elif found.target.is_floating_point():
        columns |= _feature_columns(found)
    else:
        columns |= _code_columns(found)
    draw_sheet(columns, _caption(model, found), path)


def _pixel_columns(found: Reconstruction, original: Tensor, hidden: Tensor) -> Columns:
    predicted = _on_pixels(found.mask.predicted[..., None], found)

    def pasted(values: Tensor, whose: str) -> Columns:
        return {f"prediction pasted\ninto the visible{whose}": torch.where(hidden, rgb(found.pixels(values)), original)}

    def alone(values: Tensor, whose: str) -> Columns:
        return {f"prediction alone{whose}": torch.where(predicted, rgb(found.pixels(values)), GREY)}

    if not found.mask.hidden.any():
        return {"reconstruction": rgb(found.pixels(found.from_truth()))}
    if not found.per_place:
        return pasted(found.prediction, "") | alone(found.prediction, "")
    visible, neighbours = found.from_visible(), ",\nmean/variance of the\nvisible neighbours"
    leak = pasted(found.from_truth(), ",\nTRUE mean/variance\nof each patch: leaks")
    return pasted(visible, neighbours) | alone(visible, neighbours) | leak


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
        "target, first 3\nprincipal components": colours(wanted),
        "prediction,\nsame colours": torch.where(predicted[..., None], colours(prediction), neutral),
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


def _caption(model: Model, found: Reconstruction) -> str:
    recipe = model.recipe
    objective = next(iter(recipe.objectives.values()))
    hidden = 100 * found.mask.hidden.float().mean().item()
    return (
        f"{recipe.method} | mask: {recipe.mask.name}, {hidden:.0f} % hidden (grey) | target: {objective.target.name}, "
        f"normalizer: {objective.normalizer.name}{shown_channels(found.images.shape[1])}"
    )
