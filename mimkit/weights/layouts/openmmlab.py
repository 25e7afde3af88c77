"""OpenMMLab's weights (mmpretrain, mmselfsup) of MAE, EVA, MILAN, SimMIM, MaskFeat, BEiT, BEiT v2 and VQ-KD."""

from mimkit.weights.layout import Layout, Rule
from mimkit.weights.layouts._parts import CONVOLUTION, blocks_of_merging, next_stage

LEFT_OVER = r"target_generator\..+|data_preprocessor\..+|(?:.+\.)?relative_position_index"


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A transformer block; `theirs` has one group, its number."""
    return (
        (rf"{theirs}\.ln([12])\.(.+)", rf"{ours}.norm\2.\3"),
        (rf"{theirs}\.ffn\.layers\.0\.0\.(.+)", rf"{ours}.mlp.fc1.\2"),
        (rf"{theirs}\.ffn\.layers\.1\.(.+)", rf"{ours}.mlp.fc2.\2"),
        (rf"{theirs}\.((?:attn\.|gamma_).+)", rf"{ours}.\2"),
    )


def _encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """A ViT or BEiT."""
    vit = "encoder.timm_model"
    return (
        (rf"{prefix}mask_token", r"encoder.mask_token"),
        (rf"{prefix}(cls_token|pos_embed|rel_pos_bias\.relative_position_bias_table)", rf"{vit}.\1"),
        (rf"{prefix}patch_embed\.projection\.(.+)", rf"{vit}.patch_embed.proj.\1"),
        (rf"{prefix}ln1\.(.+)", rf"{vit}.norm.\1"),
        *_block_rules(rf"{prefix}layers\.(\d+)", rf"{vit}.blocks.\1"),
    )


def decoder_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """MAE's decoder."""
    return (
        (rf"{theirs}\.mask_token", rf"{ours}.mask_token"),
        (rf"{theirs}\.decoder_pos_embed", rf"{ours}.pos_embed"),
        (rf"{theirs}\.decoder_embed\.(.+)", rf"{ours}.embed.\1"),
        *_block_rules(rf"{theirs}\.decoder_blocks\.(\d+)", rf"{ours}.blocks.\1"),
        (rf"{theirs}\.ln1\.(.+)", rf"{ours}.norm.\1"),
        (rf"{theirs}\.decoder_pred\.(.+)", rf"{ours}.predict.\1"),
    )


ENCODER = _encoder_rules(r"backbone\.")
DECODER = decoder_rules("neck", "head")
SWIN: tuple[Rule, ...] = (
    (r"backbone\.mask_token", r"encoder.mask_token"),
    (r"backbone\.patch_embed\.projection\.(.+)", r"encoder.timm_model.patch_embed.proj.\1"),
    (r"backbone\.patch_embed\.norm\.(.+)", r"encoder.timm_model.patch_embed.norm.\1"),
    (r"backbone\.norm3\.(.+)", r"encoder.timm_model.norm.\1"),
    (r"backbone\.stages\.(?P<stage>\d+)\.downsample\.(?P<rest>.+)", next_stage),
    (r"backbone\.stages\.(\d+)\.(blocks\.\d+\.attn)\.w_msa\.(.+)", r"encoder.timm_model.layers.\1.\2.\3"),
    (r"backbone\.stages\.(\d+)\.(blocks\.\d+)\.ffn\.layers\.0\.0\.(.+)", r"encoder.timm_model.layers.\1.\2.mlp.fc1.\3"),
    (r"backbone\.stages\.(\d+)\.(blocks\.\d+)\.ffn\.layers\.1\.(.+)", r"encoder.timm_model.layers.\1.\2.mlp.fc2.\3"),
    (r"backbone\.stages\.(\d+)\.(blocks\.\d+\.norm[12])\.(.+)", r"encoder.timm_model.layers.\1.\2.\3"),
)

LAYOUTS = (
    Layout(
        "OpenMMLab's MAE or EVA, encoder and decoder",
        has=frozenset({"backbone.cls_token", "neck.decoder_pred.weight", "neck.decoder_blocks.0.attn.qkv.weight"}),
        rename=(*ENCODER, *DECODER),
        left_over=LEFT_OVER,
    ),
    Layout(
        "OpenMMLab's MILAN, encoder and prompting decoder",
        has=frozenset({"backbone.cls_token", "neck.decoder_pred.weight", "neck.decoder_blocks.0.attn.q.weight"}),
        rename=(*ENCODER, *DECODER),
        left_over=LEFT_OVER,
    ),
    Layout(
        "OpenMMLab's SimMIM, Swin and linear head",
        has=frozenset({"backbone.stages.0.blocks.0.attn.w_msa.qkv.weight", "neck.decoder.0.weight"}),
        rename=(*SWIN, (r"neck\.decoder\.0\.(.+)", r"head.predict.\1")),
        convert=(
            CONVOLUTION,
            (r"encoder\.timm_model\.layers\.\d+\.downsample\..+", blocks_of_merging),
        ),
        left_over=LEFT_OVER,
    ),
    Layout(
        "OpenMMLab's MaskFeat, encoder and linear head",
        has=frozenset({"backbone.cls_token", "backbone.mask_token", "neck.fc.weight"}),
        rename=(*ENCODER, (r"neck\.fc\.(.+)", r"head.predict.\1")),
        left_over=LEFT_OVER,
    ),
    Layout(
        "OpenMMLab's BEiT, encoder and linear head",
        has=frozenset({"backbone.cls_token", "backbone.mask_token", "head.cls_head.weight"}),
        lacks=frozenset({"neck.norm.weight"}),
        rename=(*ENCODER, (r"head\.cls_head\.(.+)", r"head.predict.\1")),
        left_over=LEFT_OVER,
    ),
    Layout(
        "OpenMMLab's BEiT v2, encoder and patch aggregation",
        has=frozenset({"backbone.cls_token", "neck.patch_aggregation.0.ln1.weight", "head.cls_head.weight"}),
        rename=(
            *ENCODER,
            *_block_rules(r"neck\.patch_aggregation\.(\d+)", r"head.blocks.\1"),
            (r"neck\.norm\.(.+)", r"encoder.timm_model.norm.\1"),
            (r"head\.cls_head\.(.+)", r"head.predict.\1"),
        ),
        left_over=LEFT_OVER,
    ),
    Layout(
        "OpenMMLab's VQ-KD tokenizer (no decoder)",
        has=frozenset({"encoder.layers.0.ln1.weight", "quantize.embedding.weight", "encode_task_layer.0.weight"}),
        rename=(
            *_encoder_rules(r"encoder\."),
            (r"encode_task_layer\.(.+)", r"head.encode.\1"),
            (r"quantize\.embedding\.weight", r"head.codebook"),
            (r"quantize\.cluster_size", r"head.counts"),
        ),
        absent=r"encoder\.mask_token|head\.decode(?:r)?\..+|head\.counts",
        left_over=LEFT_OVER + r"|quantize\.embedding\.initted",
        width="head.decode.2.bias",
    ),
)
