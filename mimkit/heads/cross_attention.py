"""CrossMAE's decoder: predicted places attend to mixed encoder layers, never to each other. Source: arXiv 2401.14391, 3."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.quick import quicken
from mimkit.transformer import CrossAttention as Attention
from mimkit.transformer import decoder_positions, init_xavier
from mimkit.types import Features, Head, Mask, Size


class CrossAttention(Head):
    """Decoder without self-attention; each block reads its own learned mixture of all encoder layers, before their norm.

    Goes with: either mask.feed, and an encoder that gives its layers (vit, beit, eva).

    embed_dim: token width.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: width of the MLP over the token width.
    use_input: whether what enters the encoder's first block is mixed in too.
    pos_first: which axis the first half of the sine-cosine positions encodes; column in MAE, row in MoCo v3, CAE, CMAE.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        num_layers: int,
        out_dim: int,
        grid: Size,
        embed_dim: Annotated[int, Gt(0)] = 512,
        depth: Annotated[int, Gt(0)] = 12,
        num_heads: Annotated[int, Gt(0)] = 16,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        use_input: bool = True,
        pos_first: Literal["column", "row"] = "column",
    ):
        super().__init__()
        if not num_layers:
            raise UserError("head 'cross_attention' mixes the encoder's layers, this one gives none: take encoder=vit")
        self.layers = tuple(range(-1 if use_input else 0, num_layers))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", decoder_positions(grid, embed_dim, num_heads, pos_first))
        self.mix = nn.Linear(len(self.layers), depth, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(encoder_dim, eps=1e-6) for _ in range(depth))
        self.blocks = nn.ModuleList(_Block(embed_dim, num_heads, mlp_ratio, encoder_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.predict = nn.Linear(embed_dim, out_dim)
        quicken(self)
        init_xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: Mask) -> Float[Tensor, "*places D"]:
        mixed = torch.einsum("dk,kbne->dbne", self.mix.weight, torch.stack(features.layers))
        positions = self.pos_embed[:, 1:].expand(len(mask.hidden), -1, -1)
        places = self.mask_token + (positions if mask.predicted_index is None else mask.select(positions))
        for block, norm, memory in zip(self.blocks, self.norms, mixed, strict=True):
            places = block(places, norm(memory))
        if mask.predicted_index is None:  # counts differ between images: all places, then the choice
            places = mask.select(places)
        return self.predict(self.norm(places))


class _Block(nn.Module):
    """Attention to the encoder's tokens, then the MLP; the places do not see each other."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, encoder_dim: int):
        super().__init__()
        from timm.layers.mlp import Mlp

        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = Attention(dim, num_heads, memory_dim=encoder_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp: Any = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, places: Float[Tensor, "B P D"], memory: Float[Tensor, "B N E"]) -> Float[Tensor, "B P D"]:
        places = places + self.cross_attn(self.norm1(places), memory)
        return places + self.mlp(self.norm2(places))
