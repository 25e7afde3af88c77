"""Published weights as a hand-over, and as a run at step 0 where the file holds the head too: `mimkit import`.

The target is not needed, so no teacher is downloaded for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mimkit import registry, strict_yaml
from mimkit.disk import write_text
from mimkit.draft import load_recipe, shipped
from mimkit.errors import UserError
from mimkit.model import Model, build_encoder, build_head
from mimkit.objective import Objective
from mimkit.recipe import Recipe
from mimkit.saved.encoder import save_encoder
from mimkit.saved.tokenizer import Tokenizer
from mimkit.types import Loss, Normalizer, Target
from mimkit.weights import checkpoint
from mimkit.weights.official import Report, load_official, match
from mimkit.weights.published import Published, recognise
from mimkit.weights.tokenizer import save_tokenizer


class _Width(Target):
    """In place of a target of which only the width counts: a head's weights can be loaded, nothing is predicted."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim


def import_weights(weights: Path, method: str, out: Path, overrides: Sequence[str] = ()) -> str:
    """Write the hand-over of published weights into the folder `out`: the encoder, and a tokenizer if they are one.

    Where nothing that learns is missing, recipe and checkpoint are written too: of a run that has not made its first step.
    method: that of shipped recipes (`mae`; of several the first that fits counts), or one recipe's name or path.
    Gives a text on how to load it. Raises UserError where the weights cannot be read or fit none of the recipes, and
    where `out` cannot be written.
    """
    if any((out / name).exists() for name in ("recipe.yaml", "checkpoints")):
        raise UserError(f"-o {out} holds a run already; choose another folder")
    published = recognise(weights)
    model, report = _fitting(published, method, overrides)
    whole = _is_whole(model, report)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if whole:
            checkpoint.save(out / "checkpoints", 0, model, (), {}, keep=1)
            write_text(out / "recipe.yaml", model.recipe.to_yaml())
        save_encoder(out, model.encoder, model.recipe.encoder.name, model.recipe.encoder.options)
        save_tokenizer(out, model)
    except OSError as error:
        raise UserError(f"-o {out} cannot be written: {error.strerror}; choose another folder") from error
    text = f'{out}: load the encoder with mimkit.load("{out}")'
    if whole:
        text += f"\n{out}: mimkit show {out} IMAGES draws what the model makes of masked images"
    if isinstance(next(iter(model.objectives.values())).head, Tokenizer):
        text += f"\n{out}: its codes are a target with target=vq target.checkpoint={out}"
    return text


def _fitting(published: Published, method: str, overrides: Sequence[str]) -> tuple[Model, Report]:
    """The model of the first recipe that the weights fit, loaded, and the report. Raises UserError where they fit none."""
    problems = dict[str, str]()
    for name in _recipes(method):
        try:
            recipe = load_recipe(name, overrides)
            with torch.device("meta"):  # most do not fit, and need no weights to find out
                match(_model(recipe, published), published)
            model = _model(recipe, published)
            return model, load_official(model, published)
        except UserError as error:
            problems[name] = str(error).partition("\n")[0]
    first, problem = next(iter(problems.items()))
    if len(problems) == 1:
        raise UserError(f"recipe {first}: {problem}")
    raise UserError(
        f"none of the recipes of '{method}' fits ({', '.join(problems)}); give --as RECIPE, or options as key=value. "
        f"The first: {problem}"
    )


def _is_whole(model: Model, report: Report) -> bool:
    """Whether the file held all that a run of the recipe would train: of one objective, whose target does not learn."""
    choices = list(model.recipe.objectives.values())
    parts: dict[str, Any] = {"encoder": model.encoder, "head": next(iter(model.objectives.values())).head}
    learned = {f"{part}.{name}" for part, of in parts.items() for name, x in of.named_parameters() if x.requires_grad}
    target: Any = registry.find("target", choices[0].target.name)
    return len(choices) == 1 and not target.moving and not learned & set(report.absent)


def _recipes(method: str) -> list[str]:
    """Names of the shipped recipes of a method, the papers' first; where there are none, `method` is a recipe itself."""
    methods = {
        name: str(strict_yaml.read(path.read_text(encoding="utf-8"), name)[0]["method"])
        for name, path in shipped().items()
    }
    found = [name for name, its in methods.items() if its == method or its.startswith(f"{method}_")]
    return sorted(found, key=lambda name: not name.startswith("imagenet/")) or [method]


def _model(recipe: Recipe, published: Published) -> Model:
    """The recipe's encoder and its first objective's head, as wide as the file's prediction."""
    masking, encoder = build_encoder(recipe)
    name, choice = next(iter(recipe.objectives.items()))
    target = _Width(published.width(encoder))
    assert choice.head is not None, "the first objective has a head of its own"
    head = build_head(choice.head, encoder, masking.feed, target.dim or 1)
    return Model(encoder, masking, {name: Objective(head, target, Normalizer(), Loss(), choice.weight)}, recipe)
