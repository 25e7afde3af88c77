"""MAE's decoder: mask tokens join the encoded visible ones, a small transformer predicts. Source: MAE (arXiv 2111.06377)."""

from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.quick import quicken
from mimkit.transformer import block_at, decoder_positions, init_xavier
from mimkit.types import Features, Feed, Head, Mask, Size


class Decoder(Head):
    """Transformer decoder over all places; only the predicted ones pass its last block's queries and MLP.

    Goes with: either mask.feed, and an encoder with a token for each place (not swin).

    embed_dim: token width.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: width of the MLP over the token width.
    pos_first: which axis the first half of the sine-cosine positions encodes; column in MAE, row in MoCo v3, CAE, CMAE.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        grid: Size,
        feed: Feed = "visible",
        embed_dim: Annotated[int, Gt(0)] = 512,
        depth: Annotated[int, Gt(0)] = 8,
        num_heads: Annotated[int, Gt(0)] = 16,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        pos_first: Literal["column", "row"] = "column",
    ):
        super().__init__()
        from timm.models.vision_transformer import Block

        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if feed != "all" else None
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", decoder_positions(grid, embed_dim, num_heads, pos_first))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer) for _ in range(depth)
        )
        self.norm = norm_layer(embed_dim)
        self.predict = nn.Linear(embed_dim, out_dim)
        quicken(self)
        init_xavier(self)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: Mask) -> Float[Tensor, "*places D"]:
        sequence = self._fill(features, mask)
        prefix = features.num_prefix_tokens
        for block in self.blocks[:-1]:
            sequence = block(sequence)
        if mask.predicted_index is None:  # counts differ between images: the whole block, then the choice
            chosen = mask.select(self.blocks[-1](sequence)[:, prefix:])
        else:
            chosen = block_at(self.blocks[-1], sequence, mask.predicted_index + prefix)
        return self.predict(self.norm(chosen))

    def _fill(self, features: Features, mask: Mask) -> Float[Tensor, "B N D"]:
        """Encoded tokens put back in raster order, mask tokens elsewhere, positions added."""
        embedded = self.embed(features.sequence)
        prefix, fed = embedded.split(
            (features.num_prefix_tokens, embedded.shape[1] - features.num_prefix_tokens), dim=1
        )
        of_prefix, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if mask.fed is None:
            places = fed + positions
        else:
            assert self.mask_token is not None  # not all are fed
            rows = torch.arange(len(fed), device=fed.device)[:, None]
            blank = (self.mask_token + positions).to(fed.dtype).expand(len(fed), -1, -1)
            places = blank.index_put((rows, mask.fed), fed + positions[0, mask.fed].to(fed.dtype))
        return torch.cat([prefix + of_prefix, places], dim=1)
