"""Names and shapes of published weights, {name: shape}, for any size: as their authors' model classes make them."""

from itertools import pairwise

import torch

Shapes = dict[str, tuple[int, ...]]


def layer(name: str, out: int, into: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def mlp(name: str, width: int, fc1: str = "mlp.fc1", fc2: str = "mlp.fc2", hidden: int | None = None) -> Shapes:
    hidden = hidden or 4 * width
    return layer(f"{name}.{fc1}", hidden, width) | layer(f"{name}.{fc2}", width, hidden)


def vit_block(name: str, width: int, norms: str = "norm", **names: str) -> Shapes:
    shapes = norm(f"{name}.{norms}1", width) | norm(f"{name}.{norms}2", width) | mlp(name, width, **names)
    return shapes | layer(f"{name}.attn.qkv", 3 * width, width) | layer(f"{name}.attn.proj", width, width)


def beit_block(name: str, width: int, gamma: bool = True, hidden: int | None = None, norms: str = "norm", **names: str):
    shapes = vit_block(name, width, norms, **names, hidden=hidden)
    del shapes[f"{name}.attn.qkv.bias"]
    shapes |= {f"{name}.attn.{bias}": (width,) for bias in ("q_bias", "v_bias")}
    return shapes | ({f"{name}.gamma_1": (width,), f"{name}.gamma_2": (width,)} if gamma else {})


def vit(width=24, depth=2, patch=5, side=7, chans=3, **_) -> Shapes:
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, side**2 + 1, width)}
    shapes |= layer("patch_embed.proj", width, chans, patch, patch)
    for number in range(depth):
        shapes |= vit_block(f"blocks.{number}", width)
    return shapes | norm("norm", width)


def beit(
    width=24, depth=4, heads=3, patch=5, side=7, chans=3, gamma=True, table=True, absolute=False, hidden=None, **_
) -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, width), **layer("patch_embed.proj", width, chans, patch, patch)}
    if absolute:
        shapes["pos_embed"] = (1, side**2 + 1, width)
    if table:
        shapes["rel_pos_bias.relative_position_bias_table"] = ((2 * side - 1) ** 2 + 3, heads)
        shapes["rel_pos_bias.relative_position_index"] = (side**2 + 1, side**2 + 1)
    for number in range(depth):
        shapes |= beit_block(f"blocks.{number}", width, gamma, hidden)
    return shapes | norm("norm", width)


def mask_token(width=24, **_) -> Shapes:
    return {"mask_token": (1, 1, width)}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def mae(decoder=40, decoder_depth=3, patch=5, chans=3, target=None, **size) -> Shapes:
    shapes = vit(patch=patch, chans=chans, **size)
    width, places = shapes["cls_token"][2], shapes["pos_embed"][1]
    shapes |= {"mask_token": (1, 1, decoder), "decoder_pos_embed": (1, places, decoder)}
    shapes |= layer("decoder_embed", decoder, width)
    for number in range(decoder_depth):
        shapes |= vit_block(f"decoder_blocks.{number}", decoder)
    return shapes | norm("decoder_norm", decoder) | layer("decoder_pred", target or patch**2 * chans, decoder)


def eva_l(target=20, **size) -> Shapes:
    """EVA's MAE-style models."""
    return mae(target=target, **size)


def milan(decoder=40, target=20, **size) -> Shapes:
    shapes = mae(decoder=decoder, target=target, **size)
    for name in [name for name in shapes if name.startswith("decoder_blocks") and name.endswith("qkv.weight")]:
        stem = name.removesuffix(".qkv.weight")
        del shapes[name], shapes[f"{stem}.qkv.bias"]
        shapes |= layer(f"{stem}.q", decoder, decoder) | layer(f"{stem}.kv", 2 * decoder, decoder)
    return shapes


def crossmae(decoder=40, decoder_depth=3, patch=5, chans=3, **size) -> Shapes:
    shapes = vit(patch=patch, chans=chans, **size)
    width, places = shapes["cls_token"][2], shapes["pos_embed"][1]
    depth = sum(name.endswith("norm1.weight") for name in shapes)
    del shapes["norm.weight"], shapes["norm.bias"]
    shapes |= {"mask_token": (1, 1, decoder), "decoder_pos_embed": (1, places, decoder)}
    shapes["wfm.linear.weight"] = (decoder_depth, depth + 1)
    for number in range(decoder_depth):
        name = f"decoder_blocks.{number}"
        shapes |= norm(f"dec_norms.{number}", width) | norm(f"{name}.norm1", decoder) | norm(f"{name}.norm2", decoder)
        shapes |= layer(f"{name}.cross_attn.q", decoder, decoder) | layer(f"{name}.cross_attn.kv", 2 * decoder, width)
        shapes |= layer(f"{name}.cross_attn.proj", decoder, decoder) | mlp(name, decoder)
    return shapes | norm("decoder_norm", decoder) | layer("decoder_pred", patch**2 * chans, decoder)


def beit_mim(target=20, **size) -> Shapes:
    """BEiT and, with other options, EVA-01 (absolute, no table, no gamma) and data2vec (target: the width)."""
    shapes = beit(**size) | mask_token(**size)
    return shapes | layer("lm_head", target, shapes["cls_token"][2])


def beit2(target=20, aggregation=2, **size) -> Shapes:
    shapes = beit_mim(target, **size)
    for number in range(aggregation):
        shapes |= beit_block(f"cls_pt_layers.{number}", shapes["cls_token"][2])
    return shapes


def cae(codes=20, blocks=4, **size) -> Shapes:
    encoder = beit(**size, table=False, absolute=True)
    width = encoder["cls_token"][2]
    neck = norm("norm", width) | norm("norm2", width) | layer("head", codes, width)
    for number in range(blocks):
        name = f"regressor_blocks.{number}"
        for part in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross"):
            neck |= norm(f"{name}.{part}", width)
        neck |= mlp(name, width, "mlp_cross.fc1", "mlp_cross.fc2")
        neck |= {f"{name}.gamma_{part}_cross": (width,) for part in (1, 2)}
        neck |= {f"{name}.cross_attn.{part}.weight": (width, width) for part in "qkv"}
        neck |= {f"{name}.cross_attn.{part}_bias": (width,) for part in "qv"}
        neck |= layer(f"{name}.cross_attn.proj", width, width) | beit_block(f"decoder_blocks.{number}", width)
    return prefixed("encoder.", encoder) | prefixed("pretext_neck.", neck) | mask_token(width)


def maskdistill(target=20, **size) -> Shapes:
    shapes = prefixed("student.", beit(**size) | mask_token(**size))
    return prefixed("module.", shapes | layer("distill_head", target, shapes["student.cls_token"][2]))


def maskfeat(target=20, **size) -> Shapes:
    shapes = vit(**size)
    width = shapes["cls_token"][2]
    del shapes["norm.weight"], shapes["norm.bias"]
    shapes |= (
        mask_token(width) | norm("pred_head.transforms.0.0", width) | layer("pred_head.projections.0", target, width)
    )
    return shapes | {"hogs.0.weight_x": (3, 1, 3, 3), "hogs.0.weight_y": (3, 1, 3, 3)}


def simmim_vit(patch=5, chans=3, **size) -> Shapes:
    shapes = prefixed("encoder.", beit(patch=patch, chans=chans, **size) | mask_token(**size))
    return shapes | layer("decoder.0", chans * patch**2, shapes["encoder.cls_token"][2], 1, 1)


def simmim_swin(embed=8, depths=(2, 2, 2), heads=(2, 2, 4), window=4, patch=4, side=16, chans=3) -> Shapes:
    """side: rows of the patch embedding's places."""
    shapes: Shapes = {"mask_token": (1, 1, embed), **layer("patch_embed.proj", embed, chans, patch, patch)}
    shapes |= norm("patch_embed.norm", embed)
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        width, rows = embed * 2**stage, side // 2**stage
        win = min(window, rows)
        for number in range(depth):
            name = f"layers.{stage}.blocks.{number}"
            shapes |= vit_block(name, width)
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * win - 1) ** 2, head)
            shapes[f"{name}.attn.relative_position_index"] = (win**2, win**2)
            if number % 2 and win < rows:
                shapes[f"{name}.attn_mask"] = ((rows // win) ** 2, win**2, win**2)
    for stage, (width, wider) in enumerate(pairwise(embed * 2**stage for stage in range(len(depths)))):
        shapes[f"layers.{stage}.downsample.reduction.weight"] = (wider, 4 * width)
        shapes |= norm(f"layers.{stage}.downsample.norm", 4 * width)
    width, stride = embed * 2 ** (len(depths) - 1), patch * 2 ** (len(depths) - 1)
    shapes = prefixed("encoder.", shapes | norm("norm", width))
    return shapes | layer("decoder.0", chans * stride**2, width, 1, 1)


def vqkd(codes=30, code_dim=8, target=20, decoder_depth=1, training=False, side=7, **size) -> Shapes:
    plain = {"gamma": False, "table": False, "absolute": True}
    encoder = beit(**size, side=side, **plain)
    width = encoder["cls_token"][2]
    decoder = beit(width=width, depth=decoder_depth, patch=1, chans=code_dim, side=side, **plain)
    shapes = prefixed("encoder.", _fc_norm(encoder)) | prefixed("decoder.", _fc_norm(decoder))
    shapes |= {"quantize.embedding.weight": (codes, code_dim), "quantize.embedding.embed_avg": (codes, code_dim)}
    shapes |= {"quantize.embedding.cluster_size": (codes,), "quantize.embedding.initted": (1,)}
    shapes["quantize.cluster_size"] = (codes,)
    shapes |= layer("encode_task_layer.0", width, width) | layer("encode_task_layer.2", code_dim, width)
    shapes |= layer("decode_task_layer.0", width, width) | layer("decode_task_layer.2", target, width)
    extra = {"scaling_layer.shift": (1, 3, 1, 1), "scaling_layer.scale": (1, 3, 1, 1), "teacher_model.proj": (4, 4)}
    return shapes | (extra if training else {})


def _fc_norm(shapes: Shapes) -> Shapes:
    return {("fc_" + name if name.startswith("norm.") else name): shape for name, shape in shapes.items()}


FFN = {"norms": "ln", "fc1": "ffn.layers.0.0", "fc2": "ffn.layers.1"}  # OpenMMLab's names in a block


def openmmlab_vit(prefix="backbone.", width=24, depth=2, patch=5, side=7, chans=3, masked=False) -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, side**2 + 1, width)}
    shapes |= layer("patch_embed.projection", width, chans, patch, patch) | norm("ln1", width)
    for number in range(depth):
        shapes |= vit_block(f"layers.{number}", width, **FFN)
    return prefixed(prefix, shapes | (mask_token(width) if masked else {}))


def openmmlab_beit(
    prefix="backbone.", width=24, depth=4, heads=3, patch=5, side=7, gamma=True, table=True, masked=True, final=True
) -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, width), **layer("patch_embed.projection", width, 3, patch, patch)}
    shapes |= (mask_token(width) if masked else {}) | (norm("ln1", width) if final else {})
    if table:
        shapes["rel_pos_bias.relative_position_bias_table"] = ((2 * side - 1) ** 2 + 3, heads)
        shapes["rel_pos_bias.relative_position_index"] = (side**2 + 1, side**2 + 1)
    else:
        shapes["pos_embed"] = (1, side**2 + 1, width)
    for number in range(depth):
        shapes |= beit_block(f"layers.{number}", width, gamma, **FFN)
    return prefixed(prefix, shapes)


def openmmlab_mae(decoder=40, decoder_depth=3, target=75, prompting=False, **size) -> Shapes:
    shapes = openmmlab_vit(**size)
    width, places = shapes["backbone.cls_token"][2], shapes["backbone.pos_embed"][1]
    neck: Shapes = {"mask_token": (1, 1, decoder), "decoder_pos_embed": (1, places, decoder), **norm("ln1", decoder)}
    neck |= layer("decoder_embed", decoder, width) | layer("decoder_pred", target, decoder)
    for number in range(decoder_depth):
        name = f"decoder_blocks.{number}"
        neck |= vit_block(name, decoder, **FFN)
        if prompting:
            del neck[f"{name}.attn.qkv.weight"], neck[f"{name}.attn.qkv.bias"]
            neck |= layer(f"{name}.attn.q", decoder, decoder) | layer(f"{name}.attn.kv", 2 * decoder, decoder)
    return shapes | prefixed("neck.", neck)


def cmae(decoder=40, decoder_depth=3, hidden=36, dim=12, target=75, **size) -> Shapes:
    """Names of the code; the copies are files' too."""
    online = openmmlab_mae(decoder, decoder_depth, target, **size)
    features = openmmlab_mae(decoder, 2, online["backbone.cls_token"][2], **size)
    width = online["backbone.cls_token"][2]
    shapes = {name: shape for name, shape in online.items() if name.startswith("backbone.")}
    shapes |= {f"target_{name}": shape for name, shape in shapes.items() if not name.startswith("backbone.ln1.")}
    for theirs, part in ((online, "pixel_decoder"), (features, "feature_decoder")):
        shapes |= {
            name.replace("neck.", f"{part}."): shape for name, shape in theirs.items() if name.startswith("neck.")
        }
    for name, wide in (("projector", width), ("target_projector", width), ("head.predictor", dim)):
        shapes |= (
            layer(f"{name}.fc0", hidden, wide) | {f"{name}.fc1.weight": (dim, hidden)} | norm(f"{name}.bn0", hidden)
        )
        shapes |= {
            f"{name}.bn0.running_mean": (hidden,),
            f"{name}.bn0.running_var": (hidden,),
            f"{name}.bn0.num_batches_tracked": (),
        }
    return shapes


def openmmlab_maskfeat(target=75, **size) -> Shapes:
    shapes = openmmlab_vit(masked=True, **size)
    shapes |= {"target_generator.weight_x": (3, 1, 3, 3), "target_generator.gaussian_kernel": (16, 16)}
    return shapes | layer("neck.fc", target, shapes["backbone.cls_token"][2])


def openmmlab_beit_mim(target=75, version=1, **size) -> Shapes:
    shapes = openmmlab_beit(final=version == 1, **size)
    width = shapes["backbone.cls_token"][2]
    if version == 2:
        shapes |= norm("neck.norm", width)
        for number in range(2):
            shapes |= beit_block(f"neck.patch_aggregation.{number}", width, **FFN)
    return shapes | layer("head.cls_head", target, width) | {"target_generator.encoder.ln1.weight": (24,)}


def openmmlab_vqkd(codes=30, code_dim=8, **size) -> Shapes:
    shapes = openmmlab_beit("encoder.", gamma=False, table=False, masked=False, **size)
    width = shapes["encoder.cls_token"][2]
    shapes |= {"quantize.embedding.weight": (codes, code_dim), "quantize.embedding.initted": (1,)}
    shapes |= {"quantize.cluster_size": (codes,)}
    return shapes | layer("encode_task_layer.0", width, width) | layer("encode_task_layer.2", code_dim, width)


def openmmlab_simmim(**size) -> Shapes:
    shapes: Shapes = {}
    for name, shape in simmim_swin(**size).items():
        new = name.replace("encoder.layers.", "encoder.stages.").replace("encoder.", "backbone.")
        for old, mm in (
            ("proj.", "projection."), (".mlp.fc1", ".ffn.layers.0.0"), (".mlp.fc2", ".ffn.layers.1"),
            ("backbone.norm.", "backbone.norm3."), ("decoder.0", "neck.decoder.0"), (".attn.", ".attn.w_msa."),
            ("w_msa.projection.", "w_msa.proj."),
        ):  # fmt: skip
            new = new.replace(old, mm)
        shapes |= {} if name.endswith("attn_mask") else {new: shape}
    return shapes


def tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Random ones; indices whole numbers."""
    return {
        name: torch.zeros(shape, dtype=torch.long) if name.endswith("position_index") else torch.randn(shape)
        for name, shape in shapes.items()
    }
