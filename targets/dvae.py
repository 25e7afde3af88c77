"""Codes of DALL-E's discrete VAE. Source: BEiT (arXiv 2106.08254, section 2.1), CAE (2202.03026)."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.teachers.dvae import STRIDE, load_encoder
from mimkit.teachers.teacher import Teacher
from mimkit.types import Images, Size, Wanted

MEAN, STD = -0.125, 1.25  # its pixels are 0.8 x + 0.1


class DVAE(Teacher):
    """The likeliest code of each place (B, L) by DALL-E's encoder, which reads images of 8 pixels a place.

    At 224 px in patches of 16 that is a view of 112 px: data.views={tokens: {image_size: 112}} target.view=tokens.

    weights: a safetensors file of the encoder's state dict (blocks.input.w, …).
    view: name of the view of the image that it reads, one of data.views; image is the encoder's own.
    cache: whether each image's codes are kept, for recipes whose images come again unchanged.
    """

    normalizer, loss = "none", "cross_entropy"

    def __init__(self, *, in_chans: int, grid: Size, weights: str, view: str = "image", cache: bool = False):
        encoder = load_encoder(Path(weights))
        chans = encoder.blocks[0].in_channels
        input_size = (grid[0] * STRIDE, grid[1] * STRIDE)
        super().__init__(in_chans, input_size, (MEAN,) * chans, (STD,) * chans, cache, chans)
        self.encoder, self.view = encoder, view
        self.vocab_size = encoder.blocks[-1].conv.out_channels

    def forward(self, images: Images) -> Wanted:
        """Raises UserError for a view of another size: resized images have other codes than those cropped at that size."""
        if tuple(images.shape[-2:]) != self.input_size:
            given, wanted = ("x".join(map(str, size)) for size in (images.shape[-2:], self.input_size))
            name, sides = "tokens" if self.view == "image" else self.view, ",".join(map(str, self.input_size))
            raise UserError(
                f"target dvae reads {wanted} pixels for this grid, the view '{self.view}' has {given}: "
                f"set data.views={{{name}: {{image_size: [{sides}]}}}} and target.view={name}"
            )
        return super().forward(images)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        return Wanted(self.encoder(images).argmax(1).flatten(1))
