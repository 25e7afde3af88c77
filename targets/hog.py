"""Histograms of oriented gradients. Source: MaskFeat (arXiv 2112.09133, section 3.2) and its authors' two versions."""

from math import pi
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.types import Images, Size, Standardize, Target


class HOG(Target):
    """Each channel's histograms over the cells of a patch, (B, L, C·bins·k²): channel, bin, cell row, cell column.

    bins: number of directions in half a turn.
    cell_size: side of a cell in pixels, k = patch_size / cell_size; null is half the patch.
    gaussian_window: side in pixels of the Gaussian window that weights the gradients, tiled over the image; 0 is none.
        The weights in OpenMMLab were trained with 16, those in SlowFast without.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    normalizer, loss = "none", "mse"

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: int,
        in_chans: int = 3,
        bins: Annotated[int, Gt(0)] = 9,
        cell_size: Annotated[int, Gt(0)] | None = None,
        gaussian_window: Annotated[int, Ge(0)] = 16,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        cell = cell_size or patch_size // 2
        if not cell or patch_size % cell:
            fits = ", ".join(str(size) for size in range(1, patch_size + 1) if not patch_size % size)
            raise UserError(f"target.cell_size={cell} must divide the patch of {patch_size} pixels; fits: {fits}")
        self.bins, self.per_patch = bins, patch_size // cell
        self.cells = (image_size[0] // cell, image_size[1] // cell)
        self.dim = in_chans * bins * self.per_patch**2
        self.standardize = Standardize(in_chans, mean, std)
        self.first_bin: Tensor  # of each pixel's cell, where all histograms lie one behind the other
        rows, columns = (torch.arange(side) // cell for side in image_size)
        self.register_buffer("first_bin", (rows[:, None] * self.cells[1] + columns) * bins, persistent=False)
        self.weight: Tensor
        self.register_buffer("weight", _gaussian(gaussian_window, image_size), persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "B L D"]:
        padded = F.pad(self.standardize(images), (1, 1, 1, 1), mode="reflect")
        # Sobel filters as differences: several times quicker than a convolution, and no GPU rounds them to TF32
        gx = _smooth(padded[..., :-2] - padded[..., 2:], dim=-2)
        gy = _smooth(padded[..., :-2, :] - padded[..., 2:, :], dim=-1)
        magnitude = torch.hypot(gx, gy).mul_(self.weight)
        angle = torch.atan2(gx, gy)  # the arguments in the authors' order: 0 where the brightness changes downwards
        bins = angle.div_(pi).mul_(self.bins).floor_().remainder_(self.bins).long()
        sums = magnitude.new_zeros(*images.shape[:2], *self.cells, self.bins)
        sums.flatten(2).scatter_add_(2, bins.add_(self.first_bin).flatten(2), magnitude.flatten(2))
        histograms = F.normalize(sums, dim=-1)
        return rearrange(histograms, "b c (h i) (w j) n -> b (h w) (c n i j)", i=self.per_patch, j=self.per_patch)


def _smooth(differences: Float[Tensor, "B C h w"], dim: int) -> Float[Tensor, "B C H W"]:
    """The sum with weights 1, 2, 1 along an axis, which gets shorter by 2."""
    size = differences.shape[dim] - 2
    before, here, after = (differences.narrow(dim, start, size) for start in range(3))
    return before.add(here, alpha=2).add_(after)


def _gaussian(window: int, image_size: Size) -> Float[Tensor, "H W"]:
    """A Gaussian of `window` pixels with sum 1 and a deviation of half its side, tiled and cut at the edge; 0: ones."""
    steps = torch.arange(window) - (window - 1) / 2
    curve = torch.exp(-0.5 * (steps / (window / 2)) ** 2) if window else torch.ones(1)
    rows, columns = (curve[torch.arange(side) % len(curve)] / curve.sum() for side in image_size)
    return rows[:, None] * columns
