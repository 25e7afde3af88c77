"""Every layout of published weights: a file of it, the model that it fits, and where its tensors belong."""

import mimkit
from tests import published

FIXED = ("pos_embed", "decoder_pos_embed")  # sine-cosine positions, not trained


BASE = {"width": 768, "depth": 12, "heads": 12, "patch": 16, "side": 14}


SWIN_BASE = {"embed": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 6, "patch": 4, "side": 48}


GIANT = {"width": 1408, "depth": 40, "patch": 14, "side": 16, "hidden": 6144}


LEARNED = {"gamma": False, "table": False, "absolute": True}


VIT = {"name": "vit", "embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5}


BEIT = {"name": "beit", "embed_dim": 24, "depth": 4, "num_heads": 3, "patch_size": 5}


PLAIN = BEIT | {"init_values": None, "rel_pos": "none", "abs_pos": True}


FIXED_BEIT = BEIT | {"rel_pos": "none", "abs_pos": "sincos"}


SWIN = {"name": "swin", "embed_dim": 8, "depths": [2, 2, 2], "num_heads": [2, 2, 4], "window_size": 4, "patch_size": 4}


DECODER = {"name": "decoder", "embed_dim": 40, "depth": 3, "num_heads": 5}


PROMPTING, CROSS = DECODER | {"name": "prompting"}, DECODER | {"name": "cross_attention"}


QUANTIZER = {"name": "quantizer", "vocab_size": 30, "code_dim": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}


TIMM = "encoder.timm_model"


CASES = {  # layout: (shapes, encoder, head, feed, {ours: theirs})
    "SimMIM, Swin and linear head": (
        published.simmim_swin(), SWIN, "linear", "all",
        {
            "encoder.mask_token": "encoder.mask_token",
            f"{TIMM}.layers.1.downsample.reduction.weight": "encoder.layers.0.downsample.reduction.weight",
            f"{TIMM}.layers.2.downsample.norm.bias": "encoder.layers.1.downsample.norm.bias",
            f"{TIMM}.layers.2.blocks.1.attn.relative_position_bias_table":
                "encoder.layers.2.blocks.1.attn.relative_position_bias_table",
            f"{TIMM}.patch_embed.norm.weight": "encoder.patch_embed.norm.weight",
            f"{TIMM}.norm.weight": "encoder.norm.weight",
        },
    ),
    "SimMIM, ViT and linear head": (
        published.simmim_vit(), BEIT, "linear", "all",
        {
            "encoder.mask_token": "encoder.mask_token",
            "head.predict.bias": "decoder.0.bias",
            f"{TIMM}.rel_pos_bias.relative_position_bias_table": "encoder.rel_pos_bias.relative_position_bias_table",
            f"{TIMM}.blocks.3.attn.q_bias": "encoder.blocks.3.attn.q_bias",
        },
    ),
    "BEiT, EVA or data2vec, encoder and linear head": (
        published.beit_mim(75), BEIT, "linear", "all",
        {"head.predict.weight": "lm_head.weight", f"{TIMM}.blocks.3.gamma_2": "blocks.3.gamma_2"},
    ),
    "BEiT v2, encoder and patch aggregation": (
        published.beit2(75), BEIT, {"name": "aggregation", "num_heads": 3}, "all",
        {
            "head.predict.bias": "lm_head.bias",
            "head.blocks.1.attn.qkv.weight": "cls_pt_layers.1.attn.qkv.weight",
            "head.blocks.0.gamma_1": "cls_pt_layers.0.gamma_1",
        },
    ),
    "CAE, encoder, regressor and decoder": (
        published.cae(75), FIXED_BEIT, {"name": "regressor", "num_heads": 3}, "visible",
        {
            "head.mask_token": "mask_token",
            "head.predict.weight": "pretext_neck.head.weight",
            "head.regressor.3.attn.q.bias": "pretext_neck.regressor_blocks.3.cross_attn.q_bias",
            "head.regressor.0.attn.k.weight": "pretext_neck.regressor_blocks.0.cross_attn.k.weight",
            "head.regressor.1.norm_mlp.bias": "pretext_neck.regressor_blocks.1.norm2_cross.bias",
            "head.regressor.1.norm_k.weight": "pretext_neck.regressor_blocks.1.norm1_k.weight",
            "head.regressor.2.mlp.fc1.weight": "pretext_neck.regressor_blocks.2.mlp_cross.fc1.weight",
            "head.regressor.2.gamma_1": "pretext_neck.regressor_blocks.2.gamma_1_cross",
            "head.decoder.3.gamma_2": "pretext_neck.decoder_blocks.3.gamma_2",
            "head.regressor_norm.weight": "pretext_neck.norm.weight",
            "head.decoder_norm.weight": "pretext_neck.norm2.weight",
            f"{TIMM}.blocks.3.attn.v_bias": "encoder.blocks.3.attn.v_bias",
        },
    ),
    "VQ-KD tokenizer": (
        published.vqkd(target=75, training=True), PLAIN, QUANTIZER, "all",
        {
            "head.codebook": "quantize.embedding.weight",
            "head.counts": "quantize.cluster_size",
            "head.encode.2.bias": "encode_task_layer.2.bias",
            "head.decode.0.weight": "decode_task_layer.0.weight",
            "head.decoder.norm.weight": "decoder.fc_norm.weight",
            "head.decoder.pos_embed": "decoder.pos_embed",
            f"{TIMM}.norm.bias": "encoder.fc_norm.bias",
            f"{TIMM}.pos_embed": "encoder.pos_embed",
        },
    ),
    "MILAN, encoder and prompting decoder": (
        published.milan(target=75), VIT, PROMPTING, "visible",
        {
            "head.blocks.2.attn.kv.weight": "decoder_blocks.2.attn.kv.weight",
            "head.mask_token": "mask_token",
            "head.predict.bias": "decoder_pred.bias",
            "head.pos_embed": "decoder_pos_embed",
        },
    ),
    "MaskFeat, encoder and linear head": (
        published.maskfeat(75), VIT | {"pos_embed": "learned"}, "linear", "all",
        {
            f"{TIMM}.norm.weight": "pred_head.transforms.0.0.weight",
            f"{TIMM}.pos_embed": "pos_embed",
            "encoder.mask_token": "mask_token",
            "head.predict.weight": "pred_head.projections.0.weight",
        },
    ),
    "CrossMAE, encoder and cross-attention decoder": (
        published.crossmae(), VIT | {"final_norm": False}, CROSS, "visible",
        {
            "head.mix.weight": "wfm.linear.weight",
            "head.norms.2.bias": "dec_norms.2.bias",
            "head.blocks.1.cross_attn.kv.weight": "decoder_blocks.1.cross_attn.kv.weight",
            "head.pos_embed": "decoder_pos_embed",
        },
    ),
    "MaskDistill, encoder and linear head": (
        published.maskdistill(75), BEIT, "linear", "all",
        {"head.predict.weight": "module.distill_head.weight", "encoder.mask_token": "module.student.mask_token"},
    ),
    "MAE, encoder and decoder": (
        published.mae(), VIT, DECODER, "visible", {"head.blocks.2.mlp.fc1.bias": "decoder_blocks.2.mlp.fc1.bias"}
    ),
    "OpenMMLab's MAE or EVA, encoder and decoder": (
        published.openmmlab_mae(), VIT, DECODER, "visible",
        {
            "head.blocks.2.mlp.fc1.bias": "neck.decoder_blocks.2.ffn.layers.0.0.bias",
            "head.norm.weight": "neck.ln1.weight",
            f"{TIMM}.norm.bias": "backbone.ln1.bias",
            f"{TIMM}.blocks.1.norm2.weight": "backbone.layers.1.ln2.weight",
            f"{TIMM}.patch_embed.proj.weight": "backbone.patch_embed.projection.weight",
        },
    ),
    "OpenMMLab's MILAN, encoder and prompting decoder": (
        published.openmmlab_mae(prompting=True), VIT, PROMPTING, "visible",
        {"head.blocks.2.attn.kv.bias": "neck.decoder_blocks.2.attn.kv.bias"},
    ),
    "OpenMMLab's SimMIM, Swin and linear head": (
        published.openmmlab_simmim(), SWIN, "linear", "all",
        {
            "encoder.mask_token": "backbone.mask_token",
            f"{TIMM}.norm.weight": "backbone.norm3.weight",
            f"{TIMM}.layers.2.blocks.1.attn.qkv.bias": "backbone.stages.2.blocks.1.attn.w_msa.qkv.bias",
            f"{TIMM}.layers.0.blocks.1.mlp.fc2.weight": "backbone.stages.0.blocks.1.ffn.layers.1.weight",
        },
    ),
    "OpenMMLab's MaskFeat, encoder and linear head": (
        published.openmmlab_maskfeat(), VIT | {"pos_embed": "learned"}, "linear", "all",
        {"head.predict.bias": "neck.fc.bias", "encoder.mask_token": "backbone.mask_token"},
    ),
    "OpenMMLab's BEiT, encoder and linear head": (
        published.openmmlab_beit_mim(), BEIT, "linear", "all",
        {
            "head.predict.bias": "head.cls_head.bias",
            f"{TIMM}.blocks.2.gamma_1": "backbone.layers.2.gamma_1",
            f"{TIMM}.blocks.2.attn.v_bias": "backbone.layers.2.attn.v_bias",
            f"{TIMM}.rel_pos_bias.relative_position_bias_table": "backbone.rel_pos_bias.relative_position_bias_table",
        },
    ),
    "OpenMMLab's BEiT v2, encoder and patch aggregation": (
        published.openmmlab_beit_mim(version=2), BEIT, {"name": "aggregation", "num_heads": 3}, "all",
        {
            f"{TIMM}.norm.weight": "neck.norm.weight",
            "head.blocks.1.mlp.fc2.weight": "neck.patch_aggregation.1.ffn.layers.1.weight",
        },
    ),
    "OpenMMLab's VQ-KD tokenizer (no decoder)": (
        published.openmmlab_vqkd(), PLAIN, QUANTIZER, "all",
        {
            f"{TIMM}.norm.weight": "encoder.ln1.weight",
            "head.codebook": "quantize.embedding.weight",
            "head.encode.0.weight": "encode_task_layer.0.weight",
        },
    ),
}  # fmt: skip


def model(encoder, head, feed="all", target="pixels", **mask):
    """A model of 35 px (Swin: 64) on pixels as SimMIM orders them."""
    size = 64 if encoder["name"] == "swin" else 35
    return mimkit.build(
        {
            "method": "test", "image_size": size, "encoder": encoder, "mask": {"name": "random", "feed": feed, **mask},
            "head": head, "target": {"name": target, **({"order": "channel_first"} if target == "pixels" else {})},
            "optim": {"lr": 1e-3}, "train": {"epochs": 1},
        }
    )  # fmt: skip


def parts(into):
    head = next(iter(into.objectives.values())).head.state_dict()
    return {f"encoder.{name}": x for name, x in into.encoder.state_dict().items()} | {
        f"head.{name}": x for name, x in head.items()
    }
