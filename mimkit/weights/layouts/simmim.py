"""SimMIM's weights (microsoft/SimMIM): a Swin or a BEiT-like ViT, and a convolution before a pixel shuffle."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import BEIT, CONVOLUTION, INDEX, next_stage, prefixed, timm_names

TOKEN_AND_HEAD = (
    (r"encoder\.mask_token", r"encoder.mask_token"),
    (r"decoder\.0\.(.+)", r"head.predict.\1"),
)

LAYOUTS = (
    Layout(
        "SimMIM, Swin and linear head",
        has=frozenset({"encoder.layers.0.blocks.0.attn.qkv.weight", "encoder.mask_token", "decoder.0.weight"}),
        rename=(
            *TOKEN_AND_HEAD,
            (r"encoder\.layers\.(?P<stage>\d+)\.downsample\.(?P<rest>.+)", next_stage),
            (r"encoder\.((?:patch_embed|norm|layers)\..+)", r"encoder.timm_model.\1"),
        ),
        convert=(CONVOLUTION,),
        left_over=rf"{INDEX}|.+\.attn_mask",
    ),
    Layout(
        "SimMIM, ViT and linear head",
        has=prefixed("encoder.", BEIT) | {"decoder.0.weight"},
        rename=(*TOKEN_AND_HEAD, timm_names("encoder.")),
        convert=(CONVOLUTION,),
        left_over=INDEX,
    ),
)
