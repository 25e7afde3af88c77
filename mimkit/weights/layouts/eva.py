"""EVA's weights (baaivision/EVA) where they are pre-trained in MAE's style; EVA-01's own are named as BEiT's."""

from collections.abc import Mapping

from torch import Tensor

from mimkit.types import Encoder
from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import DECODER, VIT, timm_names


def predicts_features(theirs: Mapping[str, Tensor]) -> bool:
    """Whether a file of MAE's names predicts something else than the pixels of its patches."""
    pixels = theirs["patch_embed.proj.weight"].shape[1:].numel()
    return theirs["decoder_pred.weight"].shape[:1] != (pixels,)


def _turned(tensor: Tensor, _: Encoder) -> Tensor:
    """The published training minimises the cosine itself: its predictions point away from the target."""
    return -tensor


LAYOUTS = (
    Layout(
        "EVA in MAE's style, encoder and decoder",
        has=VIT | {"decoder_pred.weight", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight"},
        shapes=predicts_features,
        rename=(timm_names(), *DECODER),
        convert=((r"head\.predict\.(?:weight|bias)", _turned),),
    ),
)
