"""BEiT v2's patch aggregation: early patch tokens and the last class token predict once more. arXiv 2208.06366, 2.3."""

from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from mimkit.errors import UserError
from mimkit.quick import quicken
from mimkit.types import Features, Feed, Head, Mask, Prediction


class Aggregation(Head):
    """A linear layer on the encoder's patch tokens, and the same one behind blocks whose patch tokens are early ones.

    Goes with: mask.feed=all and an encoder with a class token that gives its layers (vit, beit, eva).

    The further prediction must go through the class token, which thereby gathers what the image holds. The encoder's
    final norm and its attention bias serve both.

    early_layer: number of encoder blocks after which the patch tokens are taken; null is 3/4 of its depth.
    depth: number of blocks behind them.
    num_heads: attention heads; null is one for each 64 of the encoder's width.
    mlp_ratio: width of the MLP over the token width.
    init_values: initial layer scale; null is none.
    drop_path: rate at the encoder's last block; these blocks take the rates that follow the early layer's.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        num_layers: int,
        out_dim: int,
        feed: Feed = "all",
        early_layer: Annotated[int, Gt(0)] | None = None,
        depth: Annotated[int, Gt(0)] = 2,
        num_heads: Annotated[int, Gt(0)] | None = None,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        init_values: Annotated[float, Gt(0)] | None = 0.1,
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ):
        super().__init__()
        if feed != "all":
            raise UserError("head 'aggregation' reads the tokens of hidden places: set mask.feed=all")
        if not num_layers:
            raise UserError("head 'aggregation' reads an early layer, this encoder gives none: take encoder=beit")
        early = early_layer or max(1, num_layers * 3 // 4)
        if early > num_layers:
            raise UserError(f"head.early_layer={early} is beyond the encoder's {num_layers} blocks")
        self.num_heads = num_heads or max(1, encoder_dim // 64)
        if encoder_dim % self.num_heads:
            raise UserError(f"head.num_heads={self.num_heads} does not divide the encoder's width {encoder_dim}")
        from timm.models.beit import Block

        self.layers = tuple(sorted({early - 1, num_layers - 1}))
        rates = torch.linspace(0, drop_path, max(num_layers, early + depth), device="cpu")[
            early : early + depth
        ].tolist()
        shape: dict[str, Any] = {"mlp_ratio": mlp_ratio, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
        self.blocks: Any = nn.ModuleList(
            Block(encoder_dim, self.num_heads, qkv_bias=True, drop_path=rate, init_values=init_values, **shape)
            for rate in rates
        )
        self.predict = nn.Linear(encoder_dim, out_dim)
        quicken(self)
        self._init_weights(early)

    @torch.no_grad()
    def _init_weights(self, early: int) -> None:
        """As the authors: torch's own weights in the blocks, what enters the residual stream scaled by its depth."""
        for number, block in enumerate(self.blocks, start=early + 1):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight /= (2 * number) ** 0.5
        nn.init.trunc_normal_(self.predict.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.predict.bias)

    def forward(self, features: Features, mask: Mask) -> Prediction:
        """The prediction from the encoder's output, and in `also` the one through the class token.

        Raises UserError where the encoder gives no class token, or an attention bias for another number of heads.
        """
        bias, norm = features.attn_bias, features.norm
        if not features.num_prefix_tokens or norm is None:
            raise UserError("head 'aggregation' needs an encoder with class token and final norm: take encoder=beit")
        if bias is not None and len(bias) != self.num_heads:
            raise UserError(
                f"the encoder's attention bias is for {len(bias)} heads, head.num_heads={self.num_heads}: "
                f"set head.num_heads={len(bias)}"
            )
        prefix = features.num_prefix_tokens
        early, last = features.layers[0], features.layers[-1]
        sequence = torch.cat([last[:, :prefix], early[:, prefix:]], dim=1)
        for block in self.blocks:
            sequence = block(sequence, shared_rel_pos_bias=bias)
        through_cls = norm(mask.select(sequence[:, prefix:]))
        return Prediction(self.predict(mask.select(features.tokens)), also=(self.predict(through_cls),))
