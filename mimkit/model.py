"""The sentence: an encoder reads a masked image, a head predicts, at the masked places, a normalised target."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit import registry
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.objective import Objective, adaptive_factor
from mimkit.recipe import Choice, Recipe
from mimkit.types import (
    Encoder,
    Features,
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
    Views,
    Wanted,
    as_float,
)


class Model(nn.Module):
    """One encoder, one masking, one or several objectives. `recipe` is what it was built from."""

    def __init__(self, encoder: Encoder, masking: Masking, objectives: Mapping[str, Objective], recipe: Recipe):
        super().__init__()
        self.encoder, self.masking, self.recipe = encoder, masking, recipe
        self.objectives = nn.ModuleDict(objectives)
        heads = [objective.head for objective in objectives.values() if objective.head is not None]
        self.layers = tuple(sorted({layer for head in heads for layer in head.layers}))
        self.restart_targets()

    def forward(
        self,
        images: Images,
        mask: Mask | None = None,
        views: Views | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Loss, prediction and target for images (B, C, H, W), uint8 or float in [0, 1].

        mask: instead of a drawn one. views: further views of the images by name; those of the recipe that are not given
        are the images themselves at the views' sizes. generator: draws the mask (CPU).
        """
        mask, made, wanted = self.predict(self.views(images, views), mask, generator)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        shown: list[tuple[Tensor | None, Tensor | None]] = []  # prediction and target of each objective
        for name, objective in self._objectives():
            losses[name], values = objective.score(made[name], wanted[name], mask)
            losses |= {f"{name}.{term}": value for term, value in made[name].losses.items()}
            metrics |= {f"{name}.{term}": value for term, value in made[name].metrics.items()}
            shown.append((made[name].values, values))
        total, factors = self._total(losses)
        return Output(total, losses, *shown[0], mask, metrics | factors)

    def predict(
        self, views: Views, mask: Mask | None = None, generator: torch.Generator | None = None
    ) -> tuple[Mask, dict[str, Prediction], dict[str, Wanted]]:
        """The mask, and what each objective predicts and wants, before anything is compared; all views are given."""
        objectives = self._objectives()
        with torch.no_grad():
            wanted = {name: each.wanted(views) for name, each in objectives if each.target.reads == "image"}
            mask = self._mask(mask, views["image"], wanted, generator)
            wanted |= {name: each.wanted(views, mask) for name, each in objectives if each.target.reads == "mask"}
        features = self._encode(views["image"], mask, wanted)
        made: dict[str, Prediction] = {}
        for name, objective in objectives:
            made[name] = objective.predict(self._of_layers(features, objective.head), mask, made)
            if objective.target.reads == "prediction":
                wanted[name] = objective.target(made[name])
        return mask, made, wanted

    def views(self, images: Images, given: Views | None = None) -> Views:
        """The images, the given views, and what stands for those of the recipe that are not given (in pictures, say)."""
        found = {"image": images, **(given or {})}
        for name, view in (self.recipe.batches.views or {}).items():
            if name in found:
                continue
            size = view.size(self.encoder.image_size)
            found[name] = images
            if size != images.shape[2:]:
                found[name] = F.interpolate(as_float(images), size, mode="bicubic", antialias=True).clamp(0, 1)
        return found

    def before_step(self, progress: float) -> None:
        """To be called between the backward pass and the optimizer step: targets that lag one step move."""
        for _, objective in self._objectives():
            objective.target.before_step(self.encoder, self.head_of(objective), progress)

    def after_step(self, progress: float) -> None:
        """To be called after each optimizer step, with the share of the run that is done: moving targets move."""
        for _, objective in self._objectives():
            objective.target.after_step(self.encoder, self.head_of(objective), progress)

    def restart_targets(self) -> None:
        """To be called after the weights were set from outside: copies of them begin anew."""
        for _, objective in self._objectives():
            objective.target.restart(self.encoder, self.head_of(objective))
            objective.target.requires_grad_(False).eval()

    def own_state(self) -> dict[str, Tensor]:
        """The state dict without what stays as it was built (frozen targets, …): what a checkpoint must hold."""
        fixed = tuple(f"{name}." for name, module in self.named_modules() if getattr(module, "moving", True) is False)
        return {name: value for name, value in self.state_dict().items() if not name.startswith(fixed)}

    def head_of(self, objective: Objective) -> Head:
        """The head whose prediction counts in an objective."""
        if objective.head is not None:
            return objective.head
        return self.head_of(cast(Objective, self.objectives[str(objective.prediction).partition(".")[0]]))

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

    def _encode(self, images: Images, mask: Mask, wanted: Mapping[str, Wanted]) -> Features:
        """Features of the masked images; an encoder that reads codes is given those that a target has found by its tokenizer."""
        if not self.encoder.reads_codes:
            return self.encoder(images, mask, self.layers)
        found = (wanted[name].values for name, objective in self._objectives() if objective.target.encoder_codes)
        return self.encoder(images, mask, self.layers, codes=next(found, None))

    def _of_layers(self, features: Features, head: Head | None) -> Features:
        """The features with those layers that the head has asked for."""
        asked = () if head is None else head.layers
        return replace(features, layers=tuple(features.layers[self.layers.index(layer)] for layer in asked))

    def _total(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum; the heads' own terms count as they are, adaptive weights are found last and told."""
        objectives = dict(self._objectives())
        plain = [
            objectives[name].weight * x if name in objectives else x
            for name, x in losses.items()
            if name not in objectives or not objectives[name].adaptive
        ]
        total = others = torch.stack(plain).sum()
        factors: dict[str, Tensor] = {}
        for name, objective in objectives.items():
            if objective.adaptive:
                factor = adaptive_factor(others, losses[name], self.head_of(objective).last_weight)
                total = total + objective.weight * factor * losses[name]
                factors[f"{name}.factor"] = factor
        return total, factors


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
        "repeats": recipe.batches.repeats,
    }
    objectives = {}
    for name, choice in recipe.objectives.items():
        target: Target = _make("target", choice.target, facts).requires_grad_(False).eval()
        width = target.vocab_size or target.dim
        assert width is not None, choice.target.name
        head = None if choice.head is None else build_head(choice.head, encoder, masking.feed, width)
        normalizer: Normalizer = _make("normalizer", choice.normalizer, {})
        loss: Loss = _make("loss", choice.loss, {**facts, "target": target})
        if isinstance(loss, nn.Module):
            loss.requires_grad_(False)  # frozen, or trained in steps of its own
        objectives[name] = Objective(head, target, normalizer, loss, choice.weight, choice.adaptive, choice.prediction)
    model = Model(encoder, masking, objectives, recipe)
    for name, objective in objectives.items():
        head = model.head_of(objective)
        if objective.adaptive and all(one.adaptive for one in objectives.values() if model.head_of(one) is head):
            raise UserError(
                f"objective '{name}' is adaptive, so its head needs an objective with a fixed weight beside it"
            )
    return model


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
        "patch_size": encoder.patch_size,
        "in_chans": encoder.in_chans,
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
