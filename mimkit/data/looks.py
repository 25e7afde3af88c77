"""How a crop becomes the images of a batch: the image itself and the recipe's further views, with the colours of each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from torch import Tensor

from mimkit.data import jitter
from mimkit.data.jitter import luminance
from mimkit.data.source import Size
from mimkit.settings import ViewSettings

DRAWS = 12  # numbers in [0, 1) per sample, epoch and view: 2 of the shift, 5 of the jitter, 3 decisions, the blur, one spare
SIGMA = (0.1, 2.0)  # pixels: standard deviation of a blur, as in BYOL and SimCLR
Batch = UInt8[Tensor, "B C h w"]
Crops = UInt8[Tensor, "..."]  # of several sizes
Change = Callable[[Batch, np.ndarray], Batch]  # of crops, by numbers in [0, 1)


@dataclass(frozen=True)
class Looks:
    """The views of each crop.

    image_size: of the image itself.
    change: what happens to the colours of all views of a crop, by 4 numbers in [0, 1) each.
    views: the further ones.
    """

    image_size: Size
    change: Change | None = None
    views: Mapping[str, ViewSettings] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, Size]:
        """What a crop is rendered as: `image`, larger by the furthest shift, and each view that has a size of its own."""
        shift = max((view.shift for view in self.views.values()), default=0)
        own = {name: view.size(self.image_size) for name, view in self.views.items() if view.image_size is not None}
        return {"image": (self.image_size[0] + shift, self.image_size[1] + shift), **own}

    def finish(
        self, crops: Mapping[str, Crops], colors: np.ndarray | None, draws: Mapping[str, np.ndarray]
    ) -> dict[str, Crops]:
        """The image and its views from the rendered crops.

        colors: (B, 4) in [0, 1), of the shared change. draws: (B, 12) in [0, 1) of each view.
        """
        if self.change is not None and colors is not None:
            crops = {name: self.change(images, colors) for name, images in crops.items()}
        height, width = self.image_size
        done = {"image": crops["image"][..., :height, :width].contiguous()}
        for name, view in self.views.items():
            images = crops.get(name, done["image"])
            if view.shift:
                images = shifted(crops["image"], self.image_size, view.shift, draws[name][:, :2])
            done[name] = recolored(images, view, draws[name][:, 2:])
        return done


def shifted(crops: UInt8[Tensor, "B C H W"], size: Size, shift: int, draws: np.ndarray) -> UInt8[Tensor, "B C h w"]:
    """Of each crop the part of `size` that begins 0 … shift - 1 pixels below and right of its corner, by `draws` (B, 2)."""
    offsets = torch.from_numpy((draws * shift).astype(np.int64)).to(crops.device)
    rows = offsets[:, :1] + torch.arange(size[0], device=crops.device)  # (B, h)
    columns = offsets[:, 1:] + torch.arange(size[1], device=crops.device)  # (B, w)
    batch = torch.arange(len(crops), device=crops.device)[:, None, None]
    return crops.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def recolored(images: Batch, view: ViewSettings, draws: np.ndarray) -> Batch:
    """Each image jittered, grey and blurred where its `draws` (B, 10) say so, in this order."""
    given = torch.from_numpy(draws).to(images.device)
    if view.color_jitter or view.hue:
        changed = jitter.ColorJitter(view.color_jitter, view.hue)(images, draws[:, :5])
        images = torch.where(_of(given[:, 5] < view.jitter_prob), changed, images)
    if view.grayscale and images.shape[1] == 3:
        grey = luminance(images.float()).to(torch.uint8).expand_as(images)
        images = torch.where(_of(given[:, 6] < view.grayscale), grey, images)
    if view.blur:
        sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * given[:, 8]
        images = torch.where(_of(given[:, 7] < view.blur), blurred(images, sigma), images)
    return images


def _of(chosen: Tensor) -> Tensor:
    return chosen[:, None, None, None]


def blurred(images: Batch, sigma: Float64[Tensor, " B"]) -> Batch:
    """Each image under a Gaussian of its own standard deviation in pixels, cut at three of the largest; edges mirrored."""
    batch, channels, height, width = images.shape
    reach = min(math.ceil(3 * SIGMA[1]), height - 1, width - 1)
    steps = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma[:, None]).square()).float()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # (B·C, 1, k)
    pixels = images.float().view(1, batch * channels, height, width)
    pixels = F.pad(pixels, (reach, reach, reach, reach), mode="reflect")
    pixels = F.conv2d(pixels, kernel[:, :, None, :], groups=batch * channels)
    pixels = F.conv2d(pixels, kernel[:, :, :, None], groups=batch * channels)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).view(images.shape)
