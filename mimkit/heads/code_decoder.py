"""MAGE's decoder: it predicts codes, by their likeness to the embeddings that the encoder reads them with.

Source: MAGE (arXiv 2211.09117, section 3.2) and its code.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.quick import quicken
from mimkit.transformer import blocks_with_dropout, init_xavier
from mimkit.types import Features, Head, Mask, Size


class CodeDecoder(Head):
    """Transformer over all places, where the class token stands for what was hidden, and scores for every code.

    A score is the product of a feature and the code's embedding; no gradient goes to the embedding by this way.

    Goes with: encoder=mage, target=codes and any mask.

    embed_dim: token width.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: width of the MLP over the token width.
    dropout: of attention weights, of the attention's output and in the MLP.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        grid: Size,
        embed_dim: Annotated[int, Gt(0)] = 768,
        depth: Annotated[int, Gt(0)] = 8,
        num_heads: Annotated[int, Gt(0)] = 16,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"head.embed_dim={embed_dim} must be divisible by num_heads={num_heads}")
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], embed_dim))
        self.blocks = blocks_with_dropout(embed_dim, depth, num_heads, mlp_ratio, dropout)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.predict = nn.Sequential(nn.Linear(embed_dim, encoder_dim), nn.GELU(), nn.LayerNorm(encoder_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        quicken(self)
        init_xavier(self)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, features: Features, mask: Mask) -> Float[Tensor, "*places K"]:
        """Logits. Raises UserError where the encoder's codes are not those that are to be predicted."""
        codes = features.code_embed
        if codes is None or len(codes) != len(self.bias):
            raise UserError(
                "head 'code_decoder' predicts the codes that the encoder reads: take encoder=mage, target=codes"
            )
        sequence = self.blocks(self._fill(self.embed(features.sequence), mask) + self.pos_embed)
        chosen = mask.select(self.norm(sequence)[:, 1:])
        return self.predict(chosen) @ codes.detach().t() + self.bias

    def _fill(self, embedded: Float[Tensor, "B N D"], mask: Mask) -> Float[Tensor, "B M D"]:
        """The class token, then each place in raster order: its own token, or again the class token where it is hidden.

        Hidden places that were fed are overwritten too.
        """
        cls, fed = embedded[:, :1], embedded[:, 1:]
        places = fed
        if mask.fed is not None:
            rows = torch.arange(len(fed), device=fed.device)[:, None]
            places = cls.expand(-1, mask.hidden.shape[1], -1).index_put((rows, mask.fed), fed)
        return torch.cat([cls, torch.where(mask.hidden[..., None], cls, places)], dim=1)
