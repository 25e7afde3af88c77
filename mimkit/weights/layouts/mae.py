"""MAE's weights: the authors' files (facebookresearch/mae) and timm's `.mae` weights."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import DECODER, NO_HEAD, VIT, timm_names
from mimkit.weights.layouts.eva import predicts_features

MAGE = "token_emb.word_embeddings.weight"  # whose class is made of MAE's

LAYOUTS = (
    Layout(
        "MAE, encoder and decoder",
        has=VIT | {"decoder_pred.weight", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight"},
        lacks=frozenset({MAGE}),
        shapes=lambda theirs: not predicts_features(theirs),
        rename=(timm_names(), *DECODER),
    ),
    Layout(
        "MAE, encoder",
        has=VIT,
        lacks=frozenset({"decoder_pred.weight", "fc_norm.weight", "pred_head.projections.0.weight", "lm_head.weight"}),
        rename=(timm_names(),),
        absent=NO_HEAD,
        left_over=r"head\..+",  # a linear probe's classifier
    ),
    Layout(
        "MAE, fine-tuned (no final norm; positions were learned)",
        has=VIT | {"fc_norm.weight"},
        lacks=frozenset({MAGE}),
        rename=(timm_names(),),
        absent=rf"{NO_HEAD}|encoder\.timm_model\.norm\..+",
        left_over=r"(?:fc_norm|head)\..+",
    ),
)
