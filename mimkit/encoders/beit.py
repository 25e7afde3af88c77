"""BEiT's Vision Transformer: relative positions, layer scale, no bias on the keys. Source: BEiT (arXiv 2106.08254, appendix).

SimMIM's ViT is the same; VQ-KD's tokenizer (2208.06366), EVA (2211.07636) and CAE (2202.03026) take absolute positions
instead.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import nn

from mimkit.errors import UserError
from mimkit.geometry import grid_of
from mimkit.quick import quicken
from mimkit.transformer import (
    SizeName,
    check_images,
    embed_patches,
    init_trunc_normal,
    init_xavier,
    run_blocks,
    shape_of,
    sincos_positions,
)
from mimkit.types import Encoder, Features, Feed, Images, Mask, Size, Standardize


class Beit(Encoder):
    """Drives timm's Beit: its modules, its names, our token flow.

    Goes with: mask.feed=all, with rel_pos=none also visible; every head that takes this feed.

    size: embed_dim, depth and num_heads at once; each of them may be given besides.
    embed_dim: token width.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: width of the MLP over the token width.
    patch_size: side of a patch in pixels.
    in_chans: channels of the images.
    init_values: initial layer scale; null is none (BEiT: 0.1 for base, 1e-5 for large).
    rel_pos: relative positions, a bias to the attention; one table for all blocks (pre-training), one each, or none.
    abs_pos: absolute positions that are added: learned ones (true), none, or fixed sine-cosine ones, row first (CAE).
    init: normal weights, cut at plus and minus one std (BEiT, SimMIM, EVA) or practically uncut (VQ-KD); xavier has them
        in the tokens and the patch embedding only, and Xavier-uniform linear layers (CAE, base).
    init_std: their std before the cut; EVA: 0.015.
    drop_path: stochastic depth, rising linearly over the blocks to this rate.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        feed: Feed = "all",
        size: SizeName = "base",
        embed_dim: Annotated[int, Gt(0)] | None = None,
        depth: Annotated[int, Gt(0)] | None = None,
        num_heads: Annotated[int, Gt(0)] | None = None,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        patch_size: Annotated[int, Gt(0)] = 16,
        in_chans: Annotated[int, Gt(0)] = 3,
        init_values: Annotated[float, Gt(0)] | None = 0.1,
        rel_pos: Literal["shared", "block", "none"] = "shared",
        abs_pos: bool | Literal["sincos"] = False,
        init: Literal["cut", "normal", "xavier"] = "cut",
        init_std: Annotated[float, Gt(0)] = 0.02,
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.embed_dim, self.num_layers, num_heads = shape_of(size, embed_dim, depth, num_heads)
        self.image_size, self.patch_size, self.in_chans = image_size, patch_size, in_chans
        self.grid, self.rel_pos = grid_of(image_size, patch_size), rel_pos
        if feed != "all" and rel_pos != "none":
            raise UserError(f"encoder.rel_pos={rel_pos} needs all places: set mask.feed=all, or encoder.rel_pos=none")
        if abs_pos == "sincos" and self.embed_dim % 4:
            raise UserError(f"encoder.embed_dim={self.embed_dim} must be divisible by 4 for encoder.abs_pos=sincos")
        from timm.models.beit import Beit as TimmBeit

        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
        self.standardize = Standardize(in_chans, mean, std)
        self.timm_model = TimmBeit(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool="",
            embed_dim=self.embed_dim,
            depth=self.num_layers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            norm_layer=norm_layer,
            init_values=init_values,
            use_abs_pos_emb=bool(abs_pos),
            use_rel_pos_bias=rel_pos == "block",
            use_shared_rel_pos_bias=rel_pos == "shared",
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim)) if feed != "visible" else None
        quicken(self.timm_model)
        self._init_weights(init, init_std)
        if abs_pos == "sincos":
            positions = sincos_positions(self.grid, self.embed_dim, column_first=False)
            self.timm_model.pos_embed = nn.Parameter(F.pad(positions, (0, 0, 1, 0)), requires_grad=False)

    @torch.no_grad()
    def _init_weights(self, init: str, std: float) -> None:
        """As the authors: biases 0, normal weights, of which what leaves block l is divided by sqrt(2 l).

        Uncut, the patch projection stays as torch makes it: so it is in the authors' class that VQ-KD builds on.
        """
        beit, cut = self.timm_model, 2.0 if init == "normal" else std
        if init == "xavier":
            init_xavier(beit)
        else:
            init_trunc_normal(beit, std, cut)
            beit.fix_init_weight()
        tokens = [token for token in (beit.cls_token, beit.pos_embed, self.mask_token) if token is not None]
        if init != "normal":
            nn.init.zeros_(beit.patch_embed.proj.bias)
            tokens.append(beit.patch_embed.proj.weight)
        for weight in tokens:
            nn.init.trunc_normal_(weight, std=std, a=-cut, b=cut)

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features (B, N, D) after the final norm; intermediate `layers` before it.

        Raises UserError for images of another size or number of channels, and where relative positions meet a mask
        that feeds a part of the places.
        """
        check_images(self, images)
        full = mask is None or mask.fed is None
        if not full and self.rel_pos != "none":
            raise UserError(f"encoder.rel_pos={self.rel_pos} needs all places: give a mask without fed, or take none")
        beit = self.timm_model
        positions = None if beit.pos_embed is None else beit.pos_embed[:, 1:]
        tokens = embed_patches(beit.patch_embed.proj, self.standardize(images), mask, self.mask_token, positions)
        cls = beit.cls_token if beit.pos_embed is None else beit.cls_token + beit.pos_embed[:, :1]
        sequence = torch.cat([cls.expand(len(images), -1, -1), tokens], dim=1)
        bias = None if beit.rel_pos_bias is None else beit.rel_pos_bias()
        added = None if bias is None else bias[None]  # the fused attention of CPUs asks for the batch's axis
        sequence, outputs = run_blocks(beit.blocks, sequence, layers, shared_rel_pos_bias=added)
        return Features(
            sequence=beit.norm(sequence),
            num_prefix_tokens=1,
            grid=self.grid if full else None,
            layers=outputs,
            norm=beit.norm,
            attn_bias=bias,
        )
