"""Codes of a trained tokenizer. Source: BEiT (arXiv 2106.08254, section 2), BEiT v2 (2208.06366), PeCo (2111.12710)."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.saved.tokenizer import load_tokenizer
from mimkit.teachers.teacher import Teacher
from mimkit.types import Size, Wanted


class VQ(Teacher):
    """Codes (B, L) of a frozen tokenizer, whose grid of codes must be the encoder's grid of places.

    checkpoint: folder of a run with head=quantizer or vq_decoder, or of a tokenizer that `mimkit import` wrote.
    view: name of the view of the image that it reads, one of data.views; image is the encoder's own.
    cache: whether each image's codes are kept, for recipes whose images come again unchanged.
    """

    normalizer, loss = "none", "cross_entropy"

    def __init__(
        self,
        *,
        in_chans: int,
        image_size: Size,
        patch_size: int,
        grid: Size,
        checkpoint: str,
        view: str = "image",
        cache: bool = False,
    ):
        encoder, head = load_tokenizer(Path(checkpoint))
        if encoder.grid != grid:
            raise UserError(_misfit(checkpoint, encoder.grid, grid, image_size, patch_size))
        as_they_are = (0.0,) * encoder.in_chans, (1.0,) * encoder.in_chans  # the tokenizer standardises for itself
        super().__init__(in_chans, encoder.image_size, *as_they_are, cache, encoder.in_chans)
        self.encoder, self.head, self.view = encoder, head, view
        self.vocab_size = head.vocab_size

    def encode(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        return Wanted(self.head.codes(self.encoder(images)))


def _misfit(checkpoint: str, codes: Size, places: Size, image_size: Size, patch_size: int) -> str:
    """What is wrong with the grid of places, and which options would be right."""
    fits = [f"image_size=[{codes[0] * patch_size},{codes[1] * patch_size}]"]
    side = image_size[0] // codes[0]
    if side and image_size == (codes[0] * side, codes[1] * side):
        fits.append(f"encoder.patch_size={side}")
    return (
        f"target vq: {checkpoint} gives {codes[0]}x{codes[1]} codes an image, the encoder has "
        f"{places[0]}x{places[1]} places: set {' or '.join(fits)}"
    )
