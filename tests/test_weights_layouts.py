"""Published layouts of every method: names and shapes as their authors' classes make them, each value where it belongs."""

import re
from functools import partial
from math import prod

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    SwinConfig,
    SwinForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
)

import mimkit
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.weights import importing
from mimkit.weights.published import known_layouts, recognise
from tests import published

FIXED = ("pos_embed", "decoder_pos_embed")  # sine-cosine positions, not trained
BASE = {"width": 768, "depth": 12, "heads": 12, "patch": 16, "side": 14}
SWIN_BASE = {"embed": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 6, "patch": 4, "side": 48}
GIANT = {"width": 1408, "depth": 40, "patch": 14, "side": 16, "hidden": 6144}
LEARNED = {"gamma": False, "table": False, "absolute": True}

VIT = {"name": "vit", "embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5}
BEIT = {"name": "beit", "embed_dim": 24, "depth": 4, "num_heads": 3, "patch_size": 5}
PLAIN = BEIT | {"init_values": None, "rel_pos": "none", "abs_pos": True}
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


@pytest.mark.parametrize("layout", CASES)
def test_every_tensor_of_a_file_finds_its_place(layout):
    """By comparison of tensors; what is left over or absent is what the sheets of the methods say."""
    shapes, encoder, head, feed, expected = CASES[layout]
    state, into = published.tensors(shapes), model(encoder, head, feed)
    report = mimkit.load_official(into, state)
    assert report.layout == layout
    there = parts(into)
    for ours, theirs in expected.items():
        assert torch.equal(there[ours], state[theirs]), ours
    unlearned = r".*(index|attn_mask|initted|embed_avg|embedding.cluster_size)|(hogs|target_gen|scaling|teacher).*"
    assert all(re.fullmatch(unlearned, name) for name in report.left_over)
    assert all(re.fullmatch(rf"encoder.mask_token|head.decode.*|{TIMM}.norm.*", name) for name in report.absent)


def test_each_kind_of_file_is_recognised_by_one_layout():
    """By asking all of them."""
    names = [layout.name for layout in known_layouts()]
    assert len(set(names)) == len(names)
    for name, (shapes, *_) in CASES.items():
        theirs = recognise(published.tensors(shapes)).theirs
        assert [layout.name for layout in known_layouts() if layout.recognises(theirs)] == [name]


def trained(shapes):
    return sum(
        prod(shape) for name, shape in shapes.items() if name not in FIXED and not name.endswith(("index", "mask"))
    )


@pytest.mark.parametrize(
    ("recipe", "shapes", "tensors", "numbers"),
    [
        ("simmim_swin_base", published.simmim_swin(**SWIN_BASE), 365, None),
        ("simmim_vit_base", published.simmim_vit(**BASE), 190, None),
        ("crossmae_vit_base", published.crossmae(decoder=512, decoder_depth=12, **BASE), 347, 127_034_268),
        ("data2vec_vit_base", published.beit_mim(768, **BASE), None, None),
        ("beit2_vit_base", published.beit2(8192, **BASE), None, 106_143_056),
        ("eva_vit_giant", published.beit_mim(768, **GIANT, **LEARNED), None, 1_012_229_632),
        (
            "eva_l",
            published.eva_l(1024, width=1024, depth=24, patch=14, side=16, decoder=512, decoder_depth=4),
            None,
            316_576_768,
        ),
        ("vqkd_vit_base", published.vqkd(8192, 32, 512, decoder_depth=3, training=True, **BASE), None, None),
        ("milan_vit_base", published.milan(decoder=512, decoder_depth=8, target=512, **BASE), None, None),
        ("maskfeat_vit_base", published.maskfeat(108, **BASE), None, None),
        ("maskdistill_vit_base", published.maskdistill(768, **BASE), None, None),
    ],
)
def test_the_published_sizes_fit_the_papers_recipes(recipe, shapes, tensors, numbers, monkeypatch):
    """Against the numbers of tensors and of trained numbers in the published files; without memory for them."""
    assert tensors in (None, len(shapes))
    assert numbers in (None, trained(shapes) if recipe != "eva_vit_giant" else sum(map(prod, shapes.values())))
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))  # rates of drop path
    with torch.device("meta"):
        weights = recognise({name: torch.empty(shape) for name, shape in shapes.items()})
        into = importing._model(load_recipe(f"imagenet/{recipe}"), weights)
        report = mimkit.load_official(into, weights)
    absent = {
        "crossmae_vit_base": {f"{TIMM}.norm.weight", f"{TIMM}.norm.bias"},
        "vqkd_vit_base": {"encoder.mask_token"},
    }
    assert set(report.absent) == absent.get(recipe, set())


def old_names(state):
    """Hugging Face's names before transformers 5, as in the files on the hub."""
    swin = "swin.embeddings.mask_token" in state
    vit = (("layers.", "encoder.layer."),) if not swin else ()
    inner = "attention.self." if swin else "attention.attention."
    for new, old in (
        *vit, ("attention.q_proj", f"{inner}query"), ("attention.k_proj", f"{inner}key"),
        ("attention.v_proj", f"{inner}value"), ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
        ("attention.relative_position_bias.", inner), ("shared_position_bias", "encoder.relative_position_bias"),
    ):  # fmt: skip
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


def hugging_face(kind):
    """A model of theirs with random weights, its size in our words, and how it is asked."""
    torch.manual_seed(5)
    vit = {
        "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 35,
        "patch_size": 5, "layer_norm_eps": 1e-6, "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "swin":
        config = SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[2, 2, 2], num_heads=[2, 2, 4], window_size=4,
            encoder_stride=16, initializer_range=0.3,
        )  # fmt: skip
        theirs, encoder = SwinForMaskedImageModeling(config), SWIN
    elif kind == "vit":
        theirs = ViTForMaskedImageModeling(ViTConfig(**vit, encoder_stride=5))
        encoder = VIT | {"depth": 4, "pos_embed": "learned"}
    else:
        config = BeitConfig(**vit, vocab_size=75, use_mask_token=True, use_shared_relative_position_bias=True)
        theirs, encoder = BeitForMaskedImageModeling(config), BEIT
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return theirs.eval(), encoder


@pytest.mark.parametrize("rename", [dict, old_names], ids=["transformers 5", "before"])
@pytest.mark.parametrize("kind", ["swin", "vit", "beit"])
def test_hugging_faces_models_predict_the_same(kind, rename):
    """Against transformers' own prediction of the whole image with the same places hidden."""
    theirs, encoder = hugging_face(kind)
    into = model(encoder, "linear").eval()
    mimkit.load_official(into, rename(theirs.state_dict()))
    images = torch.rand(2, 3, *into.encoder.image_size)
    hidden = torch.rand(2, prod(into.encoder.grid)) < 0.5
    ours = into(images, mask=mimkit.Mask.from_hidden(hidden, predicted=torch.ones_like(hidden))).prediction
    out = theirs(into.encoder.standardize(images), bool_masked_pos=hidden)
    if kind == "beit":
        wanted = out.logits
    else:
        side, (rows, columns) = into.encoder.patch_size, into.encoder.grid
        wanted = out.reconstruction.unflatten(3, (columns, side)).unflatten(2, (rows, side))
        wanted = wanted.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-5)


def test_a_convolution_before_a_pixel_shuffle_predicts_place_by_place():
    """Against torch's own convolution and pixel shuffle on a map of random features."""
    shapes, into = published.simmim_swin(), model(SWIN, "linear")
    state = published.tensors(shapes)
    mimkit.load_official(into, state)
    features = torch.randn(1, 32, 4, 4)
    image = torch.nn.functional.conv2d(features, state["decoder.0.weight"], state["decoder.0.bias"])
    image = torch.pixel_shuffle(image, 16)
    linear = into.objectives["main"].head.predict(features.flatten(2).mT)
    row, column, fi, fj = 2, 3, 1, 2  # a token, and one of its 4x4 places of 4x4 pixels
    place = linear[0, 4 * row + column].view(4, 4, 48)[fi, fj].view(3, 4, 4)
    top, left = 16 * row + 4 * fi, 16 * column + 4 * fj
    torch.testing.assert_close(place, image[0, :, top : top + 4, left : left + 4], atol=1e-5, rtol=0)


def test_openmmlabs_patch_merging_gives_the_same_features():
    """Against torch's Unfold, norm and linear layer, which is how theirs merges."""
    state, into = published.tensors(published.openmmlab_simmim()), model(SWIN, "linear")
    mimkit.load_official(into, state)
    name = "backbone.stages.0.downsample"
    tokens = torch.randn(2, 16, 16, 8)
    merged = torch.nn.functional.unfold(tokens.permute(0, 3, 1, 2), kernel_size=2, stride=2).mT
    merged = torch.nn.functional.layer_norm(merged, (32,), state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
    wanted = merged @ state[f"{name}.reduction.weight"].mT
    ours = into.encoder.timm_model.layers[1].downsample(tokens).flatten(1, 2)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-5)


def test_evas_mae_style_models_are_turned_towards_the_target():
    """By comparison: their loss drives predictions to minus the target, so the prediction layer changes its sign."""
    state = published.tensors(published.eva_l(75, patch=4, side=5))
    into = mimkit.build(
        {
            "method": "eva", "image_size": 20, "encoder": VIT | {"patch_size": 4}, "mask": "random", "head": DECODER,
            "target": {"name": "pixels"}, "optim": {"lr": 1e-3}, "train": {"epochs": 1},
        }
    )  # fmt: skip
    with pytest.raises(UserError, match="does not fit the model's head 'decoder'"):
        mimkit.load_official(into, state)
    into.objectives["main"].head.predict = torch.nn.Linear(40, 75)
    assert mimkit.load_official(into, state).layout == "EVA in MAE's style, encoder and decoder"
    assert torch.equal(into.objectives["main"].head.predict.bias, -state["decoder_pred.bias"])


WRONG = {  # file, model, words of the message
    "MILAN into MAE": (published.milan(target=75), (VIT, DECODER, "visible"), "MILAN", "model's head 'decoder'"),
    "MAE into MILAN": (published.mae(), (VIT, PROMPTING, "visible"), "MAE", "model's head 'prompting'"),
    "CrossMAE into MAE": (published.crossmae(), (VIT, DECODER, "visible"), "CrossMAE", "only in the file: wfm."),
    "MAE into CrossMAE": (published.mae(), (VIT, CROSS, "visible"), "MAE", "model's head 'cross_attention'"),
    "BEiT v2 into BEiT": (published.beit2(75), (BEIT, "linear"), "BEiT v2", "model's head 'linear'"),
    "BEiT codes into pixels": (published.beit_mim(20), (BEIT, "linear"), "BEiT", "head.predict.weight (20, 24) there"),
    "MaskFeat into BEiT": (published.maskfeat(75), (BEIT, "linear"), "MaskFeat", "does not fit the model;"),
    "SimMIM Swin into a ViT": (published.simmim_swin(), (BEIT, "linear"), "SimMIM, Swin", "does not fit the model;"),
    "another window": (published.simmim_swin(window=2), (SWIN, "linear"), "a window of 2x2", "here it is 4x4"),
    "another grid": (published.beit_mim(75, side=8), (BEIT, "linear"), "8x8 places, here it is 7x7", "image_size=40"),
    "VQ-KD of another size": (published.vqkd(target=75, side=8), (PLAIN, QUANTIZER), "64 places", "image_size=40"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_file_of_another_method_is_refused_in_one_line(mistake):
    """The user's mistake; nothing is loaded."""
    shapes, options, *told = WRONG[mistake]
    into = model(*options)
    before = {name: tensor.clone() for name, tensor in into.state_dict().items()}
    with pytest.raises(UserError) as error:
        mimkit.load_official(into, published.tensors(shapes))
    assert "\n" not in str(error.value)
    for words in told:
        assert words in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in into.state_dict().items())


def test_odd_shapes_are_told_and_never_a_crash():
    """A damaged file: each tensor in turn without axes."""
    for shapes, encoder, head, feed, _ in CASES.values():
        into, state = model(encoder, head, feed), published.tensors(shapes)
        for name in state:
            if any(
                word in name for word in ("predict", "decoder.0", "downsample", "table", "pos_embed", "decoder_pred")
            ):
                with pytest.raises(UserError):
                    mimkit.load_official(into, state | {name: torch.tensor(1.0)})


def test_wrappers_of_names_fall_off(tmp_path, capsys):
    """By round trip: DistributedDataParallel and torch.compile, and SlowFast's key."""
    state = published.tensors(published.maskfeat(75))
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "model_state": wrapped}, tmp_path / "checkpoint.pyth")
    into = model(VIT | {"pos_embed": "learned"}, "linear")
    mimkit.load_official(into, tmp_path / "checkpoint.pyth")
    assert torch.equal(into.encoder.mask_token, state["mask_token"])
