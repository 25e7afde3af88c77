"""CAE's weights (lxtGH/CAE): a BEiT with fixed positions, regressor and decoder; without the alignment's copy."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import BEIT, prefixed, timm_names

NORMS = {"norm1_q": "norm_q", "norm1_k": "norm_k", "norm1_v": "norm_v", "norm2_cross": "norm_mlp"}
BLOCK = r"pretext_neck\.regressor_blocks\.(\d+)"

LAYOUTS = (
    Layout(
        "CAE, encoder, regressor and decoder",
        has=prefixed("encoder.", BEIT) | {"pretext_neck.regressor_blocks.0.cross_attn.q.weight"},
        rename=(
            timm_names("encoder."),
            (r"mask_token", r"head.mask_token"),
            *((rf"{BLOCK}\.{theirs}\.(.+)", rf"head.regressor.\1.{ours}.\2") for theirs, ours in NORMS.items()),
            (rf"{BLOCK}\.cross_attn\.([qv])_bias", r"head.regressor.\1.attn.\2.bias"),
            (rf"{BLOCK}\.(gamma_[12])_cross", r"head.regressor.\1.\2"),
            (rf"{BLOCK}\.(?:cross_)?(attn|mlp)(?:_cross)?\.(.+)", r"head.regressor.\1.\2.\3"),
            (r"pretext_neck\.decoder_blocks\.(.+)", r"head.decoder.\1"),
            (r"pretext_neck\.norm\.(.+)", r"head.regressor_norm.\1"),
            (r"pretext_neck\.norm2\.(.+)", r"head.decoder_norm.\1"),
            (r"pretext_neck\.head\.(.+)", r"head.predict.\1"),
        ),
    ),
)
