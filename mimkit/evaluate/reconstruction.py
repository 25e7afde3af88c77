"""How well a model reconstructs what is hidden: its predictions back on the grid, and their error against a baseline.

A normalizer such as MAE's per-patch mean and variance takes from each patch what the model need not predict. To see
pixels again, somebody must give it back: the true patch (which leaks what is hidden) or the visible neighbours.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.normalizers import none
from mimkit.objective import Objective
from mimkit.types import Images, Mask, Size, as_float


@runtime_checkable
class ToImages(Protocol):
    """A target whose values are pixels: it can turn them back into images in [0, 1] units."""

    def to_images(self, values: Float[Tensor, "B L D"], grid: Size) -> Float[Tensor, "B C H W"]:
        """Values of all places as images (not clamped)."""


@dataclass(frozen=True)
class Reconstruction:
    """What a model's first objective predicts, put back on the grid; on the model's device, in float32.

    images: (B, C, H, W) in [0, 1].
    mask: what was hidden; `mask.predicted` is where `prediction` holds: the hidden places and where the loss counts.
    prediction: (B, L, D) as the head gives it, on the scale of the loss (or logits); 0 where nothing was predicted.
    target: (B, L, D) before normalisation, or codes (B, L).
    objective: the first one of the model.
    """

    images: Float[Tensor, "B C H W"]
    mask: Mask
    prediction: Float[Tensor, "B L D"]
    target: Float[Tensor, "B L D"] | Int[Tensor, "B L"]
    objective: Objective

    @property
    def grid(self) -> Size:
        """Rows and columns of the places."""
        assert self.mask.grid is not None
        return self.mask.grid

    @property
    def per_place(self) -> bool:
        """Whether the normalizer took something from each place that the prediction lacks."""
        return not isinstance(self.objective.normalizer, none)

    def from_truth(self) -> Float[Tensor, "B L D"]:
        """The prediction on the target's scale, with the statistics of each true place: they leak what is hidden."""
        return self.objective.normalizer.invert(self.prediction, like=self.target)

    def from_visible(self) -> Float[Tensor, "B L D"]:
        """The prediction on the target's scale, with mean and standard deviation of the nearest visible places.

        Normalizers are affine in the values: their shift and scale are read off at the visible places and spread.
        """
        shift = self.objective.normalizer.invert(torch.zeros_like(self.target), like=self.target)
        scale = self.objective.normalizer.invert(torch.ones_like(self.target), like=self.target) - shift
        shift, scale = (spread(values, ~self.mask.hidden, self.grid) for values in (shift, scale))
        return self.prediction * scale + shift

    def neighbours(self) -> Float[Tensor, "B C H W"]:
        """The baseline, as images: each hidden place has the mean colour of its nearest visible ones."""
        h, w = self.grid
        patches = rearrange(self.images, "b c (h p) (w q) -> b (h w) (p q) c", h=h, w=w)
        return place_pixels(spread(patches.mean(2), ~self.mask.hidden, self.grid), self.grid, self.images)

    def pixels(self, values: Float[Tensor, "B L D"]) -> Float[Tensor, "B C H W"]:
        """Values on the scale of a pixel target as images, clamped to [0, 1]."""
        assert isinstance(self.objective.target, ToImages)
        return self.objective.target.to_images(values, self.grid).clamp(0, 1)


@torch.no_grad()
def reconstruct(model: Model, images: Images, seed: int = 0) -> Reconstruction:
    """What `model` predicts for images (B, C, H, W), in eval mode.

    The mask is drawn from `seed`, so that it is the same for every state of a model. The head predicts at every
    hidden place, also at those where the loss does not count (CrossMAE).
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        images = images.to(device)
        drawn = model(images, generator=torch.Generator().manual_seed(seed)).mask
        mask = Mask.from_hidden(drawn.hidden, drawn.hidden | drawn.predicted, drawn.fed, drawn.grid)
        predicted = model(images, mask=mask).prediction
        objective: Objective = next(iter(model.objectives.values()))  # type: ignore[assignment]
        target = objective.wanted(model.views(images)).values
    finally:
        model.train(training)
    assert predicted is not None and target is not None, "the first objective predicts places"
    prediction = predicted.new_zeros(*mask.hidden.shape, predicted.shape[-1], dtype=torch.float32)
    prediction[mask.predicted] = predicted.float().flatten(0, -2)
    target = target.float() if target.is_floating_point() else target
    mask = replace(mask, grid=model.encoder.grid)
    return Reconstruction(as_float(images), mask, prediction, target, objective)


def reconstruction_scores(model: Model, images: Images, seed: int = 0) -> dict[str, float]:
    """How well the hidden places of images (B, C, H, W) are predicted, all images as one batch; only for pixel targets.

    Where nothing is hidden, the whole images are scored: mse, and psnr: mean over the images of 10 log10(1 / mse), in dB.

    mse: mean squared error over the pixels of all hidden places, images in [0, 1] (predictions are clamped to it);
        where the normalizer took each patch's mean and variance, the visible neighbours' are given back.
    mse_true_statistics: the same with each hidden patch's own mean and variance, which no model could know; only where
        there is a normalizer.
    mse_neighbours: the same of a baseline without a model: each hidden patch has the mean colour of the visible ones
        among its 8 neighbours; where there are none, of those in the smallest larger square around it.
    r2: share of the variance of the normalised target at the hidden places that the prediction explains, 1 - residual
        sum of squares / sum of squares around the mean patch; 1 is perfect, 0 is the mean patch, negative is worse.
    r2_neighbours: the same of the mean of the neighbours' normalised patches.

    Raises UserError where the target is not made of pixels.
    """
    found = reconstruct(model, images, seed)
    target = found.objective.target
    if not isinstance(target, ToImages):
        raise UserError(f"the target '{type(target).__name__}' is not made of pixels: there is no image to score")
    if not found.mask.hidden.any():
        errors = (found.pixels(found.from_truth()) - found.images).square().mean((1, 2, 3))
        return {"mse": errors.mean().item(), "psnr": -10 * errors.log10().mean().item()}
    hidden = place_pixels(found.mask.hidden[..., None], found.grid, found.images)

    def mse(images: Float[Tensor, "B C H W"]) -> float:
        return (images - found.images)[hidden.expand_as(images)].square().mean().item()

    scores = {"mse": mse(found.pixels(found.from_visible()))}
    if found.per_place:
        scores["mse_true_statistics"] = mse(found.pixels(found.from_truth()))
    scores["mse_neighbours"] = mse(found.neighbours())
    wanted = found.objective.normalized(found.target)
    baseline = spread(wanted, ~found.mask.hidden, found.grid)
    for name, values in (("r2", found.prediction), ("r2_neighbours", baseline)):
        scores[name] = explained(values[found.mask.hidden], wanted[found.mask.hidden])
    return scores


def spread(values: Float[Tensor, "B L D"], visible: Bool[Tensor, "B L"], grid: Size) -> Float[Tensor, "B L D"]:
    """`values` at the visible places, and at the others the mean of the nearest visible ones, (B, L, D).

    Nearest are those in the smallest square around a place that has any: 3x3, else 5x5, … An image without any visible
    place stays 0. `values` at hidden places are never read.
    """
    seen = visible[..., None]
    known = rearrange(torch.where(seen, values, 0), "b (h w) d -> b d h w", h=grid[0])
    weight = rearrange(seen.to(values.dtype), "b (h w) d -> b d h w", h=grid[0])
    filled, reached = torch.zeros_like(known), torch.zeros_like(weight, dtype=torch.bool)
    for radius in range(max(grid)):
        side = 2 * radius + 1
        total, count = (F.avg_pool2d(part, side, 1, radius, divisor_override=1) for part in (known, weight))
        filled = torch.where((count > 0) & ~reached, total / count, filled)
        reached = count > 0
        if reached.all():
            break
    return rearrange(filled, "b d h w -> b (h w) d")


def place_pixels(
    places: Shaped[Tensor, "B L D"], grid: Size, images: Shaped[Tensor, "B C H W"]
) -> Shaped[Tensor, "B D H W"]:
    """One value per place and channel, painted over the place's pixels of `images`."""
    p, q = images.shape[2] // grid[0], images.shape[3] // grid[1]
    return repeat(places, "b (h w) d -> b d (h p) (w q)", h=grid[0], w=grid[1], p=p, q=q)


def explained(predicted: Float[Tensor, "P D"], wanted: Float[Tensor, "P D"]) -> float:
    """R2: 1 - residual sum of squares / sum of squares around the mean place."""
    residual = (predicted - wanted).square().sum()
    return (1 - residual / (wanted - wanted.mean(0)).square().sum()).item()
