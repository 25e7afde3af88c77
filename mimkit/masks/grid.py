"""A regular pattern: of each cell of places, the same ones stay visible. Source: MAE (arXiv 2111.06377, figure 6)."""

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.geometry import PlainFeed
from mimkit.types import Mask, Masking, Size


class Grid(Masking):
    """In each 2x2 cell of places the upper left one stays visible: 75 % are hidden, the same in every image.

    feed: whether the encoder is fed the visible places only, or all with mask tokens.
    """

    def __init__(self, *, feed: PlainFeed = "visible"):
        self.feed = feed

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        if min(grid) < 2:
            raise UserError(f"mask 'grid' needs at least 2x2 places, the encoder has {grid[0]}x{grid[1]}")
        hidden = torch.ones(batch, *grid, dtype=torch.bool)
        hidden[:, ::2, ::2] = False
        mask = Mask.from_hidden(hidden.flatten(1), grid=grid)
        return mask.feed_visible() if self.feed == "visible" else mask
