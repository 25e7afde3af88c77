"""Every combination that `mimkit list` offers trains one step, or is refused in one line. A new file is tested at once."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mimkit
from mimkit import registry
from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.weights.tokenizer import save_tokenizer
from tests.test_dvae import published

SIZE = (64, 96)  # 8x12 places of 8 px
DECODER = {"embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
CONV = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "encoder": {
        "vit": VIT,
        "beit": VIT,
        "eva": VIT,
        "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 8},
        "timm": {"model": "test_convnext", "patch_size": 8},
        "mage": {"embed_dim": 24, "depth": 2, "num_heads": 2},
        "conv": {**CONV, "z_channels": 24},
    },
    "head": {
        "decoder": DECODER,
        "code_decoder": DECODER,
        "projector": {"hidden_dim": 8},
        "prompting": DECODER,
        "cross_attention": DECODER,
        "aggregation": {"depth": 1, "num_heads": 2},
        "regressor": {"regressor_depth": 2, "decoder_depth": 1, "num_heads": 2},
        "quantizer": {"vocab_size": 16, "code_dim": 4, **DECODER},
        "vq_decoder": {"vocab_size": 16, "code_dim": 4, **CONV},
    },
    "target": {
        "timm": {"model": "test_resnet", "pretrained": False},
        "ema": {"layers": 2},
    },
}
REFUSALS = (  # what may be refused, and why
    r"head '(linear|aggregation)' reads the tokens of hidden places: set mask\.feed=all.*",
    r"head '(quantizer|vq_decoder)' reads the tokens of all places: set mask=none, or mask\.feed=all",
    r"head 'vq_decoder' paints pixels, the target is \d+ wide: take target=pixels",
    r"head 'regressor' predicts hidden places from visible ones: set mask\.feed=visible",
    r"head 'prompting' takes what the encoder saw as prompts: set mask\.feed=visible",
    r"head 'cross_attention' mixes the encoder's layers, this one gives none: take encoder=vit",
    r"head 'aggregation' reads an early layer, this encoder gives none: take encoder=beit",
    r"head '\w+' needs a token for each place, encoder '(swin|timm)' gives 2x3 for 8x12: take head=linear",
    r"head '\w+' needs a token for each place, encoder 'swin' gives 4x6 for 8x12: take head=linear",
    r"encoder '(swin|timm|conv)' reads the (tokens of hidden|pixels of all) places: set mask\.feed=all, or take encoder=vit",
    r"encoder\.rel_pos=shared needs all places: set mask\.feed=all, or encoder\.rel_pos=none",
    r"target 'ema' needs a token for each place, the encoder gives .*",
    r".*gives no outputs of its blocks: set target\.layers=0",
    r"head 'code_decoder' predicts the codes that the encoder reads: take encoder=mage, target=codes",
    r"target 'codes' is what an encoder of codes reads, this one reads pixels: take encoder=mage",
    r"target 'momentum' copies the head's projector: take head=feature_decoder",
    r"target 'momentum' reads the last block's output, which this encoder does not give",
    r"the target reads the view 'shifted', given are: image",
    r"target 'twin' compares two crops of each image: set data\.repeats=2",
    r"head and target do not meet: one is of single places, the other of the image as a whole",
    r"mask 'semantic' follows a target's saliency: set target\.saliency=true \(clip, timm\), or mask=random",
)
FEEDS = ("visible", "all")


@pytest.fixture(scope="module", autouse=True)
def teachers(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A CLIP and a tokenizer for the targets that read one; the tokenizer is a model of ours after one step."""
    OPTIONS["target"]["clip"] = {"model": f"local-dir:{clip_folder}"}
    tokenizer = build(("vit", "quantizer", "pixels", "none")).train()
    tokenizer(torch.rand(2, 3, *SIZE))
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, tokenizer)
    OPTIONS["target"]["vq"] = {"checkpoint": str(folder)}
    OPTIONS["encoder"]["mage"]["tokenizer"] = str(folder)
    save_file(published(), folder / "dalle.safetensors")
    OPTIONS["target"]["dvae"] = {"weights": str(folder / "dalle.safetensors")}
    yield
    for name in ("clip", "vq", "dvae"):
        del OPTIONS["target"][name]


def build(names: tuple[str, ...], feed: str = "visible", **encoder: Any) -> Model:
    roles = dict(zip(("encoder", "head", "target", "mask"), names, strict=True))
    tree: dict[str, Any] = {role: {"name": name, **OPTIONS.get(role, {}).get(name, {})} for role, name in roles.items()}
    tree["encoder"] |= encoder
    if "feed" in registry.options(registry.find("mask", names[3])):
        tree["mask"]["feed"] = feed
    tree |= {"method": "contract", "image_size": [*SIZE], "optim": {"lr": 1e-3}, "train": {"epochs": 1}}
    return mimkit.build(tree)


def train_or_refuse(names: tuple[str, ...], feed: str, **encoder: Any) -> None:
    """Oblong images; a finite loss, a gradient for every trainable parameter, none for the target."""
    try:
        model = build(names, feed, **encoder)
        out = model(torch.rand(2, 3, *SIZE), generator=torch.Generator().manual_seed(0))
    except UserError as refusal:
        assert any(re.fullmatch(each, str(refusal)) for each in REFUSALS), refusal
        return
    assert torch.isfinite(out.loss) and out.prediction.shape[: out.target.ndim] == out.target.shape[: out.target.ndim]
    out.loss.backward()
    model.after_step(0.5)
    unread = ("encoder.mask_token", "encoder.mask_patch") if names[3] == "none" else ()
    unread += (
        ("encoder.timm_model.norm.weight", "encoder.timm_model.norm.bias") if names[1] == "cross_attention" else ()
    )
    for name, parameter in model.named_parameters():
        frozen = not parameter.requires_grad
        assert frozen or parameter.grad is not None or name in unread, f"{name} has no gradient"
        assert not (frozen and parameter.grad is not None), name
    assert not any(p.requires_grad for o in model.objectives.values() for p in o.target.parameters())


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(
    "names", list(product(*(registry.names(role) for role in ("encoder", "head", "mask")))), ids="-".join
)
def test_an_encoder_a_head_and_a_mask_train_or_are_refused(names: tuple[str, str, str], feed: str) -> None:
    encoder, head, mask = names
    train_or_refuse((encoder, head, "norm_pixels", mask), feed)


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(
    "names", list(product(*(registry.names(role) for role in ("encoder", "head", "target")))), ids="-".join
)
def test_an_encoder_a_head_and_a_target_train_or_are_refused(names: tuple[str, str, str], feed: str) -> None:
    train_or_refuse((*names, "random"), feed)


@pytest.mark.parametrize("target", ["clip", "timm"])
def test_a_mask_follows_a_teachers_saliency(target: str) -> None:
    options = {"clip": OPTIONS["target"].get("clip"), "timm": {"model": "test_vit", "pretrained": False}}[target]
    before = OPTIONS["target"][target]
    OPTIONS["target"][target] = {**(options or {}), "saliency": True, "cls": True}
    try:
        model = build(("vit", "prompting", target, "semantic"))
        assert torch.isfinite(model(torch.rand(2, 3, *SIZE)).loss)
    finally:
        OPTIONS["target"][target] = before


@pytest.mark.parametrize("in_chans", [1, 3, 4, 12])
@pytest.mark.parametrize("target", sorted({*registry.names("target")} - {"codes", "twin", "momentum"}))
def test_any_number_of_channels(target: str, in_chans: int) -> None:
    """Teachers read three, or one repeated, and say so."""
    try:
        model = build(("vit", "decoder", target, "random"), in_chans=in_chans)
    except UserError as refusal:
        assert in_chans != 3 and "the target's model reads 3 channels (or 1, repeated)" in str(refusal)
        assert target in ("clip", "timm", "vq", "dvae")
        return
    images = torch.randint(0, 256, (2, in_chans, *SIZE), dtype=torch.uint8)
    assert torch.isfinite(model(images).loss)
    assert model.encoder(images).pooled.shape == (2, 24)


@pytest.mark.parametrize("encoder", sorted({*registry.names("encoder")} - {"mage"}))  # reads those of its tokenizer
def test_every_encoder_reads_any_number_of_channels(encoder: str) -> None:
    for in_chans in (1, 4, 12):
        model = build((encoder, "linear", "pixels", "random"), "all", in_chans=in_chans)
        assert torch.isfinite(model(torch.rand(2, in_chans, *SIZE)).loss)


def test_bytes_and_floats_are_the_same_images() -> None:
    model = build(("vit", "decoder", "norm_pixels", "random"))
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    losses = [model(x, generator=torch.Generator().manual_seed(1)).loss for x in (images, images.float() / 255)]
    torch.testing.assert_close(*losses)


def test_a_given_mask_is_fed_as_the_recipe_feeds() -> None:
    model = build(("vit", "decoder", "pixels", "random"))
    hidden = torch.zeros(2, 96, dtype=torch.bool)
    hidden[0, :50], hidden[1, 20:70] = True, True
    out = model(torch.rand(2, 3, *SIZE), mask=mimkit.Mask.from_hidden(hidden))
    assert out.mask.fed is not None and torch.equal(out.mask.fed[0], torch.arange(50, 96)) and out.mask.grid == (8, 12)
    with pytest.raises(UserError, match="need \\(2, 96\\)"):
        model(torch.rand(2, 3, *SIZE), mask=mimkit.Mask.from_hidden(hidden[:, :70]))


def test_a_target_stays_frozen_in_eval_mode() -> None:
    model = build(("vit", "decoder", "pixels", "random")).train()
    assert model.training and not model.objectives["main"].target.training


def test_every_head_reads_its_own_layers() -> None:
    """Two objectives that ask for different layers: each equals the one of a model with that objective alone."""
    head = {"name": "aggregation", "depth": 1, "num_heads": 2, "early_layer": 1}
    tree: dict[str, Any] = {
        "method": "two", "image_size": 32, "optim": {"lr": 1e-3}, "train": {"epochs": 1},
        "encoder": {"name": "beit", **VIT, "depth": 4}, "mask": {"name": "random", "feed": "all"},
    }  # fmt: skip
    first, second = ({"head": head | {"early_layer": layer}, "target": "pixels"} for layer in (1, 3))
    both, alone = mimkit.build(tree | first | {"objectives": {"more": second}}), mimkit.build(tree | second)
    weights = both.state_dict()
    alone.load_state_dict(
        {name: weights[name.replace("objectives.main", "objectives.more")] for name in alone.state_dict()}
    )
    images, hidden = torch.rand(2, 3, 32, 32), torch.rand(2, 16) < 0.5
    outs = [model.eval()(images, mask=mimkit.Mask.from_hidden(hidden)) for model in (both, alone)]
    torch.testing.assert_close(outs[0].losses["more"], outs[1].losses["main"])
