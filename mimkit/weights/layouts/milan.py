"""MILAN's weights (zejiangh/MILAN): MAE's names with queries apart from keys and values in the decoder."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import DECODER, VIT, timm_names

LAYOUTS = (
    Layout(
        "MILAN, encoder and prompting decoder",
        has=VIT | {"decoder_pred.weight", "decoder_blocks.0.attn.q.weight"},
        rename=(timm_names(), *DECODER),
    ),
)
