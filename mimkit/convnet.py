"""VQGAN's convolutional encoder and decoder, as its authors build them or as MaskGIT does; names are the authors'.

Sources: VQGAN (arXiv 2012.09841, appendix A) with its published code; MaskGIT's variant (arXiv 2202.04200) as in MAGE's
published code: convolutions without bias, average pooling, no attention, and a shortcut that reads the branch.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Gt, MultipleOf
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.types import Standardize

Style = Literal["taming", "maskgit"]
Width = Annotated[int, Gt(0), MultipleOf(32)]  # its norms have 32 groups
Multiples = tuple[Annotated[int, Gt(0)], ...]
Maps = Float[Tensor, "_ _ _ _"]  # (B, C, H, W); layers change all but the first


class ConvEncoder(nn.Module):
    """Images (B, in_chans, H, W) to maps (B, z_channels, h, w); each level but the last halves height and width.

    ch, ch_mult: the width, and its multiple at each level. num_res_blocks: residual blocks of a level.
    """

    def __init__(
        self, in_chans: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, style: Style
    ):
        super().__init__()
        plain, last = style == "taming", len(ch_mult) - 1
        widths = [ch, *(ch * multiple for multiple in ch_mult)]
        self.conv_in = nn.Conv2d(in_chans, ch, 3, padding=1, bias=plain)
        self.down = nn.ModuleList()
        for level in range(len(ch_mult)):
            stage = Stage(widths[level], widths[level + 1], num_res_blocks, plain and level == last, style)
            if level != last:
                stage.downsample = Downsample(widths[level + 1]) if plain else nn.AvgPool2d(2)
            self.down.append(stage)
        self.mid = Middle(widths[-1], style)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3 if plain else 1, padding=1 if plain else 0)

    def forward(self, images: Maps) -> Maps:
        """Maps of z_channels."""
        x = self.conv_in(images)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class ConvDecoder(nn.Module):
    """Maps (B, z_channels, h, w) to images (B, out_chans, H, W): the encoder's levels from the last to the first.

    In the authors' style each level has one residual block more than the encoder's.
    """

    def __init__(
        self, out_chans: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, style: Style
    ):
        super().__init__()
        plain, last = style == "taming", len(ch_mult) - 1
        widths = [*(ch * multiple for multiple in ch_mult), ch * ch_mult[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], style)
        self.up = nn.ModuleList()  # the first is of the finest level
        for level in range(len(ch_mult)):
            blocks = num_res_blocks + 1 if plain else num_res_blocks
            stage = Stage(widths[level + 1], widths[level], blocks, plain and level == last, style)
            if level:
                stage.upsample = Upsample(widths[level])
            self.up.append(stage)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_chans, 3, padding=1)

    def forward(self, maps: Maps) -> Maps:
        """Images, on the scale on which they were learned."""
        x = self.mid(self.conv_in(maps))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Stage(nn.Module):
    """The residual blocks of a level, each followed by attention where the level has it; then the change of resolution."""

    def __init__(self, in_width: int, width: int, blocks: int, attention: bool, style: Style):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(width if number else in_width, width, style) for number in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(width) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Maps) -> Maps:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Middle(nn.Module):
    """Two residual blocks, in the authors' style with attention between them."""

    def __init__(self, width: int, style: Style):
        super().__init__()
        self.block_1 = ResnetBlock(width, width, style)
        self.attn_1 = AttnBlock(width) if style == "taming" else nn.Identity()
        self.block_2 = ResnetBlock(width, width, style)

    def forward(self, x: Maps) -> Maps:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nn.Module):
    """Norm, swish and 3x3 convolution, twice, added to the input.

    Where the width changes, a 1x1 convolution stands for the input; it reads the input, in MaskGIT's style the branch.
    """

    def __init__(self, in_width: int, width: int, style: Style):
        super().__init__()
        plain = style == "taming"
        self.norm1 = _norm(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1, bias=plain)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=plain)
        self.nin_shortcut: nn.Conv2d | None = None
        if in_width != width:
            self.nin_shortcut = nn.Conv2d(in_width if plain else width, width, 1, bias=plain)
        self.of_branch = not plain

    def forward(self, x: Maps) -> Maps:
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(branch if self.of_branch else x)
        return x + branch


class AttnBlock(nn.Module):
    """Self-attention of all places with one head, added to the input."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Maps) -> Maps:
        normed = self.norm(x)
        q, k, v = (rearrange(layer(normed), "b c h w -> b 1 (h w) c") for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(mixed, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Half the resolution by a 3x3 convolution; zeros are put at the right and at the bottom alone."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Maps) -> Maps:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution by repeating pixels, then a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Maps) -> Maps:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def scale_of(
    style: Style, in_chans: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Standardize:
    """How images are scaled: by the given values, else to [-1, 1] as VQGAN's authors do, or left in [0, 1] (MaskGIT)."""
    usual = (0.5, 0.5) if style == "taming" else (0.0, 1.0)
    return Standardize(in_chans, mean or (usual[0],) * in_chans, std or (usual[1],) * in_chans)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
