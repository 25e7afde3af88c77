"""Authors' weights: names and shapes as published, every difference told, nothing loaded by halves."""

import argparse
import re

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEModel

import mimkit
from mimkit.encoders.vit import ViT
from mimkit.errors import UserError
from mimkit.transformer import sincos_positions

TINY = {"width": 24, "depth": 2, "decoder": 40, "decoder_depth": 3, "patch": 5, "size": 35}
BASE = {"width": 768, "depth": 12, "decoder": 512, "decoder_depth": 8, "patch": 16, "size": 224}


def block(prefix, width):
    return {
        f"{prefix}.{name}": torch.rand(shape)
        for name, shape in {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
        }.items()
    }  # fmt: skip


def positions(side, width, column_first=True):
    return torch.cat([torch.zeros(1, 1, width), sincos_positions((side, side), width, column_first)], dim=1)


def encoder_file(width, depth, patch, size, **_):
    state = {"cls_token": torch.rand(1, 1, width), "pos_embed": positions(size // patch, width)}
    state |= {"patch_embed.proj.weight": torch.rand(width, 3, patch, patch), "patch_embed.proj.bias": torch.rand(width)}
    for number in range(depth):
        state |= block(f"blocks.{number}", width)
    return state | {"norm.weight": torch.rand(width), "norm.bias": torch.rand(width)}


def full_file(width, decoder, decoder_depth, patch, size, **more):
    """Names and shapes as in the authors' full checkpoints."""
    state = encoder_file(width=width, patch=patch, size=size, **more)
    state |= {"mask_token": torch.rand(1, 1, decoder), "decoder_pos_embed": positions(size // patch, decoder)}
    state |= {"decoder_embed.weight": torch.rand(decoder, width), "decoder_embed.bias": torch.rand(decoder)}
    for number in range(decoder_depth):
        state |= block(f"decoder_blocks.{number}", decoder)
    state |= {"decoder_norm.weight": torch.rand(decoder), "decoder_norm.bias": torch.rand(decoder)}
    pixels = patch * patch * 3
    return state | {"decoder_pred.weight": torch.rand(pixels, decoder), "decoder_pred.bias": torch.rand(pixels)}


def model(head="decoder", **options):
    """A model of TINY's size."""
    feed, heads = {"decoder": ("visible", {"embed_dim": 40, "depth": 3, "num_heads": 5}), "linear": ("all", {})}[head]
    encoder = {"name": "vit", "embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5, **options}
    return mimkit.build(
        {
            "method": "mae", "image_size": 35, "encoder": encoder, "mask": {"name": "random", "feed": feed},
            "head": {"name": head, **heads}, "target": "pixels", "optim": {"lr": 1e-3}, "train": {"epochs": 1},
        }
    )  # fmt: skip


def encoder(size=35, **options):
    return ViT(image_size=(size, size), **{"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5, **options})


def refuse(target, state, *told):
    """Loading raises one line that holds all of `told`, and changes no weight."""
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError) as error:
        mimkit.load_official(target, state)
    line = str(error.value)
    assert "\n" not in line
    for words in told:
        assert words in line, line
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_the_published_vit_base_loads_into_its_recipe():
    """Against the names and shapes of mae_pretrain_vit_base_full.pth: 254 tensors, 111,655,680 trained numbers."""
    state, base = full_file(**BASE), mimkit.build("imagenet/mae_vit_base")
    assert len(state) == 254
    assert sum(p.numel() for p in base.parameters() if p.requires_grad) == 111_655_680
    report = mimkit.load_official(base, state)
    assert (len(report.matched), report.absent, report.left_over) == (254, (), ())
    assert torch.equal(base.encoder.timm_model.blocks[11].mlp.fc1.weight, state["blocks.11.mlp.fc1.weight"])
    head = base.objectives["main"].head
    assert torch.equal(head.blocks[7].attn.qkv.weight, state["decoder_blocks.7.attn.qkv.weight"])
    assert torch.equal(head.predict.bias, state["decoder_pred.bias"])
    assert torch.equal(head.mask_token, state["mask_token"])


def test_a_file_with_the_authors_options_loads(tmp_path, capsys):
    """By round trip: {'model': …, 'args': Namespace} as their training writes it; the report is printed."""
    path, state, into = tmp_path / "checkpoint.pth", full_file(**TINY), model()
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}, path)
    report = mimkit.load_official(into, path)
    assert torch.equal(into.encoder.timm_model.norm.weight, state["norm.weight"])
    assert capsys.readouterr().out.strip() == str(report)
    assert re.search(r"MAE, encoder and decoder: \d+ tensors of the model matched", str(report))


@pytest.mark.parametrize("target", ["decoder", "linear", "alone"])
def test_an_encoder_file_fills_the_encoder_whatever_the_head(target):
    """By comparison of every tensor: mae_pretrain_vit_*.pth and timm's .mae weights."""
    into, state = (encoder() if target == "alone" else model(target)), encoder_file(**TINY)
    report = mimkit.load_official(into, state)
    filled = into if target == "alone" else into.encoder
    assert all(torch.allclose(tensor, state[name]) for name, tensor in filled.timm_model.state_dict().items())
    assert len(report.matched) == len(state)
    assert all(name.startswith("head.") or name == "encoder.mask_token" for name in report.absent)


def test_a_full_file_fills_an_encoder_and_leaves_its_decoder_over():
    """By comparison."""
    into, state = encoder(), full_file(**TINY)
    report = mimkit.load_official(into, state)
    assert torch.equal(into.timm_model.norm.bias, state["norm.bias"])
    assert set(report.left_over) == {name for name in state if name.startswith(("decoder_", "mask_token"))}


def test_a_fine_tuned_file_brings_its_learned_positions_and_no_final_norm():
    """By comparison: names as the authors' fine-tuning saves them."""
    state = encoder_file(**TINY)
    state |= {"pos_embed": torch.rand(1, 50, 24), "head.weight": torch.rand(10, 24), "head.bias": torch.rand(10)}
    state |= {"fc_norm.weight": state.pop("norm.weight"), "fc_norm.bias": state.pop("norm.bias")}
    into = encoder()
    report = mimkit.load_official(into, state)
    assert torch.equal(into.timm_model.pos_embed, state["pos_embed"])
    assert report.absent == ("encoder.timm_model.norm.weight", "encoder.timm_model.norm.bias")
    assert set(report.left_over) == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}


def old_names(state):
    """Hugging Face's names before transformers 5, as in the files on the hub."""
    for new, old in (
        ("layers.", "encoder.layer."), ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"), ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
    ):  # fmt: skip
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


@pytest.mark.parametrize("rename", [dict, old_names], ids=["transformers 5", "before"])
def test_hugging_faces_encoder_gives_equal_features(rename):
    """Against transformers' ViTMAEModel with nothing masked."""
    config = ViTMAEConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        image_size=35, patch_size=5, mask_ratio=0.0, layer_norm_eps=1e-6, initializer_range=0.5,
    )  # fmt: skip
    theirs, into = ViTMAEModel(config).eval(), encoder().eval()
    theirs.embeddings.position_embeddings.data = positions(7, 24)  # zero after construction
    mimkit.load_official(into, rename(theirs.state_dict()))
    images = torch.rand(2, 3, 35, 35)
    wanted = theirs(into.standardize(images), noise=torch.arange(49).expand(2, -1).float()).last_hidden_state
    torch.testing.assert_close(into(images).sequence, wanted, atol=1e-5, rtol=0)


def test_another_model_size_is_refused_with_names_and_shapes():
    """The user's mistake: a base file into a wider and deeper encoder."""
    refuse(
        encoder(embed_dim=48, depth=3),
        encoder_file(**TINY),
        "encoder.timm_model.cls_token (1, 1, 24) there and (1, 1, 48) here",
        "only in the model: encoder.timm_model.blocks.2.norm1.weight",
    )


def test_half_of_the_blocks_is_refused():
    """A file that was cut or filtered."""
    state = {name: tensor for name, tensor in full_file(**TINY).items() if not name.startswith("blocks.1.")}
    refuse(model(), state, "only in the model: encoder.timm_model.blocks.1.norm1.weight", "and 9 more")


def test_a_decoder_without_its_prediction_layer_is_refused():
    """A full file that lost a part is not taken for an encoder file."""
    state = {name: tensor for name, tensor in full_file(**TINY).items() if "decoder_pred" not in name}
    refuse(model(), state, "only in the file: mask_token")


def test_a_full_file_does_not_fit_another_head():
    """The decoder has no place in a linear head; the encoder alone would take it."""
    refuse(model("linear"), full_file(**TINY), "head.predict.weight (75, 40) there", "only in the file: mask_token")


def test_another_grid_is_refused_with_the_size_that_fits():
    """Positions are not resized in silence."""
    refuse(
        encoder(size=40), encoder_file(**TINY), "49 places", "8x8", "image_size=35 with encoder.patch_size=5 would fit"
    )


@pytest.mark.parametrize("name", ["pos_embed", "decoder_pos_embed"])
def test_positions_come_from_the_file(name):
    """Rows first, as MoCo v3 has them, in a file of MAE's names: what the file computes counts, not what the recipe draws."""
    width = 24 if name == "pos_embed" else 40
    swapped = full_file(**TINY) | {name: positions(7, width, column_first=False)}
    into = model()
    mimkit.load_official(into, swapped)
    ours = into.encoder.timm_model.pos_embed if name == "pos_embed" else into.objectives["main"].head.pos_embed
    assert torch.equal(ours, swapped[name])


def test_query_key_and_value_of_unequal_shapes_are_refused():
    """A damaged file in Hugging Face's names."""
    state = {"embeddings.position_embeddings": positions(7, 24), "layers.0.attention.q_proj.weight": torch.rand(24, 24)}
    state |= {"embeddings.patch_embeddings.projection.weight": torch.rand(24, 3, 5, 5)}
    refuse(encoder(), state | {"layers.0.attention.k_proj.weight": torch.rand(24, 23)}, "do not fit together")


def test_something_else_is_refused_with_what_is_known():
    """A state dict of no known layout."""
    refuse(model(), {"conv1.weight": torch.rand(3)}, "no known layout, it holds conv1.weight", "; MAE;")
