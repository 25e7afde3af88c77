"""MILAN's prompting decoder: what the encoder gave stays as it is, only masked tokens are updated. arXiv 2208.06049, 3.2."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.quick import quicken
from mimkit.transformer import CrossAttention, decoder_positions, init_xavier
from mimkit.types import Features, Feed, Head, Mask, Prediction, Size, gather_places


class Prompting(Head):
    """Decoder whose class token and visible tokens are fixed prompts; it predicts the class token too.

    Goes with: mask.feed=visible (vit, eva; beit with rel_pos=none).

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
        if feed != "visible":
            raise UserError("head 'prompting' takes what the encoder saw as prompts: set mask.feed=visible")
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", decoder_positions(grid, embed_dim, num_heads, pos_first))
        self.blocks = nn.ModuleList(_Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.predict = nn.Linear(embed_dim, out_dim)
        quicken(self)
        init_xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: Mask) -> Prediction:
        assert mask.fed is not None  # feed is visible
        count = mask.fed.shape[1]
        seen = torch.zeros_like(mask.hidden).scatter(1, mask.fed, True)
        unseen = seen.to(torch.uint8).argsort(dim=1, stable=True)[:, : seen.shape[1] - count]  # in raster order
        of_prefix, positions = self.pos_embed[:, :1], self.pos_embed[0, 1:]
        embedded = self.embed(features.sequence)
        prefix, fed = embedded.split((features.num_prefix_tokens, count), dim=1)
        prompts = torch.cat([prefix + of_prefix, fed + positions[mask.fed]], dim=1)
        masked = self.mask_token + positions[unseen]
        for block in self.blocks:
            masked = block(masked, prompts)
        prefix, fed = prompts.split((features.num_prefix_tokens, count), dim=1)
        raster = torch.cat([mask.fed, unseen], dim=1).argsort(dim=1)  # where each place stands among fed and masked
        places = mask.select(gather_places(torch.cat([fed, masked], dim=1), raster))
        cls = self.predict(self.norm(prefix[:, 0])) if features.num_prefix_tokens else None
        return Prediction(self.predict(self.norm(places)), cls)


class _Block(nn.Module):
    """Masked tokens attend to the prompts, which no norm touches, and to themselves, normed; then the MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        from timm.layers.mlp import Mlp

        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = CrossAttention(dim, num_heads, memory_dim=dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp: Any = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, masked: Float[Tensor, "B M D"], prompts: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        normed = self.norm1(masked)
        masked = masked + self.attn(normed, torch.cat([prompts, normed], dim=1))
        return masked + self.mlp(self.norm2(masked))
