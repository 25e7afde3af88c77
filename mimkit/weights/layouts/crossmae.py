"""CrossMAE's weights (TonyLianLong/CrossMAE): an encoder without a final norm, a decoder that reads all its blocks."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import DECODER, VIT, timm_names

LAYOUTS = (
    Layout(
        "CrossMAE, encoder and cross-attention decoder",
        has=VIT | {"decoder_pred.weight", "decoder_blocks.0.cross_attn.q.weight"},
        rename=(
            timm_names(),
            *DECODER,
            (r"dec_norms\.(.+)", r"head.norms.\1"),
            (r"wfm\.linear\.weight", r"head.mix.weight"),
        ),
        absent=r"encoder\.timm_model\.norm\..+",
    ),
)
