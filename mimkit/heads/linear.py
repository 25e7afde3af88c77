"""One linear layer on each predicted token. Source: SimMIM (arXiv 2111.09886, section 3.3), BEiT, MaskFeat."""

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.types import Features, Feed, Head, Mask


class Linear(Head):
    """A linear layer; the encoder must be fed all places, hidden ones as mask tokens."""

    def __init__(self, *, encoder_dim: int, out_dim: int, feed: Feed = "all"):
        super().__init__()
        if feed != "all":
            raise UserError("head 'linear' reads the tokens of hidden places: set mask.feed=all, or take head=decoder")
        self.predict = nn.Linear(encoder_dim, out_dim)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)

    def forward(self, features: Features, mask: Mask) -> Float[Tensor, "*places D"]:
        return self.predict(mask.select(features.tokens))
