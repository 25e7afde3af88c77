"""BEiT's weights (microsoft/unilm); EVA-01 (eva_psz14.pt) and data2vec's vision models have the same names."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import BEIT, INDEX, MASK_TOKEN, NO_HEAD, timm_names

LAYOUTS = (
    Layout(
        "BEiT, EVA or data2vec, encoder and linear head",
        has=BEIT | {"lm_head.weight"},
        lacks=frozenset({"cls_pt_layers.0.norm1.weight", "blocks.0.mlp.w3.weight"}),
        rename=(timm_names(), MASK_TOKEN, (r"lm_head\.(.+)", r"head.predict.\1")),
        left_over=INDEX,
    ),
    Layout(
        "BEiT, fine-tuned (no final norm)",
        has=BEIT | {"fc_norm.weight"},
        lacks=frozenset({"lm_head.weight"}),
        rename=(timm_names(),),
        absent=rf"{NO_HEAD}|encoder\.timm_model\.norm\..+",
        left_over=rf"{INDEX}|(?:fc_norm|head)\..+",
    ),
)
