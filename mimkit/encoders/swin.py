"""Swin Transformer with a mask token, hierarchical: one token comes out for many places. Source: SimMIM (arXiv 2111.09886)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from einops import rearrange
from torch import nn

from mimkit.errors import UserError
from mimkit.geometry import grid_of
from mimkit.quick import quicken
from mimkit.transformer import check_dense, check_images
from mimkit.types import Encoder, Features, Feed, Images, Mask, Size, Standardize

Positive = Annotated[int, Gt(0)]


class Swin(Encoder):
    """Drives timm's SwinTransformer: its modules, its names; the mask token takes its place after the patch embedding.

    Goes with: mask.feed=all and head=linear.

    embed_dim: token width of the first stage; each further stage doubles it.
    depths: number of blocks of each stage; each further stage halves rows and columns.
    num_heads: attention heads of each stage.
    window_size: side of the attention's windows in tokens; where a stage has fewer, the window is the stage.
    mlp_ratio: width of the MLP over the token width.
    patch_size: side of a patch in pixels.
    in_chans: channels of the images.
    drop_path: stochastic depth, rising linearly over the blocks to this rate.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    num_layers = 0

    def __init__(
        self,
        *,
        image_size: Size,
        feed: Feed = "all",
        embed_dim: Positive = 128,
        depths: tuple[Positive, ...] = (2, 2, 18, 2),
        num_heads: tuple[Positive, ...] = (4, 8, 16, 32),
        window_size: Positive = 6,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        patch_size: Positive = 4,
        in_chans: Positive = 3,
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.image_size, self.patch_size, self.in_chans = image_size, patch_size, in_chans
        self.grid, self.coarser = grid_of(image_size, patch_size), 2 ** (len(depths) - 1)
        self.embed_dim = embed_dim * self.coarser
        if feed != "all":
            raise UserError("encoder 'swin' reads the tokens of hidden places: set mask.feed=all, or take encoder=vit")
        if len(depths) != len(num_heads):
            raise UserError(
                f"encoder.depths has {len(depths)} stages, encoder.num_heads {len(num_heads)}: give as many"
            )
        if wrong := [heads for stage, heads in enumerate(num_heads) if embed_dim * 2**stage % heads]:
            raise UserError(f"encoder.num_heads holds {wrong[0]}, which does not divide its stage's width")
        _check_windows(image_size, patch_size, len(depths), window_size)
        from timm.models.swin_transformer import SwinTransformer

        self.standardize = Standardize(in_chans, mean, std)
        self.timm_model = SwinTransformer(  # its own initial weights are the authors'
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool="",
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            norm_layer=nn.LayerNorm,  # with torch's eps of 1e-5
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        quicken(self.timm_model)

    @property
    def out_grid(self) -> Size:
        """Rows and columns of the last stage."""
        return self.grid[0] // self.coarser, self.grid[1] // self.coarser

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features (B, N, D) of the last stage after the final norm, N tokens on `out_grid`.

        Raises UserError for images of another size or number of channels, for a mask that feeds a part of the places,
        and where intermediate layers are asked for.
        """
        check_images(self, images)
        check_dense("swin", mask, layers)
        swin = self.timm_model
        tokens = swin.patch_embed(self.standardize(images))
        if mask is not None:
            hidden = rearrange(mask.hidden, "b (h w) -> b h w 1", h=self.grid[0])
            tokens = torch.where(hidden, self.mask_token, tokens)
        out = swin.norm(swin.layers(tokens))
        return Features(rearrange(out, "b h w d -> b (h w) d"), grid=self.out_grid, norm=swin.norm)


def _check_windows(image_size: Size, patch_size: int, stages: int, window: int) -> None:
    """Raises UserError, with the sides that fit, where a stage cannot be halved or is not made of whole windows."""

    def fits(side: int) -> bool:
        sides = [side // (patch_size * 2**stage) for stage in range(stages)]
        return side % (patch_size * 2 ** (stages - 1)) == 0 and all(s <= window or s % window == 0 for s in sides)

    if not all(map(fits, image_size)):
        step = patch_size * 2 ** (stages - 1)
        near = [str(side) for side in range(step, 2 * max(image_size) + step * window, step) if fits(side)]
        raise UserError(
            f"image_size {image_size[0]}x{image_size[1]} does not fit encoder.patch_size={patch_size}, {stages} stages and "
            f"encoder.window_size={window}; sides that fit: {', '.join(near[:8])}"
        )
