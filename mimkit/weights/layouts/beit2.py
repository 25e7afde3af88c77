"""BEiT v2's weights (microsoft/unilm): BEiT's names and the blocks that aggregate patches."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import BEIT, INDEX, MASK_TOKEN, timm_names

LAYOUTS = (
    Layout(
        "BEiT v2, encoder and patch aggregation",
        has=BEIT | {"lm_head.weight", "cls_pt_layers.0.norm1.weight"},
        rename=(
            timm_names(),
            MASK_TOKEN,
            (r"cls_pt_layers\.(.+)", r"head.blocks.\1"),
            (r"lm_head\.(.+)", r"head.predict.\1"),
        ),
        left_over=INDEX,
    ),
)
