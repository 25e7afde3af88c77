"""CMAE's weights (ZhichengHuang/CMAE), names as in its code: encoder, pixel decoder, feature decoder with its projections.

The copies (`target_backbone`, `target_projector`) find no place: they begin anew as the encoder and the projector are.
"""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts.openmmlab import ENCODER, decoder_rules

CONTRAST = r"contrast.head"

LAYOUTS = (
    Layout(
        "CMAE, encoder and both decoders",
        has=frozenset({"backbone.cls_token", "pixel_decoder.decoder_pred.weight", "projector.fc0.weight"}),
        rename=(
            *ENCODER,
            *decoder_rules(r"pixel_decoder", "head"),
            *decoder_rules(r"feature_decoder", f"{CONTRAST}.decoder"),
            (r"projector\.(.+)", rf"{CONTRAST}.projector.\1"),
            (r"head\.predictor\.(.+)", rf"{CONTRAST}.predictor.\1"),
        ),
        note="its authors' code feeds the network blue first: give it images.flip(1), or flip patch_embed.proj.weight's "
        "second axis",
        left_over=r"target_(?:backbone|projector)\..+|data_preprocessor\..+",
    ),
)
