"""MaskFeat's image models (facebookresearch/SlowFast): the encoder's final norm is counted to the head."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import MASK_TOKEN, VIT, timm_names

LAYOUTS = (
    Layout(
        "MaskFeat, encoder and linear head",
        has=VIT | {"pred_head.projections.0.weight"},
        rename=(
            timm_names(),
            MASK_TOKEN,
            (r"pred_head\.transforms\.0\.0\.(.+)", r"encoder.timm_model.norm.\1"),
            (r"pred_head\.projections\.0\.(.+)", r"head.predict.\1"),
        ),
        left_over=r"hogs\..+",
    ),
)
