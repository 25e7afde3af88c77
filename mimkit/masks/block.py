"""Blocks of neighbouring places. Source: BEiT (arXiv 2106.08254, algorithm 1); BEiT v2 fills up to the exact count."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le, Lt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mimkit.errors import UserError
from mimkit.geometry import PlainFeed
from mimkit.masks._count import hidden_count
from mimkit.types import Mask, Masking, Size

ATTEMPTS = 10  # per block, as the authors
PATIENCE = 1000  # times ten attempts without a new place, before rule 'blocks' gives up


class Block(Masking):
    """Rectangles of random area and aspect are hidden until the count is reached.

    ratio: share of the places to hide (rounded down).
    count: number of places to hide, instead of the ratio; BEiT: 75 of 196.
    rule: what follows when ten attempts at a block fail; exact fills up with random single places (BEiT v2), at_most
        leaves what the blocks gave (BEiT, EVA, data2vec), blocks tries on until the count is reached (MaskFeat).
    min_area: smallest block in places; null is the authors' 16 of 196, scaled to the grid.
    max_area: largest block in places; null is the count.
    min_aspect: lowest ratio of height to width; the highest is its inverse.
    edges: whether blocks reach the last row and column; in mmpretrain's version they never do.
    feed: whether the encoder is fed the visible places only, or all with mask tokens.
    """

    def __init__(
        self,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.4,
        count: Annotated[int, Gt(0)] | None = None,
        rule: Literal["exact", "at_most", "blocks"] = "exact",
        min_area: Annotated[int, Gt(0)] | None = None,
        max_area: Annotated[int, Gt(0)] | None = None,
        min_aspect: Annotated[float, Gt(0), Le(1)] = 0.3,
        edges: bool = True,
        feed: PlainFeed = "visible",
    ):
        if feed == "visible" and rule == "at_most":
            raise UserError(
                "mask 'block' with rule 'at_most' hides unequal numbers: set mask.feed=all or mask.rule=exact"
            )
        self.ratio, self.count, self.rule, self.edges, self.feed = ratio, count, rule, edges, feed
        self.min_area, self.max_area, self.min_aspect = min_area, max_area, min_aspect

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        """Raises UserError where blocks cannot hide as many places of this grid."""
        places = grid[0] * grid[1]
        count = hidden_count(places, self.ratio, self.count or int(places * self.ratio), "nearest")
        reached = places if self.edges else (grid[0] - 1) * (grid[1] - 1)
        if min(grid) < 2 or (self.rule == "blocks" and count > reached):
            raise UserError(
                f"mask 'block' cannot hide {count} of {grid[0]}x{grid[1]} places: blocks are lower and narrower than the "
                f"grid{'' if self.edges else f' and with mask.edges=false reach {reached} of them'}"
            )
        hidden = self._paint(grid, batch, count, generator).flatten(1)
        if self.rule == "exact":
            hidden = _fill_up(hidden, count, generator)
        mask = Mask.from_hidden(hidden, grid=grid)
        return mask.feed_visible() if self.feed == "visible" else mask

    def _paint(self, grid: Size, batch: int, count: int, generator: torch.Generator) -> Bool[Tensor, "B h w"]:
        """Block after block for all images at once; those that are done are left alone."""
        hidden = torch.zeros(batch, *grid, dtype=torch.bool)
        numbers, unfinished = hidden.sum((1, 2)), torch.arange(batch)
        for _ in range(count + PATIENCE):  # a block hides one new place at least
            budget = (count - numbers[unfinished]).clamp(max=self.max_area or count)
            hidden[unfinished] |= self._block(hidden[unfinished], budget, generator)
            before, numbers = numbers, hidden.sum((1, 2))
            going_on = (numbers < count) if self.rule == "blocks" else (numbers < count) & (numbers > before)
            unfinished = going_on.nonzero()[:, 0]
            if not len(unfinished):
                return hidden
        raise UserError(
            f"mask 'block' with rule 'blocks' found no way to hide {count} of {grid[0]}x{grid[1]} places: "
            "lower mask.min_area or mask.min_aspect, or set mask.rule=exact"
        )

    def _block(
        self, hidden: Bool[Tensor, "B h w"], budget: Int[Tensor, "B"], generator: torch.Generator
    ) -> Bool[Tensor, "B h w"]:
        """For each image the first of ten random blocks that hides between one and `budget` new places, or nothing."""
        batch, height, width = hidden.shape
        budget = budget[:, None]
        min_area = self.min_area or max(1, round(16 / 196 * height * width))
        draws = torch.rand(4, batch, ATTEMPTS, generator=generator)
        area = min_area + (budget - min_area) * draws[0]  # below min_area the interval is reversed, as the authors'
        aspect = ((1 - 2 * draws[1]) * math.log(self.min_aspect)).exp()
        h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        inside = (h < height) & (w < width)
        h, w = h * inside, w * inside
        top, left = ((height - h + self.edges) * draws[2]).long(), ((width - w + self.edges) * draws[3]).long()
        new = h * w - _sums(hidden, top, left, h, w)
        fits = (new > 0) & (new <= budget)
        first = fits.int().argmax(1, keepdim=True)
        top, left, h, w = (edge.gather(1, first)[..., None] for edge in (top, left, h * fits, w))
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        return (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)


Edges = Int[Tensor, "B attempts"]


def _sums(hidden: Bool[Tensor, "B h w"], top: Edges, left: Edges, h: Edges, w: Edges) -> Edges:
    """Number of hidden places inside each block, from the summed-area table."""
    table = F.pad(hidden.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0))

    def above_left(y: Edges, x: Edges) -> Edges:
        return table.flatten(1).gather(1, y * table.shape[2] + x)

    bottom, right = top + h, left + w
    return above_left(bottom, right) - above_left(top, right) - above_left(bottom, left) + above_left(top, left)


def _fill_up(hidden: Bool[Tensor, "B L"], count: int, generator: torch.Generator) -> Bool[Tensor, "B L"]:
    """Hide random single places until every image has `count`; hidden ones come first in the order."""
    noise = torch.rand(hidden.shape, generator=generator).masked_fill(hidden, 2)
    order = noise.argsort(dim=1, descending=True)[:, :count]
    return torch.zeros_like(hidden).scatter_(1, order, True)
