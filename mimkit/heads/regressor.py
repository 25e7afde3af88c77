"""CAE's regressor and decoder: the features of hidden places are predicted from visible ones, then decoded by themselves.

Source: CAE (arXiv 2202.03026, section 3) and its authors' code.
"""

from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.quick import quicken
from mimkit.transformer import init_trunc_normal, init_xavier, sincos_positions
from mimkit.types import Features, Feed, Head, Mask, Prediction, Size


class Regressor(Head):
    """The regressor's latents, named `latents`, should equal what the encoder makes of the hidden places: see target=ema.

    Goes with: mask.feed=visible and masks of an exact count (vit, eva; beit with rel_pos=none).

    The decoder sees the latents of the predicted places and nothing else. All is as wide as the encoder, so that latents
    and features can be compared.

    regressor_depth: number of blocks in which queries at the predicted places attend to the visible tokens.
    decoder_depth: number of blocks between latents and prediction.
    num_heads: attention heads; null is one for each 64 of the encoder's width.
    mlp_ratio: width of the MLP over the token width.
    init_values: initial layer scale (CAE: 0.1 for base, 1e-5 for large).
    drop_path: stochastic depth, in each of both stacks rising linearly to this rate.
    init: Xavier-uniform linear layers (CAE, base), or BEiT's: normal, cut at one std of 0.02, scaled by depth (large).
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        grid: Size,
        feed: Feed = "visible",
        regressor_depth: Annotated[int, Gt(0)] = 4,
        decoder_depth: Annotated[int, Gt(0)] = 4,
        num_heads: Annotated[int, Gt(0)] | None = None,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        init_values: Annotated[float, Gt(0)] = 0.1,
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
        init: Literal["xavier", "cut"] = "xavier",
    ):
        super().__init__()
        if feed != "visible":
            raise UserError("head 'regressor' predicts hidden places from visible ones: set mask.feed=visible")
        num_heads = num_heads or max(1, encoder_dim // 64)
        if encoder_dim % num_heads or encoder_dim % 4:
            raise UserError(
                f"head 'regressor' is as wide as the encoder, {encoder_dim}: "
                f"it must be divisible by head.num_heads={num_heads} and by 4"
            )
        from timm.models.beit import Block

        shape: dict[str, Any] = {"mlp_ratio": mlp_ratio, "init_values": init_values}
        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder_dim))
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(grid, encoder_dim, column_first=False), persistent=False)
        self.regressor: Any = nn.ModuleList(
            _Block(encoder_dim, num_heads, drop_path=rate, **shape) for rate in _rates(drop_path, regressor_depth)
        )
        self.regressor_norm = norm_layer(encoder_dim)
        self.decoder: Any = nn.ModuleList(
            Block(encoder_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm_layer, **shape)
            for rate in _rates(drop_path, decoder_depth)
        )
        self.decoder_norm = norm_layer(encoder_dim)
        self.predict = nn.Linear(encoder_dim, out_dim)
        quicken(self)
        self._init_weights(init)

    @torch.no_grad()
    def _init_weights(self, init: str) -> None:
        """As the authors, in base and in large; what leaves block l of either stack is divided by sqrt(2 l) in large."""
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        if init == "xavier":
            init_xavier(self)
            return
        init_trunc_normal(self, 0.02, 0.02)
        for stack in (self.regressor, self.decoder):
            for number, block in enumerate(stack, start=1):
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight /= (2 * number) ** 0.5

    def forward(self, features: Features, mask: Mask) -> Prediction:
        """The prediction (B, P, D), and as `latents` the encoder's features as they are expected at these places.

        Raises UserError where the images differ in their number of predicted places.
        """
        assert mask.fed is not None  # feed is visible
        if mask.predicted_index is None:
            raise UserError("head 'regressor' needs as many predicted places in every image: take such a mask")
        visible, positions = features.tokens, self.pos_embed[0]
        at_queries, at_visible = positions[mask.predicted_index], positions[mask.fed]
        at_all = torch.cat([at_visible, at_queries], dim=1)
        latents = self.mask_token.expand(*at_queries.shape)
        for block in self.regressor:
            latents = block(latents, torch.cat([visible, latents], dim=1), at_queries, at_all)
        latents = self.regressor_norm(latents)
        decoded = latents + at_queries
        for block in self.decoder:
            decoded = block(decoded)
        return Prediction(self.predict(self.decoder_norm(decoded)), named={"latents": latents})


class _Block(nn.Module):
    """Cross-attention, then the MLP, whose residual is the normed sum, not the sum itself."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, init_values: float, drop_path: float):
        super().__init__()
        from timm.layers.drop import DropPath
        from timm.layers.mlp import Mlp

        self.norm_q, self.norm_k, self.norm_v, self.norm_mlp = (nn.LayerNorm(dim, eps=1e-6) for _ in range(4))
        self.attn = _CrossAttention(dim, num_heads)
        self.mlp: Any = Mlp(dim, int(dim * mlp_ratio))
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), init_values)) for _ in range(2))
        self.drop_path: Any = DropPath(drop_path)

    def forward(
        self,
        queries: Float[Tensor, "B P D"],
        memory: Float[Tensor, "B N D"],
        at_queries: Float[Tensor, "B P D"],
        at_memory: Float[Tensor, "B N D"],
    ) -> Float[Tensor, "B P D"]:
        read = self.norm_q(queries + at_queries), self.norm_k(memory + at_memory), self.norm_v(memory)
        normed = self.norm_mlp(queries + self.drop_path(self.gamma_1 * self.attn(*read)))
        return normed + self.drop_path(self.gamma_2 * self.mlp(normed))


class _CrossAttention(nn.Module):
    """Queries, keys and values of three inputs; the keys have no bias, as BEiT's."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "B P D"], keys: Float[Tensor, "B N D"], values: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B P D"]:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q(queries), self.k(keys), self.v(values))
        )
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _rates(drop_path: float, depth: int) -> list[float]:
    return torch.linspace(0, drop_path, depth, device="cpu").tolist()
