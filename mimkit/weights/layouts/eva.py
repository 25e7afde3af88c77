"""EVA's weights (baaivision/EVA): EVA-02, and those pre-trained in MAE's style; EVA-01's own are named as BEiT's."""

from collections.abc import Mapping

from torch import Tensor

from mimkit.types import Encoder
from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import DECODER, MASK_TOKEN, VIT, timm_names


def predicts_features(theirs: Mapping[str, Tensor]) -> bool:
    """Whether a file of MAE's names predicts something else than the pixels of its patches."""
    pixels = theirs["patch_embed.proj.weight"].shape[1:].numel()
    return theirs["decoder_pred.weight"].shape[:1] != (pixels,)


def _turned(tensor: Tensor, _: Encoder) -> Tensor:
    """The published training minimises the cosine itself: its predictions point away from the target."""
    return -tensor


MLP = {"w1": "fc1_g", "w2": "fc1_x", "w12": "fc1", "w3": "fc2", "ffn_ln": "norm"}  # theirs, timm's
ROTARY = r"(?:.+\.)?rope\.freqs_(?:cos|sin)"  # computed, not learned
EVA02 = frozenset(
    {"cls_token", "pos_embed", "mask_token", "blocks.0.attn.q_bias", "blocks.0.mlp.w3.weight", "lm_head.weight"}
)
EVA02_NAMES = (
    *((rf"(blocks\.\d+\.mlp)\.{name}\.(.+)", rf"encoder.timm_model.\1.{timms}.\2") for name, timms in MLP.items()),
    timm_names(),
    MASK_TOKEN,
    (r"lm_head\.(.+)", r"head.predict.\1"),
)
LAYOUTS = (
    Layout(
        "EVA in MAE's style, encoder and decoder",
        has=VIT | {"decoder_pred.weight", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight"},
        shapes=predicts_features,
        rename=(timm_names(), *DECODER),
        convert=((r"head\.predict\.(?:weight|bias)", _turned),),
    ),
    Layout(
        "EVA-02, base or large, encoder and linear head",
        has=EVA02 | {"blocks.0.attn.q_proj.weight", "blocks.0.mlp.ffn_ln.weight"},
        rename=((r"(blocks\.\d+\.attn\.[qv])_bias", r"encoder.timm_model.\1_proj.bias"), *EVA02_NAMES),
        left_over=ROTARY,
    ),
    Layout(
        "EVA-02, tiny or small, encoder and linear head",
        has=EVA02 | {"blocks.0.attn.qkv.weight", "blocks.0.mlp.w12.weight"},
        rename=EVA02_NAMES,
        left_over=ROTARY,
    ),
)
