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
from tests.layouts import (
    BASE,
    BEIT,
    CASES,
    CROSS,
    DECODER,
    FIXED,
    GIANT,
    LEARNED,
    PLAIN,
    PROMPTING,
    QUANTIZER,
    SWIN,
    SWIN_BASE,
    TIMM,
    VIT,
    model,
    parts,
)


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
        ("beit_vit_base", published.beit_mim(8192, **BASE), None, 91_965_776),
        ("beit_vit_base_plain", published.beit_mim(8192, **BASE, **LEARNED), None, None),
        ("cae_vit_base", published.cae(8192, **BASE), 337, None),
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
