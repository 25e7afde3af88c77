"""Vision Transformer, fed the visible places only (MAE, arXiv 2111.06377) or all with a mask token (SimMIM, BEiT)."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.geometry import grid_of
from mimkit.quick import linear, quicken
from mimkit.transformer import init_xavier, sincos_positions
from mimkit.types import Encoder, Features, Feed, Images, Mask, Size, Standardize, gather_places

SIZES = {  # embed_dim, depth, num_heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


class ViT(Encoder):
    """Drives timm's VisionTransformer: its modules, its names, our token flow.

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
    drop_path: stochastic depth, rising linearly over the blocks to this rate.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        feed: Feed = "visible",
        size: Literal["tiny", "small", "base", "large", "huge"] = "base",
        embed_dim: Annotated[int, Gt(0)] | None = None,
        depth: Annotated[int, Gt(0)] | None = None,
        num_heads: Annotated[int, Gt(0)] | None = None,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        patch_size: Annotated[int, Gt(0)] = 16,
        in_chans: Annotated[int, Gt(0)] = 3,
        class_token: bool = True,
        pos_embed: Literal["sincos", "learned"] = "sincos",
        pos_first: Literal["column", "row"] = "column",
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        named = SIZES[size]
        self.embed_dim, self.num_layers, num_heads = embed_dim or named[0], depth or named[1], num_heads or named[2]
        self.image_size, self.patch_size, self.in_chans = image_size, patch_size, in_chans
        self.grid = grid_of(image_size, patch_size)
        if self.embed_dim % num_heads or (pos_embed == "sincos" and self.embed_dim % 4):
            raise UserError(f"encoder.embed_dim={self.embed_dim} must be divisible by num_heads={num_heads} and by 4")
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
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim)) if feed == "all" else None
        quicken(self.timm_model)
        self._init_weights(pos_embed, pos_first)

    @torch.no_grad()
    def _init_weights(self, pos_embed: str, pos_first: str) -> None:
        """As the authors: Xavier-uniform matrices, the patch projection seen as one; tokens normal with std 0.02."""
        vit = self.timm_model
        init_xavier(vit)
        nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(self.embed_dim, -1))
        for token in (vit.cls_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
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
        vit = self.timm_model
        sequence = self._embed(images, mask)
        if vit.cls_token is not None:
            cls = vit.cls_token + vit.pos_embed[:, :1]
            sequence = torch.cat([cls.expand(len(images), -1, -1).to(sequence.dtype), sequence], dim=1)
        outputs = {}
        for number, block in enumerate(vit.blocks):
            sequence = block(sequence)
            if number in layers:
                outputs[number] = sequence
        full = mask is None or mask.fed is None
        return Features(
            sequence=vit.norm(sequence),
            num_prefix_tokens=vit.num_prefix_tokens,
            grid=self.grid if full else None,
            layers=tuple(outputs[number] for number in layers),
        )

    def _embed(self, images: Images, mask: Mask | None) -> Float[Tensor, "B V D"]:
        """Patch tokens with positions at the fed places, hidden ones replaced by the mask token."""
        if tuple(images.shape[1:]) != (self.in_chans, *self.image_size):
            wanted = "x".join(map(str, (self.in_chans, *self.image_size)))
            raise UserError(f"the encoder reads images of {wanted}, got {'x'.join(map(str, images.shape[1:]))}")
        proj = self.timm_model.patch_embed.proj
        positions = self.timm_model.pos_embed[:, self.timm_model.num_prefix_tokens :]
        patches = rearrange(
            self.standardize(images), "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size
        )
        hidden = mask.hidden if mask is not None else None
        if mask is not None and mask.fed is not None:  # gather pixels first: only what is fed is embedded
            patches, hidden = gather_places(patches, mask.fed), gather_places(mask.hidden, mask.fed)
            positions = positions[0, mask.fed]
        tokens = linear(patches, proj.weight.flatten(1), proj.bias)
        if hidden is not None and self.mask_token is not None:
            tokens = torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)
        return tokens + positions
