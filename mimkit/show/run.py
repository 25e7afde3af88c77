"""What `mimkit show` draws: a run's reconstructions, or what an encoder sees."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from mimkit import overrides
from mimkit.data.open import Data, open_data, open_source
from mimkit.errors import UserError
from mimkit.evaluate.features import sample_views
from mimkit.saved.encoder import load
from mimkit.show.features import draw_features
from mimkit.show.reconstruction import draw_reconstructions, draw_side_by_side
from mimkit.types import Encoder
from mimkit.weights.trained import trained_model

MOST = 12  # masks side by side


def draw(weights: Path, images: str | None, output: Path, count: int, given: Sequence[str] = ()) -> str:
    """Write a PNG for a run's folder or a weights file; gives a line that says what was drawn.

    images: data to draw; None: the run's own test images. A run shows reconstructions, an encoder its features.
    given: overrides of the run's mask and seed (0 else); those with several values, as `mask.ratio=0.5,0.75`, are drawn
    side by side.
    Raises UserError for missing weights, images or checkpoints, and for other overrides.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if not weights.is_dir() or not (weights / "recipe.yaml").is_file():
        encoder = load(weights)
        if given:
            raise UserError(
                f"override '{given[0]}': {weights} is an encoder without a run, so it has no mask to change"
            )
        if images is None:
            raise UserError(
                f"{weights} is an encoder without a run: name images to show, as in mimkit show {weights} ./photos"
            )
        draw_features(encoder, sample_views(_data(images, encoder), encoder, count), output)
        return f"{output}: principal components of the patch tokens of {weights}"
    masks = _combinations(given)
    # one model after another, since each may come with a large teacher
    models = (trained_model(weights, ("seed=0", *mask)) for mask in masks)
    first, newest = next(models)
    encoder = first.encoder
    if images is None:
        chosen = first.recipe.data
        data = open_data(chosen.name, chosen.options, encoder.image_size, encoder.in_chans)
    else:
        data = _data(images, encoder)
    pictures = sample_views(data, encoder, count)
    if len(masks) == 1:
        draw_reconstructions(first, pictures, output, first.recipe.seed)
    else:
        titles = ("\n".join(mask) for mask in masks)
        draw_side_by_side(zip(titles, chain([first], (model for model, _ in models)), strict=True), pictures, output)
    return f"{output}: reconstructions of {weights} at {newest}"


def _combinations(given: Sequence[str]) -> list[tuple[str, ...]]:
    """The masks that are asked for, as overrides. Raises UserError where they change more than the mask, or are many."""
    for text in given:
        key = text.partition("=")[0]
        if key not in ("mask", "seed") and not key.startswith("mask."):
            raise UserError(
                f"override '{text}': the weights are the run's, so only the mask (mask=, mask.NAME=) and seed= can change"
            )
    combinations = overrides.sweep(given)
    if len(combinations) > MOST:
        raise UserError(f"{len(combinations)} masks are more than the {MOST} that a sheet holds")
    return combinations


def _data(images: str, encoder: Encoder) -> Data:
    return Data(open_source(images, {}, encoder.image_size, encoder.in_chans), None, images)
