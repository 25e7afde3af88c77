"""The whole model of a run, from its folder alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mimkit import registry
from mimkit.draft import load_recipe
from mimkit.model import Model, build
from mimkit.recipe import Choice, Recipe
from mimkit.saved.encoder import NAME, describe, weights_file
from mimkit.saved.tokenizer import CodeEncoder
from mimkit.weight_files import fill, read_weights
from mimkit.weights import checkpoint


def trained_model(run: Path, overrides: Sequence[str] = ()) -> tuple[Model, str]:
    """The model of the newest checkpoint, on the CPU, and that checkpoint's name.

    overrides: of the run's recipe, such as a mask. Raises UserError where there is no checkpoint or it does not fit them.
    """
    newest = checkpoint.newest(run / "checkpoints")
    model = build_again(load_recipe(run / "recipe.yaml", overrides), run)
    checkpoint.load_model(newest, model)
    return model, newest.name


def build_again(recipe: Recipe, run: Path) -> Model:
    """The model of a run's recipe before its checkpoint is loaded; a tokenizer inside the encoder is the run's own, which
    lies in its hand-over, not in checkpoints. Raises UserError.
    """
    reads_codes = issubclass(registry.find("encoder", recipe.encoder.name), CodeEncoder)
    if not (reads_codes and (run / NAME).is_file()):
        return build(recipe)
    weights = weights_file(run)
    name, options, _ = describe(weights)
    model = build(replace(recipe, encoder=Choice(name, options)))
    fill(model.encoder.timm_model, read_weights(weights), str(weights), "the encoder of its JSON file")
    return model
