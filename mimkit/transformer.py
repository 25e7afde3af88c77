"""Parts that encoders and heads share around timm's transformer blocks: positions, initial weights, a partial block."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit.quick import linear
from mimkit.types import Size, gather_places


def sincos_positions(grid: Size, dim: int, column_first: bool = True) -> Float[Tensor, "1 L D"]:
    """Fixed 2-D sine-cosine positions for a grid in raster order; integer coordinates, sine block before cosine block.

    column_first: the first half of the width encodes the column (MAE), else the row (MoCo v3, CAE, CMAE).
    Source: MAE (arXiv 2111.06377, appendix A.1); computed in float64, given in float32.
    """
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    axes = (columns, rows) if column_first else (rows, columns)
    angles = [axis.reshape(-1, 1) * omega for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()[None]


@torch.no_grad()
def init_xavier(module: nn.Module) -> None:
    """MAE's initial weights: every linear layer Xavier-uniform (the fused qkv as one matrix) with bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def block_at(block: Any, sequence: Float[Tensor, "B N D"], index: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
    """The output of a timm `Block` at `index` only, exactly as if the whole block had run.

    Queries, residual and MLP are computed at `index`, keys and values everywhere: as a last block, the rest is waste.
    """
    attn = block.attn
    normed = block.norm1(sequence)
    query_weight, kv_weight = attn.qkv.weight.split((attn.attn_dim, 2 * attn.attn_dim))
    query_bias, kv_bias = attn.qkv.bias.split((attn.attn_dim, 2 * attn.attn_dim))
    split = (len(sequence), -1, attn.num_heads, attn.head_dim)
    query = linear(gather_places(normed, index), query_weight, query_bias).view(split)
    key, value = (part.view(split) for part in linear(normed, kv_weight, kv_bias).chunk(2, dim=-1))
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value)
    mixed = attn.proj(mixed.transpose(1, 2).flatten(2))
    chosen = gather_places(sequence, index) + block.drop_path1(block.ls1(mixed))
    return chosen + block.drop_path2(block.ls2(block.mlp(block.norm2(chosen))))
