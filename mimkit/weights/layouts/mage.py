"""MAGE's weights (LTH14/mage): encoder, decoder and tokenizer in one file, with what its authors' class keeps of MAE's."""

import torch
from torch import Tensor

from mimkit.saved.tokenizer import CodeEncoder
from mimkit.types import Encoder
from mimkit.weights.layout import Layout

CLASSES = 1000  # that the vocabulary has room for between the codes and the mask
FAKE_CLASS = 76  # of them the one that stands for all images
NET = r"encoder.timm_model"
EMBEDDING = "token_emb.word_embeddings.weight"


def used_rows(tensor: Tensor, encoder: Encoder) -> Tensor:
    """Of one row per code, class and the mask those of the codes, of the one class in use and of the mask."""
    assert isinstance(encoder, CodeEncoder)
    size = encoder.tokenizer.vocab_size
    if len(tensor) != size + CLASSES + 1:
        return tensor
    return torch.cat([tensor[:size], tensor[[size + FAKE_CLASS, -1]]])


def of_codes(tensor: Tensor, encoder: Encoder) -> Tensor:
    """Of one number per code, class and the mask those of the codes."""
    assert isinstance(encoder, CodeEncoder)
    size = encoder.tokenizer.vocab_size
    return tensor.flatten()[:size] if tensor.numel() == size + CLASSES + 1 else tensor


TOKENS = (
    (r"token_emb\.word_embeddings\.weight", rf"{NET}.code_embed.weight"),
    (r"token_emb\.position_embeddings\.weight", rf"{NET}.pos_embed"),
    (r"token_emb\.LayerNorm\.(.+)", rf"{NET}.embed_norm.\1"),
    (r"((?:blocks|norm)\..+)", rf"{NET}.\1"),
    (r"vqgan\.encoder\.(.+)", rf"{NET}.tokenizer.encoder.timm_model.\1"),
    (r"vqgan\.decoder\.(.+)", rf"{NET}.tokenizer.head.decoder.\1"),
    (r"vqgan\.quantize\.embedding\.weight", rf"{NET}.tokenizer.head.codebook.weight"),
)
LIE_OTHERWISE = (
    (r"encoder\.timm_model\.code_embed\.weight", used_rows),
    (r"encoder\.timm_model\.pos_embed", lambda tensor, _: tensor[None]),
    (r"head\.bias", of_codes),
)
COUNTS = r"encoder\.timm_model\.tokenizer\.head\.counts"  # of the codes' use in training
UNUSED = r"token_emb\.position_ids|cls_token|mask_token|pos_embed|decoder_pos_embed|(?:patch_embed|decoder_pred)\..+"

LAYOUTS = (
    Layout(
        "MAGE, encoder, decoder and tokenizer",
        has=frozenset({EMBEDDING, "mlm_layer.bias", "decoder_pos_embed_learned"}),
        rename=(
            *TOKENS,
            (r"decoder_((?:embed|blocks|norm)\..+)", r"head.\1"),
            (r"decoder_pos_embed_learned", r"head.pos_embed"),
            (r"mlm_layer\.fc\.(.+)", r"head.predict.0.\1"),
            (r"mlm_layer\.ln\.(.+)", r"head.predict.2.\1"),
            (r"mlm_layer\.bias", r"head.bias"),
        ),
        convert=LIE_OTHERWISE,
        absent=COUNTS,
        left_over=UNUSED,
        width="head.bias",
    ),
    Layout(
        "MAGE, fine-tuned (no final norm)",
        has=frozenset({EMBEDDING, "fc_norm.weight"}),
        rename=TOKENS,
        convert=LIE_OTHERWISE,
        absent=rf"{COUNTS}|head\..+|encoder\.timm_model\.norm\..+",
        left_over=rf"{UNUSED}|(?:fc_norm|head)\..+",
    ),
)
