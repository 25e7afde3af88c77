"""The network that is trained to tell images from what a model makes of them, patch by patch.

Source: PatchGAN (pix2pix, arXiv 1611.07004) with the hinge loss, as in VQGAN (arXiv 2012.09841) and its published code.
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.types import Size

Logits = Float[Tensor, "B 1 h w"]


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B, 1, h, w), each of an overlapping patch; high where it looks real.

    channels: width of the first layer; each further one has twice as many, at most eight times.
    layers: how often the resolution is halved.
    Raises UserError where that leaves nothing of images of `image_size`.
    """

    def __init__(self, in_chans: int, channels: int, layers: int, image_size: Size):
        super().__init__()
        smallest = 3 * 2**layers
        if min(image_size) < smallest:
            raise UserError(
                f"loss 'adversarial' with layers={layers} needs images of at least {smallest} pixels: lower loss.layers"
            )
        widths = [channels * min(2**number, 8) for number in range(layers + 1)]
        self.main = nn.Sequential(nn.Conv2d(in_chans, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        for number, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 1 if number == layers else 2
            self.main.append(nn.Conv2d(before, width, 4, stride, padding=1, bias=False))
            self.main.append(nn.BatchNorm2d(width))
            self.main.append(nn.LeakyReLU(0.2))
        self.main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_init_weights)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Logits:
        """The logits."""
        return self.main(images)


def hinge(real: Logits, fake: Logits) -> Float[Tensor, ""]:
    """The discriminator's loss: 0 once every logit of an image is above 1 and of a made one below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
