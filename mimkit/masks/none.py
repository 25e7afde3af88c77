"""Nothing is hidden, everything is predicted. Source: VQ-KD (BEiT v2, arXiv 2208.06366, section 3.1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.types import Mask, Masking, Size


class NoMask(Masking):
    """All places are fed and predicted."""

    feed = "all"

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        hidden = torch.zeros(batch, grid[0] * grid[1], dtype=torch.bool)
        return Mask.from_hidden(hidden, predicted=~hidden, grid=grid)
