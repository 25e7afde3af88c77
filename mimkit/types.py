"""What the six roles are, and what they hand to each other.

Axes, the same letters everywhere: `B` images in the batch, `C H W` channels and pixels, `L` all patch places in raster
order, `V` places that the encoder is fed, `P` predicted places, `N` tokens including the class token, `D` feature width,
`K` vocabulary size, `H` (of an attention bias) heads. Images are uint8 or float in [0, 1] at every interface; whoever
needs other values normalises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.geometry import Feed as Feed
from mimkit.geometry import Size as Size
from mimkit.mask import Mask as Mask
from mimkit.mask import gather_places as gather_places

Images = Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"]
Views = Mapping[str, Shaped[Tensor, "..."]]  # images by their views' names, each view of its own size


@dataclass(frozen=True)
class Features:
    """What an encoder gives.

    sequence: (B, N, D), prefix tokens (class token) first, then the patch tokens that were fed.
    num_prefix_tokens: how many tokens stand before the patch tokens; the first of them is the class token.
    grid: rows and columns of the patch tokens where all places are there (fewer than the mask's where the encoder is
        hierarchical), else None.
    layers: each (B, N, D), the outputs of the blocks that were asked for, in their order, before the final norm.
    norm: the encoder's final norm, for heads that go on from `layers`.
    attn_bias: (num_heads, N, N), what every block adds to its attention (shared relative positions), or None.
    code_embed: (K, D), what each code is embedded as where the encoder reads codes, for heads that are tied to it.
    """

    sequence: Float[Tensor, "B N D"]
    num_prefix_tokens: int = 0
    grid: Size | None = None
    layers: tuple[Float[Tensor, "B N D"], ...] = ()
    norm: Callable[[Tensor], Tensor] | None = None
    attn_bias: Float[Tensor, "H N N"] | None = None
    code_embed: Float[Tensor, "K D"] | None = None

    @property
    def tokens(self) -> Float[Tensor, "B L D"]:
        """Patch tokens, in the order in which they were fed (raster order where all were)."""
        return self.sequence[:, self.num_prefix_tokens :]

    @property
    def cls(self) -> Float[Tensor, "B D"] | None:
        """The class token, or None."""
        return self.sequence[:, 0] if self.num_prefix_tokens else None

    @property
    def pooled(self) -> Float[Tensor, "B D"]:
        """Mean of the patch tokens."""
        return self.tokens.mean(1)


@dataclass(frozen=True)
class Wanted:
    """What a target gives where a plain (B, L, D) tensor or (B, L) codes would not say all.

    values: features (B, L, D) or codes (B, L), of the places; of targets that read the mask at the predicted places alone;
        None where nothing is wanted of single places.
    cls: (B, D), wanted of the image as a whole: of the class token, or of what the head makes of all tokens.
    saliency: (B, L), higher where the target looks more closely; for masks that follow it.
    """

    values: Float[Tensor, "B L D"] | Int[Tensor, "B L"] | None
    cls: Float[Tensor, "B D"] | None = None
    saliency: Float[Tensor, "B L"] | None = None


@dataclass(frozen=True)
class Prediction:
    """What a head gives where a plain tensor would not say all.

    values: at the predicted places, (B, P, D) or (P_total, D); None where only the whole image is predicted.
    cls: (B, D), the prediction of what the target wants of the image as a whole.
    also: further predictions of the same wanted values; each adds its loss.
    named: other predictions at those places, for objectives that ask for them: `prediction: main.latents`.
    losses: further terms by name, scalars, added with weight 1.
    metrics: what else is worth a look in the log (perplexity, …), scalars without gradient.
    """

    values: Float[Tensor, "*places D"] | None
    cls: Float[Tensor, "B D"] | None = None
    also: tuple[Float[Tensor, "*places D"], ...] = ()
    named: dict[str, Float[Tensor, "*places E"]] = field(default_factory=dict)
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """What `model(images)` gives.

    loss: scalar, the weighted sum of `losses`.
    losses: {objective: scalar}, unweighted.
    prediction, target: the first objective's, at the predicted places: (B, P, D), or (P_total, D) for unequal counts;
        the target is normalised, or codes (B, P). None where the first objective wants nothing of single places.
    mask: the mask that was used.
    metrics: {name: scalar}, what the heads tell besides.
    """

    loss: Float[Tensor, ""]
    losses: dict[str, Float[Tensor, ""]]
    prediction: Float[Tensor, "*places D"] | None
    target: Float[Tensor, "*places D"] | Int[Tensor, "*places"] | None
    mask: Mask
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class Encoder(nn.Module):
    """Role: reads the masked image. A subclass sets the attributes and drives a timm model.

    timm_model: the timm module that is trained; its state dict is what is handed over.
    embed_dim: D, of what comes out. num_layers: number of blocks, for heads that read intermediate layers; 0: it gives none.
    in_chans, image_size, patch_size, grid: the geometry; grid = image_size / patch_size, rows first: the places of masks.
    out_grid: rows and columns of the tokens of a full image; fewer than `grid` where the encoder is hierarchical (Swin).
    reads_codes: whether it reads codes in place of pixels; those that a target has found are then given as `codes`.
    """

    timm_model: Any
    embed_dim: int
    num_layers: int
    in_chans: int
    image_size: Size
    patch_size: int
    grid: Size
    reads_codes: bool = False

    @property
    def out_grid(self) -> Size:
        """Rows and columns of the tokens of a full image."""
        return self.grid

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of the fed places; without a mask, of the full image.

        layers: blocks whose outputs are asked for, counted from 0, ascending; -1: what enters the first block.
        """
        raise NotImplementedError


class Masking:
    """Role: draws what is hidden. `feed`: whether the encoder is fed the visible places only, all, or some of the hidden."""

    feed: Feed = "visible"

    def draw(self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None) -> Mask:
        """A mask for `batch` images, drawn on the CPU from `generator`, so that it is the same on every device."""
        raise NotImplementedError


class Head(nn.Module):
    """Role: predicts the target at the predicted places.

    layers: encoder blocks whose outputs it reads, ascending; -1: what enters the first block.
    reads_coarse: whether it can predict several places from one token (`out_grid` coarser than `grid`).
    """

    layers: tuple[int, ...] = ()
    reads_coarse: bool = False

    @property
    def last_weight(self) -> Tensor:
        """The weight of its last layer, where adaptive weights compare gradients. Raises UserError where it has told none."""
        name = type(self).__module__.rpartition(".")[2]
        raise UserError(f"head '{name}' tells no last layer, which an adaptive weight needs: set adaptive=false")

    def forward(self, features: Features, mask: Mask) -> Tensor | Prediction:
        """The prediction at the predicted places, (B, P, D), or (P_total, D) for unequal counts."""
        raise NotImplementedError


class Target(nn.Module):
    """Role: what is to be predicted. Frozen for good: eval mode and no gradient, whatever `train()` says.

    normalizer, loss: the defaults that follow when a recipe takes this target.
    view: name of the view of the image that it reads.
    reads: `image`: it runs first, and what it finds may guide the mask; `mask`: it is given the mask too, and gives values
        at the predicted places alone; `prediction`: it is given what its head predicts, and nothing else.
    dim: width of a continuous target. vocab_size: number of codes of a discrete one. One of them is set.
    moving: whether its weights change while a run goes on; only then they are part of the run's checkpoints.
    encoder_codes: whether its codes are those that the encoder reads, so that the encoder need not find them again.
    """

    normalizer: str = "none"
    loss: str = "mse"
    view: str = "image"
    reads: Literal["image", "mask", "prediction"] = "image"
    dim: int | None = None
    vocab_size: int | None = None
    moving: bool = False
    encoder_codes: bool = False

    def train(self, mode: bool = True) -> "Target":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images: Images) -> Tensor | Wanted:
        """Values (B, L, D) or codes (B, L) for all places of the encoder's grid."""
        raise NotImplementedError

    def before_step(self, encoder: Encoder, head: Head, progress: float) -> None:
        """Called between the backward pass and the optimizer step: a copy that moves here lags one step behind."""

    def after_step(self, encoder: Encoder, head: Head, progress: float) -> None:
        """Called after each optimizer step; `progress` in [0, 1] of the run. A moving copy moves here."""

    def restart(self, encoder: Encoder, head: Head) -> None:
        """Called when the weights were set from outside, and once all is built: a copy begins anew here."""


class Normalizer:
    """Role: brings target values to the scale on which the loss counts."""

    def __call__(self, values: Float[Tensor, "*places D"]) -> Float[Tensor, "*places D"]:
        """Normalised values."""
        raise NotImplementedError

    def invert(
        self, values: Float[Tensor, "*places D"], like: Float[Tensor, "*places D"]
    ) -> Float[Tensor, "*places D"]:
        """Back to the target's scale, with the statistics of `like` where the normalizer used the values' own."""
        raise NotImplementedError


class Loss:
    """Role: compares. One number per place, or one for all; the model takes their mean. With networks: a module besides.

    direction_only: whether the length of a prediction does not count (cosine), so that it says nothing.
    across_images: whether an image's loss depends on the others of the batch, which then cannot be computed in parts.
    """

    direction_only: bool = False
    across_images: bool = False

    def __call__(
        self, prediction: Float[Tensor, "*places D"], wanted: Float[Tensor, "*places D"] | Int[Tensor, "*places"]
    ) -> Float[Tensor, "*places"]:
        """Loss per place."""
        raise NotImplementedError


def as_float(images: Images) -> Float[Tensor, "B C H W"]:
    """Images as float32 in [0, 1]: uint8 is divided by 255, float passes. Raises UserError for other types."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    if not images.is_floating_point():
        raise UserError(f"images must be uint8 or float in [0, 1], got {images.dtype}")
    return images.float()


class Standardize(nn.Module):
    """(images - mean) / std per channel, for uint8 or [0, 1] images.

    mean, std: per channel in [0, 1] units; None: ImageNet's, or its grey value for other numbers of channels than 3.
    """

    def __init__(self, in_chans: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        imagenet = in_chans == 3
        mean = mean or ((0.485, 0.456, 0.406) if imagenet else (0.449,) * in_chans)
        std = std or ((0.229, 0.224, 0.225) if imagenet else (0.226,) * in_chans)
        if not len(mean) == len(std) == in_chans:
            raise UserError(f"mean and std need one value per channel: {in_chans}, got {len(mean)} and {len(std)}")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "B C H W"]:
        """Standardised images."""
        return (as_float(images) - self.mean) / self.std

    def invert(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Back to [0, 1] units (not clamped)."""
        return images * self.std + self.mean


def patchify(images: Shaped[Tensor, "B C H W"], patch_size: int) -> Shaped[Tensor, "B L p2 C"]:
    """Images cut into patches (B, L, p·p, C): places in raster order, pixels row by row, channel last."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q) c", p=patch_size, q=patch_size)


def unpatchify(patches: Shaped[Tensor, "B L D"], grid: Size, patch_size: int) -> Shaped[Tensor, "B C H W"]:
    """The inverse of `patchify(…).flatten(2)`: patches (B, L, p·p·C) into images (B, C, H, W)."""
    h, w = grid
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=patch_size, q=patch_size)
