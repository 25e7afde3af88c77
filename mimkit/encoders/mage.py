"""A transformer over the codes of a frozen tokenizer: it reads codes in place of pixels. Source: MAGE (arXiv 2211.09117)."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.quick import quicken
from mimkit.saved.tokenizer import CodeEncoder, FrozenTokenizer
from mimkit.transformer import SizeName, blocks_with_dropout, check_images, init_xavier, run_blocks, shape_of
from mimkit.types import Features, Images, Mask, Size, gather_places


class Mage(CodeEncoder):
    """Embeds codes, at hidden places that of the mask, and runs timm's blocks over the places that are fed.

    Goes with: mask=variable and any other, head=code_decoder and every head that takes the mask's feed.

    tokenizer: folder of a run with head=vq_decoder or quantizer, whose codes become the places; a hand-over holds its
        description instead.
    size: embed_dim, depth and num_heads at once; each of them may be given besides.
    embed_dim: token width.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: width of the MLP over the token width.
    dropout: of what enters the first block, of attention weights, of the attention's output and in the MLP.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        tokenizer: str | dict[str, Any],
        size: SizeName = "base",
        embed_dim: Annotated[int, Gt(0)] | None = None,
        depth: Annotated[int, Gt(0)] | None = None,
        num_heads: Annotated[int, Gt(0)] | None = None,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    ):
        super().__init__()
        self.embed_dim, self.num_layers, num_heads = shape_of(size, embed_dim, depth, num_heads)
        found = FrozenTokenizer(tokenizer, "encoder.tokenizer")
        if found.encoder.image_size != image_size:
            height, width = found.encoder.image_size
            raise UserError(
                f"encoder 'mage': its tokenizer reads images of {height}x{width}, image_size is "
                f"{image_size[0]}x{image_size[1]}: set image_size=[{height},{width}], or take another tokenizer"
            )
        self.image_size, self.in_chans = image_size, found.encoder.in_chans
        self.patch_size, self.grid = found.encoder.patch_size, found.encoder.grid
        self.class_code, self.mask_code = found.vocab_size, found.vocab_size + 1
        self.timm_model = _Transformer(found, self.embed_dim, self.num_layers, num_heads, mlp_ratio, dropout)

    def forward(
        self,
        images: Images,
        mask: Mask | None = None,
        layers: Sequence[int] = (),
        codes: Int[Tensor, "B L"] | None = None,
    ) -> Features:
        """Features (B, N, D) of the images' codes after the final norm; intermediate `layers` before it.

        codes: those of the images, where they are known already. Raises UserError for images of another size or number
        of channels.
        """
        check_images(self, images)
        return self.encode(self.tokenizer.codes(images) if codes is None else codes, mask, layers)

    def encode(self, codes: Int[Tensor, "B L"], mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        net: _Transformer = self.timm_model
        if mask is not None:
            codes = torch.where(mask.hidden, self.mask_code, codes)
        codes, index = F.pad(codes, (1, 0), value=self.class_code), None
        if mask is not None and mask.fed is not None:
            index = F.pad(mask.fed + 1, (1, 0))  # the class token is always fed
            codes = gather_places(codes, index)
        sequence, outputs = run_blocks(net.blocks, net.embed(codes, index), layers)
        return Features(
            sequence=net.norm(sequence),
            num_prefix_tokens=1,
            grid=self.grid if index is None else None,
            layers=outputs,
            norm=net.norm,
            code_embed=net.code_embed.weight[: self.class_code],
        )


class _Transformer(nn.Module):
    """The tokenizer, the embedding of codes, class token and mask (in this order), and the blocks."""

    def __init__(
        self,
        tokenizer: FrozenTokenizer,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.code_embed = nn.Embedding(tokenizer.vocab_size + 2, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + prod(tokenizer.encoder.grid), dim))
        self.embed_norm = nn.LayerNorm(dim, eps=1e-6)
        self.embed_drop = nn.Dropout(dropout)
        self.blocks = blocks_with_dropout(dim, depth, num_heads, mlp_ratio, dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        quicken(self.blocks)
        init_xavier(self.blocks)
        nn.init.normal_(self.code_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def embed(self, codes: Int[Tensor, "B N"], index: Int[Tensor, "B N"] | None) -> Float[Tensor, "B N D"]:
        """What enters the first block; `index` says which positions the codes have, None all in their order."""
        positions = self.pos_embed if index is None else self.pos_embed[0, index]
        return self.embed_drop(self.embed_norm(self.code_embed(codes) + positions))
