"""Vision Transformer, fed the visible places only (MAE, arXiv 2111.06377) or all with a mask token (SimMIM, BEiT)."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
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


class ViT(Encoder):
    """Drives timm's VisionTransformer: its modules, its names, our token flow.

    Goes with: either mask.feed and every head.

    size: embed_dim, depth and num_heads at once; each of them may be given besides.
    embed_dim: token width.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: width of the MLP over the token width.
    patch_size: side of a patch in pixels.
    in_chans: channels of the images.
    class_token: whether a class token goes along.
    pos_embed: fixed sine-cosine positions or learned ones.
    pos_first: which axis the first half of the sine-cosine positions encodes; column in MAE, row in MoCo v3, CAE, CMAE.
    init: MAE's initial weights (Xavier-uniform), or MaskFeat's (truncated normal, std 0.02).
    final_norm: whether the final norm is trained; else it stays as it is (CrossMAE, whose decoder has norms of its own).
    drop_path: stochastic depth, rising linearly over the blocks to this rate.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        feed: Feed = "visible",
        size: SizeName = "base",
        embed_dim: Annotated[int, Gt(0)] | None = None,
        depth: Annotated[int, Gt(0)] | None = None,
        num_heads: Annotated[int, Gt(0)] | None = None,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        patch_size: Annotated[int, Gt(0)] = 16,
        in_chans: Annotated[int, Gt(0)] = 3,
        class_token: bool = True,
        pos_embed: Literal["sincos", "learned"] = "sincos",
        pos_first: Literal["column", "row"] = "column",
        init: Literal["xavier", "trunc_normal"] = "xavier",
        final_norm: bool = True,
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.embed_dim, self.num_layers, num_heads = shape_of(size, embed_dim, depth, num_heads)
        self.image_size, self.patch_size, self.in_chans = image_size, patch_size, in_chans
        self.grid = grid_of(image_size, patch_size)
        if pos_embed == "sincos" and self.embed_dim % 4:
            raise UserError(f"encoder.embed_dim={self.embed_dim} must be divisible by 4, or take pos_embed=learned")
        from timm.models.vision_transformer import VisionTransformer

        self.standardize = Standardize(in_chans, mean, std)
        self.timm_model = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool="",
            embed_dim=self.embed_dim,
            depth=self.num_layers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            class_token=class_token,
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="skip",
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim)) if feed != "visible" else None
        self.timm_model.norm.requires_grad_(final_norm)
        quicken(self.timm_model)
        self._init_weights(init, pos_embed, pos_first)

    @torch.no_grad()
    def _init_weights(self, init: str, pos_embed: str, pos_first: str) -> None:
        """As the authors; the patch projection is seen as one matrix, its bias is left to torch."""
        vit = self.timm_model
        tokens = [token for token in (vit.cls_token, self.mask_token) if token is not None]
        if init == "xavier":
            init_xavier(vit)
            nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(self.embed_dim, -1))
            for token in tokens:
                nn.init.normal_(token, std=0.02)
        else:
            init_trunc_normal(vit, 0.02)
            for weight in (vit.patch_embed.proj.weight, *tokens):
                nn.init.trunc_normal_(weight, std=0.02)
        if pos_embed == "learned":
            nn.init.trunc_normal_(vit.pos_embed, std=0.02)
        else:
            positions = sincos_positions(self.grid, self.embed_dim, column_first=pos_first == "column")
            vit.pos_embed.zero_()  # the class token's position is zero
            vit.pos_embed[:, vit.num_prefix_tokens :] = positions
            vit.pos_embed.requires_grad_(False)

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features (B, N, D) after the final norm; intermediate `layers` before it.

        Raises UserError for images of another size or number of channels.
        """
        check_images(self, images)
        vit, prefix = self.timm_model, self.timm_model.num_prefix_tokens
        positions = vit.pos_embed[:, prefix:]
        sequence = embed_patches(vit.patch_embed.proj, self.standardize(images), mask, self.mask_token, positions)
        if vit.cls_token is not None:
            cls = vit.cls_token + vit.pos_embed[:, :1]
            sequence = torch.cat([cls.expand(len(images), -1, -1), sequence], dim=1)
        sequence, outputs = run_blocks(vit.blocks, sequence, layers)
        full = mask is None or mask.fed is None
        return Features(
            sequence=vit.norm(sequence),
            num_prefix_tokens=prefix,
            grid=self.grid if full else None,
            layers=outputs,
            norm=vit.norm,
        )
