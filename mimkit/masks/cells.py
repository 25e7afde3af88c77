"""Random square cells of several places. Source: SimMIM (arXiv 2111.09886, section 3.2): 32-pixel cells; CMAE's code."""

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.geometry import PlainFeed
from mimkit.masks._count import Rounding, hidden_count
from mimkit.types import Mask, Masking, Size


class Cells(Masking):
    """Random cells, the same number in every image; a cell is hidden as a whole.

    ratio: share of the cells that is hidden.
    cell: places on a side of a cell.
    rounding: how the ratio becomes a number of cells; SimMIM rounds the hidden ones up, CMAE truncates the visible ones.
    feed: whether the encoder is fed the visible places only, or all with mask tokens.
    """

    def __init__(
        self,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.6,
        cell: Annotated[int, Gt(0)] = 2,
        rounding: Rounding = "ceil_hidden",
        feed: PlainFeed = "all",
    ):
        self.ratio, self.cell, self.rounding, self.feed = ratio, cell, rounding, feed

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        """Raises UserError where the grid is not made of whole cells."""
        height, width = grid
        if height % self.cell or width % self.cell:
            fits = [str(side) for side in range(1, min(grid)) if not (height % side or width % side)]
            raise UserError(
                f"mask.cell={self.cell} does not divide the grid of {height}x{width} places; fits: {', '.join(fits) or '1'}"
            )
        rows, columns = height // self.cell, width // self.cell
        count = hidden_count(rows * columns, self.ratio, None, self.rounding, unit="cells")
        order = torch.rand(batch, rows * columns, generator=generator).argsort(dim=1)
        cells = torch.zeros(batch, rows * columns, dtype=torch.bool).scatter_(1, order[:, :count], True)
        hidden = cells.view(batch, rows, columns).repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)
        mask = Mask.from_hidden(hidden.flatten(1), grid=grid)
        return mask.feed_visible() if self.feed == "visible" else mask
