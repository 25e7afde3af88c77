"""What `mimkit show` draws: a run's reconstructions, or what an encoder sees."""

from pathlib import Path

from mimkit.data.open import Data, open_data, open_source
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.evaluate.features import sample_views
from mimkit.model import build
from mimkit.show.features import draw_features
from mimkit.show.reconstruction import draw_reconstructions
from mimkit.types import Encoder
from mimkit.weights import checkpoint
from mimkit.weights.handover import load


def draw(weights: Path, images: str | None, output: Path, count: int) -> str:
    """Write a PNG for a run's folder or a weights file; gives a line that says what was drawn.

    images: data to draw; None: the run's own test images. A run shows reconstructions, an encoder its features.
    Raises UserError for missing weights, images or checkpoints.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if not weights.is_dir() or not (weights / "recipe.yaml").is_file():
        encoder = load(weights)
        if images is None:
            raise UserError(
                f"{weights} is an encoder without a run: name images to show, as in mimkit show {weights} ./photos"
            )
        draw_features(encoder, sample_views(_data(images, encoder), encoder, count), output)
        return f"{output}: principal components of the patch tokens of {weights}"
    recipe = load_recipe(weights / "recipe.yaml")
    newest = checkpoint.newest(weights / "checkpoints")
    model = build(recipe)
    checkpoint.load_model(newest, model)
    if images is None:
        data = open_data(recipe.data.name, recipe.data.options, model.encoder.image_size, model.encoder.in_chans)
    else:
        data = _data(images, model.encoder)
    draw_reconstructions(model, sample_views(data, model.encoder, count), output)
    return f"{output}: reconstructions of {weights} at {newest.name}"


def _data(images: str, encoder: Encoder) -> Data:
    return Data(open_source(images, {}, encoder.image_size, encoder.in_chans), None, images)
