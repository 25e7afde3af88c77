"""The sentence: an encoder reads a masked image, a head predicts, at the masked places, a normalised target."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mimkit import registry
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.recipe import Choice, Recipe
from mimkit.types import (
    Encoder,
    Feed,
    Head,
    Images,
    Loss,
    Mask,
    Masking,
    Normalizer,
    Output,
    Prediction,
    Target,
    Wanted,
)


class Objective(nn.Module):
    """What is predicted, and how it counts: head, target, normalizer, loss and weight."""

    def __init__(self, head: Head, target: Target, normalizer: Normalizer, loss: Loss, weight: float):
        super().__init__()
        self.head, self.target, self.normalizer, self.compare, self.weight = head, target, normalizer, loss, weight

    def wanted(self, views: Mapping[str, Images]) -> Wanted:
        """What the target gives for its view, in float32.

        Raises UserError where that view is missing.
        """
        if self.target.view not in views:
            raise UserError(f"the target reads the view '{self.target.view}', given are: {', '.join(views)}")
        with torch.inference_mode():
            wanted = self.target(views[self.target.view])
        wanted = wanted if isinstance(wanted, Wanted) else Wanted(wanted)
        ordinary = {
            name: value.clone() for name, value in vars(wanted).items() if value is not None
        }  # usable in a graph
        return replace(wanted, **ordinary)

    def forward(self, prediction: Tensor, values: Tensor) -> Tensor:
        """Loss per place of a prediction against normalised values, in float32."""
        return self.compare(prediction.float(), values)

    def normalized(self, values: Tensor) -> Tensor:
        """Target values on the scale of the loss; codes as they are."""
        return self.normalizer(values.float()) if values.is_floating_point() else values


class Model(nn.Module):
    """One encoder, one masking, one or several objectives. `recipe` is what it was built from."""

    def __init__(self, encoder: Encoder, masking: Masking, objectives: Mapping[str, Objective], recipe: Recipe):
        super().__init__()
        self.encoder, self.masking, self.recipe = encoder, masking, recipe
        self.objectives = nn.ModuleDict(objectives)
        self.layers = tuple(sorted({layer for o in objectives.values() for layer in o.head.layers}))

    def forward(
        self,
        images: Images,
        mask: Mask | None = None,
        views: Mapping[str, Images] | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Loss, prediction and target for images (B, C, H, W), uint8 or float in [0, 1].

        mask: instead of a drawn one. views: further views of the images by name. generator: draws the mask (CPU).
        """
        views = {"image": images, **(views or {})}
        with torch.no_grad():
            wanted = {name: objective.wanted(views) for name, objective in self._objectives()}
            mask = self._mask(mask, images, wanted, generator)
        features = self.encoder(images, mask, self.layers)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        shown: list[tuple[Tensor, Tensor]] = []  # prediction and target of each objective
        loss = torch.zeros((), device=images.device)
        for name, objective in self._objectives():
            values = objective.normalized(mask.select(wanted[name].values))
            layers = tuple(features.layers[self.layers.index(layer)] for layer in objective.head.layers)
            prediction = objective.head(replace(features, layers=layers), mask)
            if not isinstance(prediction, Prediction):
                prediction = Prediction(prediction)
            losses[name] = sum_losses(objective, prediction, values, wanted[name])
            losses |= {f"{name}.{term}": value for term, value in prediction.losses.items()}
            metrics |= {f"{name}.{term}": value for term, value in prediction.metrics.items()}
            loss = loss + objective.weight * losses[name] + sum(prediction.losses.values())
            shown.append((prediction.values, values))
        return Output(loss, losses, *shown[0], mask, metrics)

    def after_step(self, progress: float) -> None:
        """To be called after each optimizer step, with the share of the run that is done: moving targets move."""
        for _, objective in self._objectives():
            objective.target.after_step(self.encoder, progress)

    def restart_targets(self) -> None:
        """To be called after the encoder's weights were set from outside: copies of it begin anew."""
        for _, objective in self._objectives():
            objective.target.restart(self.encoder)

    def own_state(self) -> dict[str, Tensor]:
        """The state dict without the targets that stay as they were built: what a checkpoint must hold."""
        fixed = tuple(f"objectives.{name}.target." for name, o in self._objectives() if not o.target.moving)
        return {name: value for name, value in self.state_dict().items() if not name.startswith(fixed)}

    def _objectives(self) -> list[tuple[str, Objective]]:
        return cast(list[tuple[str, Objective]], list(self.objectives.items()))

    def _mask(
        self, mask: Mask | None, images: Images, wanted: Mapping[str, Wanted], generator: torch.Generator | None
    ) -> Mask:
        """The given mask completed by what the recipe feeds, or a drawn one, on the images' device."""
        if mask is None:
            saliency = next((w.saliency for w in wanted.values() if w.saliency is not None), None)
            mask = self.masking.draw(self.encoder.grid, len(images), generator or torch.default_generator, saliency)
        else:
            mask = mask.on_grid(self.encoder.grid, len(images))
            mask = mask.feed_visible() if mask.fed is None and self.masking.feed == "visible" else mask
        return mask.to(images.device)


def sum_losses(objective: Objective, prediction: Prediction, values: Tensor, wanted: Wanted) -> Tensor:
    """Mean over all predicted places of the batch (the class token counts as one more), summed over the predictions."""
    total = values.new_zeros((), dtype=torch.float32)
    for predicted in (prediction.values, *prediction.also):
        per_place = objective(predicted, values).flatten()
        if prediction.cls is not None and wanted.cls is not None:
            per_place = torch.cat([per_place, objective(prediction.cls, objective.normalized(wanted.cls))])
        total = total + per_place.mean()
    return total


def build(
    recipe: str | Path | Mapping[str, Any] | Recipe, *overrides: str, plugins: Sequence[str | Path] = ()
) -> Model:
    """A model from a recipe's name, path or dict, with overrides such as `"encoder.depth=6"`.

    Raises UserError for every mistake in it.
    """
    for plugin in plugins:
        registry.load_plugin(plugin)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    masking, encoder = build_encoder(recipe)
    facts = {
        "image_size": encoder.image_size,
        "in_chans": encoder.in_chans,
        "patch_size": encoder.patch_size,
        "grid": encoder.grid,
        "encoder": encoder,
    }
    objectives = {}
    for name, choice in recipe.objectives.items():
        target: Target = _make("target", choice.target, facts).requires_grad_(False).eval()
        width = target.vocab_size or target.dim
        assert width is not None, choice.target.name
        head = build_head(choice.head, encoder, masking.feed, width)
        normalizer: Normalizer = _make("normalizer", choice.normalizer, {})
        objectives[name] = Objective(head, target, normalizer, _make("loss", choice.loss, {}), choice.weight)
    return Model(encoder, masking, objectives, recipe)


def build_encoder(recipe: Recipe) -> tuple[Masking, Encoder]:
    """The masking of a recipe and its encoder, which must know what it is fed. Raises UserError."""
    masking: Masking = _make("mask", recipe.mask, {})
    return masking, _make("encoder", recipe.encoder, {"image_size": recipe.image_size, "feed": masking.feed})


def build_head(choice: Choice, encoder: Encoder, feed: Feed, width: int) -> Head:
    """A head on that encoder for a target of that width (or number of codes). Raises UserError where they do not fit."""
    facts = {
        "encoder_dim": encoder.embed_dim,
        "num_layers": encoder.num_layers,
        "grid": encoder.grid,
        "out_grid": encoder.out_grid,
        "feed": feed,
        "out_dim": width,
    }
    head: Head = _make("head", choice, facts)
    if encoder.out_grid != encoder.grid and not head.reads_coarse:
        coarse, fine = ("x".join(map(str, grid)) for grid in (encoder.out_grid, encoder.grid))
        name = type(encoder).__module__.rpartition(".")[2]
        raise UserError(
            f"head '{choice.name}' needs a token for each place, encoder '{name}' gives {coarse} for {fine}: take head=linear"
        )
    return head


def _make(role: str, choice: Choice, facts: Mapping[str, Any]) -> Any:
    return registry.build(role, choice.name, choice.options, facts)
