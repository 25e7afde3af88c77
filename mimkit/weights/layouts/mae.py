"""MAE's weights: the authors' files (facebookresearch/mae), timm's `.mae` weights, Hugging Face's `ViTMAE` models."""

from mimkit.weights.layout import Layout

ENCODER = (r"(cls_token|pos_embed|(?:patch_embed|blocks|norm)\..+)", r"encoder.timm_model.\1")
DECODER = (
    (r"mask_token", r"head.mask_token"),
    (r"decoder_pos_embed", r"head.pos_embed"),
    (r"decoder_(blocks|embed|norm)\.(.+)", r"head.\1.\2"),
    (r"decoder_pred\.(.+)", r"head.predict.\1"),
)
AUTHORS = frozenset({"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"})
POSITIONS = "encoder.timm_model.pos_embed"
NO_HEAD = r"head\..+|encoder\.mask_token"  # what a file with the encoder alone need not bring


def _block_rules(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """A block of Hugging Face's, in the names of transformers 5 and, after each |, of 4 and of the files on the hub."""
    return (
        (rf"{theirs}\.attention\.(?:q_proj|attention\.query)\.(.+)", rf"{ours}.attn.qkv.\2"),
        (rf"{theirs}\.attention\.(?:k_proj|attention\.key)\.(.+)", rf"{ours}.attn.qkv.\2"),
        (rf"{theirs}\.attention\.(?:v_proj|attention\.value)\.(.+)", rf"{ours}.attn.qkv.\2"),
        (rf"{theirs}\.attention\.(?:o_proj|output\.dense)\.(.+)", rf"{ours}.attn.proj.\2"),
        (rf"{theirs}\.layernorm_before\.(.+)", rf"{ours}.norm1.\2"),
        (rf"{theirs}\.layernorm_after\.(.+)", rf"{ours}.norm2.\2"),
        (rf"{theirs}\.(?:mlp\.fc1|intermediate\.dense)\.(.+)", rf"{ours}.mlp.fc1.\2"),
        (rf"{theirs}\.(?:mlp\.fc2|output\.dense)\.(.+)", rf"{ours}.mlp.fc2.\2"),
    )


HF_ENCODER = (
    (r"(?:vit\.)?embeddings\.cls_token", r"encoder.timm_model.cls_token"),
    (r"(?:vit\.)?embeddings\.position_embeddings", POSITIONS),
    (r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(.+)", r"encoder.timm_model.patch_embed.proj.\1"),
    *_block_rules(r"(?:vit\.)?(?:layers|encoder\.layer)\.(\d+)", r"encoder.timm_model.blocks.\1"),
    (r"(?:vit\.)?layernorm\.(.+)", r"encoder.timm_model.norm.\1"),
)
HF_DECODER = (
    (r"decoder\.mask_token", r"head.mask_token"),
    (r"decoder\.decoder_pos_embed", r"head.pos_embed"),
    *_block_rules(r"decoder\.decoder_layers\.(\d+)", r"head.blocks.\1"),
    (r"decoder\.decoder_(embed|norm)\.(.+)", r"head.\1.\2"),
    (r"decoder\.decoder_pred\.(.+)", r"head.predict.\1"),
)

LAYOUTS = (
    Layout(
        "MAE, encoder and decoder",
        has=AUTHORS | {"decoder_pred.weight"},
        rename=(ENCODER, *DECODER),
    ),
    Layout(
        "MAE, encoder",
        has=AUTHORS,
        lacks=frozenset({"decoder_pred.weight", "fc_norm.weight"}),
        rename=(ENCODER,),
        absent=NO_HEAD,
        left_over=r"head\..+",  # a linear probe's classifier
    ),
    Layout(
        "MAE, fine-tuned (no final norm; positions were learned)",
        has=AUTHORS | {"fc_norm.weight"},
        rename=(ENCODER,),
        absent=rf"{NO_HEAD}|encoder\.timm_model\.norm\..+",
        left_over=r"(?:fc_norm|head)\..+",
    ),
    Layout(
        "Hugging Face ViTMAEForPreTraining",
        has=frozenset({"vit.embeddings.position_embeddings", "decoder.decoder_pred.weight"}),
        rename=(*HF_ENCODER, *HF_DECODER),
    ),
    Layout(
        "Hugging Face ViTMAEModel",
        has=frozenset({"embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"}),
        rename=HF_ENCODER,
        absent=NO_HEAD,
    ),
)
