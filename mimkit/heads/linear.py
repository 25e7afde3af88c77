"""One linear layer on each token. Source: SimMIM (arXiv 2111.09886, section 3.3), BEiT, MaskFeat."""

from typing import Annotated, Literal

import torch.nn as nn
from annotated_types import Gt
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.types import Features, Feed, Head, Mask, Size


class Linear(Head):
    """A linear layer; the encoder must be fed all places, hidden ones as mask tokens.

    Goes with: mask.feed=all and any encoder.

    A token that stands for several places (Swin) predicts each of them: row (fi, fj, d) of the weight is number d of the
    place fi rows below and fj columns right of the first.

    init: initial weights; normal with init_std (MaskFeat), the same cut at plus and minus init_std (BEiT, EVA), or torch's
        own (SimMIM).
    init_std: their std before the cut; EVA: 0.015.
    """

    reads_coarse = True

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        grid: Size = (1, 1),
        out_grid: Size = (1, 1),
        feed: Feed = "all",
        init: Literal["normal", "cut", "torch"] = "normal",
        init_std: Annotated[float, Gt(0)] = 0.02,
    ):
        super().__init__()
        if feed != "all":
            raise UserError("head 'linear' reads the tokens of hidden places: set mask.feed=all, or take head=decoder")
        self.out_grid = out_grid
        self.places = grid[0] // out_grid[0], grid[1] // out_grid[1]  # of one token
        self.predict = nn.Linear(encoder_dim, self.places[0] * self.places[1] * out_dim)
        if init != "torch":
            cut = init_std if init == "cut" else 2.0
            nn.init.trunc_normal_(self.predict.weight, std=init_std, a=-cut, b=cut)
            nn.init.zeros_(self.predict.bias)

    def forward(self, features: Features, mask: Mask) -> Float[Tensor, "*places D"]:
        if self.places == (1, 1):
            return self.predict(mask.select(features.tokens))
        (rows, _), (fi, fj) = self.out_grid, self.places
        split = rearrange(self.predict(features.tokens), "b (h w) (fi fj d) -> b (h fi w fj) d", h=rows, fi=fi, fj=fj)
        return mask.select(split)
