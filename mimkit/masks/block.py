"""Blocks of neighbouring places. Source: BEiT (arXiv 2106.08254, algorithm 1); BEiT v2 fills up to the exact count."""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le, Lt
from jaxtyping import Bool, Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.masks._count import hidden_count
from mimkit.types import Feed, Mask, Masking, Size

ATTEMPTS = 10  # per block, as the authors; after ten failures the image keeps what it has


class Block(Masking):
    """Rectangles of random area and aspect are hidden until the count is reached.

    ratio: share of the places to hide (rounded down).
    count: number of places to hide, instead of the ratio; BEiT: 75 of 196.
    rule: exact fills up with random single places (BEiT v2); at_most leaves what the blocks gave (BEiT).
    min_area: smallest block in places; null is the authors' 16 of 196, scaled to the grid.
    max_area: largest block in places; null is the count.
    min_aspect: lowest ratio of height to width; the highest is its inverse.
    feed: whether the encoder is fed the visible places only, or all with mask tokens.
    """

    def __init__(
        self,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.4,
        count: Annotated[int, Gt(0)] | None = None,
        rule: Literal["exact", "at_most"] = "exact",
        min_area: Annotated[int, Gt(0)] | None = None,
        max_area: Annotated[int, Gt(0)] | None = None,
        min_aspect: Annotated[float, Gt(0), Le(1)] = 0.3,
        feed: Feed = "visible",
    ):
        if feed == "visible" and rule == "at_most":
            raise UserError(
                "mask 'block' with rule 'at_most' hides unequal numbers: set mask.feed=all or mask.rule=exact"
            )
        self.ratio, self.count, self.rule, self.feed = ratio, count, rule, feed
        self.min_area, self.max_area, self.min_aspect = min_area, max_area, min_aspect

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        places = grid[0] * grid[1]
        count = hidden_count(places, self.ratio, self.count or int(places * self.ratio), "nearest")
        hidden = self._paint(grid, batch, count, generator)
        if self.rule == "at_most":
            return Mask.from_hidden(hidden.flatten(1), grid=grid)
        mask = Mask.from_hidden(_fill_up(hidden.flatten(1), count, generator), grid=grid)
        return mask.feed_visible() if self.feed == "visible" else mask

    def _paint(self, grid: Size, batch: int, count: int, generator: torch.Generator) -> Bool[Tensor, "B h w"]:
        """Blocks for all images at once; each image goes on until its count is reached or ten attempts in a row fail."""
        height, width = grid
        min_area = self.min_area or max(1, round(16 / 196 * height * width))
        log_aspect = -math.log(self.min_aspect)
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        hidden = torch.zeros(batch, height, width, dtype=torch.bool)
        failures = torch.zeros(batch, dtype=torch.long)
        while True:
            budget = (count - hidden.sum((1, 2))).clamp(max=self.max_area or count)
            active = (budget > 0) & (failures < ATTEMPTS)
            if not active.any():
                return hidden
            draws = torch.rand(4, batch, generator=generator)
            area = min_area + (budget - min_area) * draws[0]  # below min_area the interval is reversed, as the authors'
            aspect = ((2 * draws[1] - 1) * log_aspect).exp()
            h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
            top, left = ((height - h + 1) * draws[2]).long(), ((width - w + 1) * draws[3]).long()
            top, left, h, w = (edge[:, None, None] for edge in (top, left, h, w))
            block = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
            new = (block & ~hidden).sum((1, 2))
            fits = (h < height).flatten() & (w < width).flatten() & (new > 0) & (new <= budget) & active
            hidden |= block & fits[:, None, None]
            failures = torch.where(fits, 0, failures + 1)


def _fill_up(hidden: Bool[Tensor, "B L"], count: int, generator: torch.Generator) -> Bool[Tensor, "B L"]:
    """Hide random single places until every image has `count`; hidden ones come first in the order."""
    noise = torch.rand(hidden.shape, generator=generator).masked_fill(hidden, 2)
    order = noise.argsort(dim=1, descending=True)[:, :count]
    return torch.zeros_like(hidden).scatter_(1, order, True)
