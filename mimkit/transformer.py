"""Parts that encoders and heads share around timm's transformer blocks: sizes, embedding, positions, initial weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.quick import linear
from mimkit.types import Encoder, Images, Mask, Size, gather_places

SizeName = Literal["tiny", "small", "base", "large", "huge"]
SIZES: dict[SizeName, tuple[int, int, int]] = {  # embed_dim, depth, num_heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def shape_of(size: SizeName, embed_dim: int | None, depth: int | None, num_heads: int | None) -> tuple[int, int, int]:
    """embed_dim, depth and num_heads of a named size, each replaced where it is given.

    Raises UserError where the heads do not divide the width.
    """
    named = SIZES[size]
    embed_dim, depth, num_heads = embed_dim or named[0], depth or named[1], num_heads or named[2]
    if embed_dim % num_heads:
        raise UserError(f"encoder.embed_dim={embed_dim} must be divisible by num_heads={num_heads}")
    return embed_dim, depth, num_heads


def check_images(encoder: Encoder, images: Images) -> None:
    """Raises UserError for images of another size or number of channels than the encoder reads."""
    wanted, given = (encoder.in_chans, *encoder.image_size), tuple(images.shape[1:])
    if given != wanted:
        raise UserError(f"the encoder reads images of {'x'.join(map(str, wanted))}, got {'x'.join(map(str, given))}")


def check_dense(name: str, mask: Mask | None, layers: Sequence[int]) -> None:
    """Raises UserError where encoder `name`, which reads all places at once, is asked for a part of them or for layers."""
    if layers:
        raise UserError(f"encoder '{name}' gives no intermediate layers: take encoder=vit or encoder=beit")
    if mask is not None and mask.fed is not None:
        raise UserError(f"encoder '{name}' reads all places: give a mask without fed, or take encoder=vit")


def embed_patches(
    proj: nn.Conv2d,
    images: Float[Tensor, "B C H W"],
    mask: Mask | None,
    mask_token: Float[Tensor, "1 1 D"] | None,
    positions: Float[Tensor, "1 L D"] | None,
    patch_grad: float = 1.0,
) -> Float[Tensor, "B V D"]:
    """Tokens of the fed patches of standardised images, by timm's patch projection; hidden ones are the mask token.

    The tokens have the weights' type also under autocast, so that the residual stream does. patch_grad: factor of the
    gradient that the projection gets.
    """
    p, q = proj.kernel_size
    patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)
    hidden = mask.hidden if mask is not None else None
    if mask is not None and mask.fed is not None:  # gather pixels first: only what is fed is embedded
        patches, hidden = gather_places(patches, mask.fed), gather_places(mask.hidden, mask.fed)
        positions = None if positions is None else positions[0, mask.fed]
    tokens = linear(patches, proj.weight.flatten(1), proj.bias).to(proj.weight.dtype)
    if patch_grad != 1:
        tokens = torch.lerp(tokens.detach(), tokens, patch_grad)  # equal values, less gradient
    if hidden is not None and mask_token is not None:
        tokens = torch.where(hidden[..., None], mask_token, tokens)
    return tokens if positions is None else tokens + positions


def run_blocks(
    blocks: nn.Module, sequence: Float[Tensor, "B N D"], layers: Sequence[int], **shared: Tensor | None
) -> tuple[Float[Tensor, "B N D"], tuple[Float[Tensor, "B N D"], ...]]:
    """What leaves the last block, and the outputs of the blocks `layers`; -1: what enters the first block."""
    outputs = {-1: sequence}
    for number, block in enumerate(blocks.children()):
        sequence = block(sequence, **shared)
        if number in layers:
            outputs[number] = sequence
    return sequence, tuple(outputs[number] for number in layers)


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


def decoder_positions(grid: Size, dim: int, num_heads: int, pos_first: str) -> Float[Tensor, "1 N D"]:
    """A decoder's fixed positions: zero for the class token, then `sincos_positions` of all places.

    Raises UserError where the heads, or the sines and cosines of two axes, do not divide the width.
    """
    if dim % num_heads or dim % 4:
        raise UserError(f"head.embed_dim={dim} must be divisible by num_heads={num_heads} and by 4")
    return F.pad(sincos_positions(grid, dim, pos_first == "column"), (0, 0, 1, 0))


@torch.no_grad()
def init_xavier(module: nn.Module) -> None:
    """MAE's initial weights: every linear layer Xavier-uniform (the fused qkv as one matrix) with bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def init_trunc_normal(module: nn.Module, std: float, cut: float = 2.0) -> None:
    """Every linear layer's weight normal with `std`, truncated at plus and minus `cut`, and its bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std, a=-cut, b=cut)
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


def blocks_with_dropout(dim: int, depth: int, num_heads: int, mlp_ratio: float, dropout: float) -> nn.Sequential:
    """timm's blocks with dropout of attention weights, of the attention's output and of both layers of the MLP."""
    from timm.models.vision_transformer import Block

    norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
    return nn.Sequential(
        *(
            Block(dim, num_heads, mlp_ratio, True, norm_layer=norm_layer, proj_drop=dropout, attn_drop=dropout)
            for _ in range(depth)
        )
    )


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another; layers named as in MILAN and CrossMAE.

    dim: width of the queries and of the result. num_heads: attention heads. memory_dim: width of what is attended to.
    """

    def __init__(self, dim: int, num_heads: int, memory_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(memory_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Float[Tensor, "B P D"], memory: Float[Tensor, "B N M"]) -> Float[Tensor, "B P D"]:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q(queries), *self.kv(memory).chunk(2, dim=-1))
        )
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
