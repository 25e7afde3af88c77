"""Losses: one number per place, in float32; the model takes the mean over all predicted places of the batch."""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit.adversary import PatchDiscriminator, hinge
from mimkit.errors import UserError
from mimkit.perceptual import PerceptualDistance
from mimkit.types import Loss, Size, Target

Places = Float[Tensor, "*places D"]
PerPlace = Float[Tensor, "*places"]


class mse(Loss):
    """Squared error, mean over the width (MAE)."""

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return (prediction - wanted).square().mean(-1)


class l1(Loss):
    """Absolute error, mean over the width (SimMIM)."""

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return (prediction - wanted).abs().mean(-1)


class smooth_l1(Loss):
    """Huber-like error divided by beta, mean over the width (MaskDistill, data2vec).

    beta: below this difference the error is quadratic, above it linear.
    """

    def __init__(self, *, beta: Annotated[float, Gt(0)] = 1.0):
        self.beta = beta

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return F.smooth_l1_loss(prediction, wanted, reduction="none", beta=self.beta).mean(-1)


class cosine(Loss):
    """1 - cosine similarity, times `scale` (EVA; with scale 2 MILAN's 2 - 2 cos).

    scale: factor of the loss.
    """

    direction_only = True

    def __init__(self, *, scale: Annotated[float, Gt(0)] = 1.0):
        self.scale = scale

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return self.scale * (1 - F.cosine_similarity(prediction, wanted, dim=-1))


class cross_entropy(Loss):
    """Cross-entropy of logits (…, K) and codes (…) in 0..K-1 (BEiT, MAGE).

    label_smoothing: share of the wanted probability that is spread over all codes.
    """

    def __init__(self, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, prediction: Places, wanted: Int[Tensor, "*places"]) -> PerPlace:
        flat = F.cross_entropy(
            prediction.flatten(0, -2), wanted.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        return flat.view(wanted.shape)


class info_nce(Loss):
    """Cross-entropy of finding the wanted vector of an image among those of the batch, on all ranks, by their cosines.

    temperature: divides the cosines.
    scale: factor of the loss; CMAE takes twice the temperature.
    exclude_self: whether no prediction is its own negative, as in SimCLR, where the wanted vectors are the predictions
        themselves with the two halves of the batch exchanged (target=twin).
    """

    direction_only, across_images = True, True

    def __init__(
        self,
        *,
        temperature: Annotated[float, Gt(0)] = 0.2,
        scale: Annotated[float, Gt(0)] = 1.0,
        exclude_self: bool = False,
    ):
        self.temperature, self.scale, self.exclude_self = temperature, scale, exclude_self

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        vectors, theirs = (F.normalize(x.flatten(0, -2), dim=-1) for x in (prediction, wanted))
        theirs, first = _of_all_ranks(theirs)
        rows = torch.arange(len(vectors), device=vectors.device)
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = vectors @ theirs.t()
        if self.exclude_self:
            own = (rows + len(rows) // 2) % len(rows) + first
            cosines = cosines.scatter(1, own[:, None], -torch.inf)
        found = F.cross_entropy(cosines / self.temperature, rows + first, reduction="none")
        return self.scale * found.view(wanted.shape[:-1])


class perceptual(nn.Module, Loss):
    """Distance of a frozen network's inner features of the predicted and the true image, summed over layers (LPIPS, PeCo).

    Goes with: target=pixels and a mask by which all places are predicted (mask=none).

    See `PerceptualDistance`.

    model: a timm model's name (vgg16), or the folder of a run whose encoder it is (runs/mae-1).
    pretrained: of a timm model: true takes the published weights, false random ones; or a file's.
    layers: stages or blocks that are compared, counted from 0, ascending.
    lpips: file with LPIPS's learned weights of vgg16's channels; null weighs all alike.
    """

    moving = False

    def __init__(
        self,
        *,
        target: Target,
        grid: Size,
        patch_size: int,
        in_chans: int,
        model: str,
        layers: tuple[int, ...],
        pretrained: bool | str = True,
        lpips: str | None = None,
    ):
        super().__init__()
        self.images_of = _ImagesOf("perceptual", target, grid)
        size = _pixels(grid, patch_size)
        self.distance = PerceptualDistance(model, pretrained, layers, lpips, in_chans, size)

    def forward(self, prediction: Places, wanted: Places) -> Float[Tensor, "B"]:
        """One number for each image."""
        return self.distance(self.images_of(prediction.float()), self.images_of(wanted))


class adversarial(nn.Module, Loss):
    """How far the predicted image is from looking real to a discriminator of patches that learns against the head (VQGAN).

    Goes with: target=pixels and a mask by which all places are predicted (mask=none).

    For an objective `{prediction: main, target: pixels, loss: adversarial, weight: 0.8, adaptive: true}`. After each
    optimizer step `mimkit train` lets the discriminator learn for one step, by Adam, on the same images and what the model
    then makes of them.

    start_step: optimizer step from which on it counts, and the discriminator learns; before that the loss is 0.
    channels: width of the discriminator's first layer.
    layers: how often it halves the resolution.
    lr: the discriminator's rate, which stays; the authors' is that of the model, 4.5e-6 times the batch size.
    betas: decay of the running means of its gradient and squared gradient.
    """

    def __init__(
        self,
        *,
        target: Target,
        grid: Size,
        patch_size: int,
        in_chans: int,
        start_step: Annotated[int, Ge(0)] = 0,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Annotated[int, Gt(0)] = 3,
        lr: Annotated[float, Gt(0)] = 5.4e-5,
        betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.5, 0.9),
    ):
        super().__init__()
        self.images_of = _ImagesOf("adversarial", target, grid)
        self.discriminator = PatchDiscriminator(in_chans, channels, layers, _pixels(grid, patch_size))
        self.start_step, self.lr, self.betas = start_step, lr, betas
        self.active = False  # whether the step has come; said by the training loop

    def forward(self, prediction: Places, wanted: Places) -> Float[Tensor, ""]:
        """What the head is to make small."""
        return -self._logits(prediction).mean() if self.active else prediction.new_zeros(())

    def oppose(self, prediction: Places, wanted: Places) -> Float[Tensor, ""]:
        """What the discriminator is to make small, with gradient for its weights alone."""
        return hinge(self._logits(wanted), self._logits(prediction.detach()))

    def _logits(self, values: Places) -> Float[Tensor, "B 1 h w"]:
        with torch.autocast(values.device.type, enabled=False):
            return self.discriminator(2 * self.images_of(values.float()) - 1)


class _ImagesOf:
    """Images (B, C, H, W) in [0, 1] units from values of `target` at all places, which must be pixels, in raster order."""

    def __init__(self, loss: str, target: Target, grid: Size):
        found: Callable[[Tensor, Size], Tensor] | None = getattr(target, "to_images", None)
        if found is None:
            raise UserError(f"loss '{loss}' compares images: take target=pixels")
        self.loss, self.to_images, self.grid = loss, found, grid

    def __call__(self, values: Places) -> Float[Tensor, "B C H W"]:
        """The images. Raises UserError where the values are not of all places."""
        if values.ndim != 3 or values.shape[1] != self.grid[0] * self.grid[1]:
            raise UserError(f"loss '{self.loss}' compares whole images, of which a part is predicted: set mask=none")
        return self.to_images(values, self.grid)


def _pixels(grid: Size, patch_size: int) -> Size:
    return grid[0] * patch_size, grid[1] * patch_size


def _of_all_ranks(rows: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "N D"], int]:
    """The rows of all ranks, each of which has as many, with their gradients; and the number of the first of our own."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows)), dist.get_rank() * len(rows)
