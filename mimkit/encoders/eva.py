"""EVA-02's Vision Transformer: rotary besides learned positions, SwiGLU, sub-LN. Source: EVA-02 (arXiv 2303.11331)."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from mimkit.errors import UserError
from mimkit.geometry import grid_of
from mimkit.quick import quicken
from mimkit.transformer import check_images, embed_patches, run_blocks, shape_of
from mimkit.types import Encoder, Features, Feed, Images, Mask, Size, Standardize

MLP_RATIO = 4 * 2 / 3  # SwiGLU's three matrices have the parameters of two at ratio 4
# Rotary positions of any grid are spread over that of 224 px in patches of 14, as the authors do for other images.
ROTARY_GRID = (16, 16)


class Eva(Encoder):
    """Drives timm's Eva: its modules, its names, our token flow.

    Goes with: either mask.feed and every head.

    size: embed_dim, depth and num_heads at once; each of them may be given besides.
    embed_dim: token width.
    depth: number of blocks.
    num_heads: attention heads.
    patch_size: side of a patch in pixels.
    in_chans: channels of the images.
    sub_norm: a LayerNorm within the MLP, and each of q, k, v, gate and value by a matrix of its own; null: as EVA-02 has it,
        in base and large.
    patch_grad: factor of the gradient that the patch embedding gets; EVA-02 trains with 0.1.
    drop_path: stochastic depth, rising linearly over the blocks to this rate.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        feed: Feed = "all",
        size: Literal["tiny", "small", "base", "large"] = "base",
        embed_dim: Annotated[int, Gt(0)] | None = None,
        depth: Annotated[int, Gt(0)] | None = None,
        num_heads: Annotated[int, Gt(0)] | None = None,
        patch_size: Annotated[int, Gt(0)] = 14,
        in_chans: Annotated[int, Gt(0)] = 3,
        sub_norm: bool | None = None,
        patch_grad: Annotated[float, Ge(0), Le(1)] = 1.0,
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.embed_dim, self.num_layers, num_heads = shape_of(size, embed_dim, depth, num_heads)
        self.image_size, self.patch_size, self.in_chans = image_size, patch_size, in_chans
        self.grid, self.patch_grad = grid_of(image_size, patch_size), patch_grad
        if self.embed_dim % (4 * num_heads):
            raise UserError(f"encoder.embed_dim={self.embed_dim} must be divisible by 4 * num_heads={4 * num_heads}")
        from timm.models.eva import Eva as TimmEva

        sub_norm = size in ("base", "large") if sub_norm is None else sub_norm
        self.standardize = Standardize(in_chans, mean, std)
        self.timm_model = TimmEva(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool="",
            embed_dim=self.embed_dim,
            depth=self.num_layers,
            num_heads=num_heads,
            qkv_fused=not sub_norm,
            mlp_ratio=MLP_RATIO,
            swiglu_mlp=True,
            scale_mlp=sub_norm,
            drop_path_rate=drop_path,
            use_rot_pos_emb=True,
            ref_feat_shape=ROTARY_GRID,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim)) if feed != "visible" else None
        quicken(self.timm_model)
        self._init_weights(sub_norm)

    @torch.no_grad()
    def _init_weights(self, sub_norm: bool) -> None:
        """As the authors: Xavier-normal linear layers, tokens and positions cut at one std of 0.02.

        With sub-LN, v, the attention's projection and the MLP are scaled by sqrt(log(2 depth)). The patch projection is
        seen as one matrix, its bias is left to torch.
        """
        eva = self.timm_model
        for layer in eva.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(eva.patch_embed.proj.weight.view(self.embed_dim, -1))
        for tokens in (eva.cls_token, eva.pos_embed, self.mask_token):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02, a=-0.02, b=0.02)
        for block in eva.blocks if sub_norm else ():
            attn, mlp = block.attn, block.mlp
            for layer in (attn.v_proj, attn.proj, mlp.fc1_g, mlp.fc1_x, mlp.fc2):
                layer.weight.mul_(math.sqrt(math.log(2 * self.num_layers)))

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features (B, N, D) after the final norm; intermediate `layers` before it.

        Raises UserError for images of another size or number of channels.
        """
        check_images(self, images)
        eva = self.timm_model
        positions, rotary = eva.pos_embed[:, 1:], eva.rope.get_embed()
        if mask is not None and mask.fed is not None:
            rotary = rotary[mask.fed][:, None]  # the same for each head
        pixels = self.standardize(images)
        tokens = embed_patches(eva.patch_embed.proj, pixels, mask, self.mask_token, positions, self.patch_grad)
        cls = (eva.cls_token + eva.pos_embed[:, :1]).expand(len(images), -1, -1)
        sequence = torch.cat([cls, tokens], dim=1)
        sequence, outputs = run_blocks(eva.blocks, sequence, layers, rope=rotary)
        return Features(
            sequence=eva.norm(sequence),
            num_prefix_tokens=1,
            grid=self.grid if mask is None or mask.fed is None else None,
            layers=outputs,
            norm=eva.norm,
        )
