"""What encoders and heads share around timm's blocks: positions, initial weights, a partial block, quicker layers."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mimkit.types import Size, gather_places

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


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


class QuickAttention(nn.Module):
    """Takes the place of timm's plain `Attention`: the heads are views of the projections, so fewer copies are made."""

    qkv: nn.Module
    proj: nn.Module
    num_heads: int
    head_dim: int

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        split = (*x.shape[:2], self.num_heads, self.head_dim)
        query, key, value = (part.view(split).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class QuickLinear(nn.Linear):
    """nn.Linear by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def quicken(module: nn.Module) -> None:
    """Let linear layers and attentions compute the same in less time; names and weights stay.

    For blocks without dropout and without norms of queries and keys.
    """
    from timm.layers.attention import Attention

    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = QuickLinear
        elif type(layer) is Attention:
            layer.__class__ = QuickAttention  # type: ignore[assignment]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear; in float32 on a CPU by oneDNN, whose products of long thin matrices are the faster ones."""
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and bias is not None
    plain = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    if on_cpu and not plain and ONEDNN:
        return cast(Tensor, _OneDNNLinear.apply(x, weight, bias))
    return F.linear(x, weight, bias)


class _OneDNNLinear(torch.autograd.Function):
    """Forward and the inputs' gradient by oneDNN; the weights' gradient, a long sum, stays with the BLAS."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()  # the same bits whatever the strides were
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        of_x = _product(grad.contiguous(), weight.t(), None) if ctx.needs_input_grad[0] else None
        return of_x, flat.t() @ x.flatten(0, -2), flat.sum(0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
