"""Hugging Face's models for masked images: ViTMAE, and SimMIM's and BEiT's as `…ForMaskedImageModeling`."""

from mimkit.weights.layout import Layout, Rule
from mimkit.weights.layouts._parts import CONVOLUTION, NO_HEAD, next_stage

VIT = "encoder.timm_model"


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A block, in the names of transformers 5 and, after each |, of 4 and of the files on the hub."""
    linear = {
        r"attention\.(?:q_proj|(?:attention|self)\.query)": "attn.qkv",
        r"attention\.(?:k_proj|(?:attention|self)\.key)": "attn.qkv",
        r"attention\.(?:v_proj|(?:attention|self)\.value)": "attn.qkv",
        r"attention\.(?:o_proj|output\.dense)": "attn.proj",
        r"layernorm_before": "norm1",
        r"layernorm_after": "norm2",
        r"(?:mlp\.fc1|intermediate\.dense)": "mlp.fc1",
        r"(?:mlp\.fc2|output\.dense)": "mlp.fc2",
    }
    table = r"attention\.(?:self\.|(?:attention\.)?relative_position_bias\.)relative_position_bias_table"
    return (
        *((rf"{theirs}\.{old}\.(?P<rest>.+)", rf"{ours}.{new}.\g<rest>") for old, new in linear.items()),
        (rf"{theirs}\.{table}", rf"{ours}.attn.relative_position_bias_table"),
    )


def _vit_rules(prefix: str) -> tuple[Rule, ...]:
    return (
        (rf"{prefix}embeddings\.cls_token", rf"{VIT}.cls_token"),
        (rf"{prefix}embeddings\.mask_token", r"encoder.mask_token"),
        (rf"{prefix}embeddings\.position_embeddings", rf"{VIT}.pos_embed"),
        (rf"{prefix}embeddings\.patch_embeddings\.projection\.(.+)", rf"{VIT}.patch_embed.proj.\1"),
        *_block_rules(rf"{prefix}(?:layers|encoder\.layer)\.(\d+)", rf"{VIT}.blocks.\1"),
        (rf"{prefix}layernorm\.(.+)", rf"{VIT}.norm.\1"),
    )


MAE_DECODER = (
    (r"decoder\.mask_token", r"head.mask_token"),
    (r"decoder\.decoder_pos_embed", r"head.pos_embed"),
    *_block_rules(r"decoder\.decoder_layers\.(\d+)", r"head.blocks.\1"),
    (r"decoder\.decoder_(embed|norm)\.(.+)", r"head.\1.\2"),
    (r"decoder\.decoder_pred\.(.+)", r"head.predict.\1"),
)
SWIN: tuple[Rule, ...] = (
    (r"swin\.embeddings\.mask_token", r"encoder.mask_token"),
    (r"swin\.embeddings\.patch_embeddings\.projection\.(.+)", rf"{VIT}.patch_embed.proj.\1"),
    (r"swin\.embeddings\.norm\.(.+)", rf"{VIT}.patch_embed.norm.\1"),
    (r"swin\.encoder\.layers\.(?P<stage>\d+)\.downsample\.(?P<rest>.+)", next_stage),
    *_block_rules(r"swin\.encoder\.layers\.(\d+)\.(blocks\.\d+)", rf"{VIT}.layers.\1.\2"),
    (r"swin\.layernorm\.(.+)", rf"{VIT}.norm.\1"),
)
BEIT_BLOCK = r"beit\.(?:layers|encoder\.layer)\.(\d+)"
BEIT = (
    (rf"{BEIT_BLOCK}\.lambda_([12])", rf"{VIT}.blocks.\1.gamma_\2"),
    (rf"{BEIT_BLOCK}\.attention\.(?:q_proj|attention\.query)\.bias", rf"{VIT}.blocks.\1.attn.q_bias"),
    (rf"{BEIT_BLOCK}\.attention\.(?:v_proj|attention\.value)\.bias", rf"{VIT}.blocks.\1.attn.v_bias"),
    (
        r"beit\.(?:shared_position_bias|encoder\.relative_position_bias)\.relative_position_bias_table",
        rf"{VIT}.rel_pos_bias.relative_position_bias_table",
    ),
    *_vit_rules(r"beit\."),
    (r"layernorm\.(.+)", rf"{VIT}.norm.\1"),
    (r"lm_head\.(.+)", r"head.predict.\1"),
)
CONVOLVED = ((r"decoder\.0\.(.+)", r"head.predict.\1"),)
INDEX = r".+relative_position_index"

LAYOUTS = (
    Layout(
        "Hugging Face ViTMAEForPreTraining",
        has=frozenset({"vit.embeddings.position_embeddings", "decoder.decoder_pred.weight"}),
        rename=(*_vit_rules(r"vit\."), *MAE_DECODER),
    ),
    Layout(
        "Hugging Face ViTMAEModel",
        has=frozenset({"embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"}),
        rename=_vit_rules(""),
        absent=NO_HEAD,
    ),
    Layout(
        "Hugging Face ViTForMaskedImageModeling",
        has=frozenset({"vit.embeddings.position_embeddings", "vit.embeddings.mask_token", "decoder.0.weight"}),
        rename=(*_vit_rules(r"vit\."), *CONVOLVED),
        convert=(CONVOLUTION,),
    ),
    Layout(
        "Hugging Face SwinForMaskedImageModeling",
        has=frozenset({"swin.embeddings.mask_token", "decoder.0.weight"}),
        rename=(*SWIN, *CONVOLVED),
        convert=(CONVOLUTION,),
        left_over=INDEX,
    ),
    Layout(
        "Hugging Face BeitForMaskedImageModeling",
        has=frozenset({"beit.embeddings.mask_token", "lm_head.weight"}),
        rename=BEIT,
        left_over=INDEX,
    ),
)
