"""How long each recipe is trained: as many images, seconds or operations as every other."""

from dataclasses import replace
from math import ceil

from mimkit.recipe import Recipe
from mimkit.settings import ProbeSettings
from mimkit.train.optim import schedule

POINTS = 100  # of a loss curve
PROBED = 2  # times that the encoder is probed on the way, besides untrained


def batch_of(recipe: Recipe, images: int) -> int:
    """Images that a step takes where there are `images` to train on."""
    return min(recipe.batches.batch_size, images)


def own_steps(recipe: Recipe, images: int) -> int:
    """Steps that the recipe itself asks for."""
    batch = batch_of(recipe, images)
    return schedule(recipe.optim, recipe.train, batch, images // batch).total_steps


def of_length(recipe: Recipe, images: int, steps: int, seed: int) -> Recipe:
    """The recipe with so many steps, its schedule stretched alike; logged, probed and drawn as seldom as every other."""
    per_epoch = images // batch_of(recipe, images)
    stretch = steps / own_steps(recipe, images)
    train = replace(
        recipe.train,
        epochs=None,
        max_steps=steps,
        warmup_epochs=recipe.train.warmup_epochs * stretch,
        log_every=max(1, min(recipe.train.log_every, steps // POINTS)),
        pictures_every=steps / per_epoch,
    )
    optim = replace(recipe.optim, drop_epochs=tuple(epoch * stretch for epoch in recipe.optim.drop_epochs))
    probe = replace(recipe.probe, every=ceil(steps / PROBED) / per_epoch)
    return replace(recipe, train=train, optim=optim, probe=probe, seed=seed)


def timed(recipe: Recipe) -> Recipe:
    """A run of a few steps that tells the recipe's speed."""
    train = replace(recipe.train, epochs=None, max_steps=30, log_every=3, pictures_every=1e9, checkpoint_every=1e9)
    return replace(recipe, train=train, probe=ProbeSettings(every=0))
