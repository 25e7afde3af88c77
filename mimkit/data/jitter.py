"""Colour jitter: brightness, contrast, saturation and hue in random order, the maths of torchvision's ColorJitter."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2.functional import adjust_hue

DRAWS = 4  # numbers in [0, 1) per sample and epoch: three factors and the order; a fifth turns the hue
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = {count: np.array(list(permutations(range(count)))) for count in (3, 4)}


@dataclass(frozen=True)
class ColorJitter:
    """What happens to the colours of a sample.

    strength: x in [0, 1]; each factor is uniform in [1-x, 1+x].
    hue: x in [0, 0.5]; the hues are turned by a part of the colour circle that is uniform in [-x, x].
    """

    strength: float
    hue: float = 0.0

    def __call__(self, images: UInt8[Tensor, "B C h w"], draws: np.ndarray) -> UInt8[Tensor, "B C h w"]:
        """Jittered images, from `draws` (B, 4) in [0, 1); with a hue (B, 5)."""
        factors = 1 + self.strength * (2 * draws[:, :3] - 1)
        orders = ORDERS[4 if self.hue else 3]
        if self.hue:
            factors = np.column_stack([factors, self.hue * (2 * draws[:, 4] - 1)])
        orders = orders[(draws[:, 3] * len(orders)).astype(np.int64)]
        return jitter(images, *(torch.from_numpy(given).to(images.device) for given in (factors, orders)))


def jitter(
    images: UInt8[Tensor, "B C h w"], factors: Float64[Tensor, "B K"], orders: Int64[Tensor, "B K"]
) -> UInt8[Tensor, "B C h w"]:
    """Each image with its factors of brightness, contrast and saturation, and the turn of its hues, in its order.

    orders: permutations of 0, 1, 2, or of 0, 1, 2, 3 with a hue. The first three are blends of the image with black, with
    its mean grey, or with its grey version, cut to 8 bits. Images of other than three channels have neither saturation
    nor hue to change; their mean grey is the mean over all channels.
    """
    rgb = images.shape[1] == 3
    if not rgb:
        factors = factors.index_fill(1, torch.tensor(SATURATION, device=factors.device), 1.0)
    for operation in orders.unbind(1):
        pixels, which = images.float(), operation.view(-1, 1, 1, 1)
        grey = luminance(pixels) if rgb else pixels
        other = torch.where(which == CONTRAST, grey.mean((1, 2, 3), keepdim=True), grey)
        factor = factors.gather(1, operation[:, None]).view(-1, 1, 1, 1)
        factor = torch.where(which == HUE, 1.0, factor)
        blend = pixels * factor.float() + other * torch.where(which == BRIGHTNESS, 0, 1 - factor).float()
        images = blend.clamp_(0, 255).to(torch.uint8)
        for row in (operation == HUE).nonzero()[:, 0].tolist() if rgb else ():
            images[row] = adjust_hue(images[row], factors[row, HUE].item())
    return images


def luminance(pixels: Tensor) -> Tensor:
    """Whole grey levels (B, 1, h, w) of RGB pixels (B, 3, h, w) in [0, 255]."""
    red, green, blue = pixels.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()  # rounded as torchvision's
