"""SimMIM and BEiT against transformers with the same weights and mask: prediction, loss and every gradient."""

import re

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    SwinConfig,
    SwinForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
)

import mimkit
from mimkit.model import Model
from mimkit.types import Standardize

WIDTH = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
GEOMETRY = {"image_size": 20, "patch_size": 5, "layer_norm_eps": 1e-6}
STAGES = {"embed_dim": 8, "depths": [2, 2, 1], "num_heads": [2, 2, 4], "window_size": 4}
ENCODER = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5}
RENAMED = (  # theirs, ours
    (r"^(swin|vit|beit)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token)", r"\1"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    (r"^shared_position_bias", "rel_pos_bias"),
    (r"^encoder\.layers\.(\d)\.blocks", r"layers.\1.blocks"),
    (r"^layers\.(\d)\.(?!blocks)", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"lambda_", "gamma_"),
    (r"attention\.o_proj", "attn.proj"),
    (r"(attention\.)?relative_position_bias\.relative", "attn.relative"),
    (r"^(decoder\.0|lm_head)", "predict"),
)


def ours(encoder: dict, image_size: int, loss: str = "l1") -> Model:
    return mimkit.build(
        {
            "method": "simmim",
            "image_size": image_size,
            "encoder": encoder,
            "mask": {"name": "random", "ratio": 0.6, "feed": "all"},
            "head": "linear",
            "target": {"name": "pixels", "order": "channel_first"},
            "normalizer": "none",
            "loss": loss,
            "optim": {"lr": 1e-3},
            "train": {"epochs": 1},
        }
    )


def randomised(theirs: nn.Module) -> nn.Module:
    """Random weights everywhere: biases, norms and the tables of positions too."""
    torch.manual_seed(7)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.1)
    return theirs.eval()


def renamed(theirs: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """The oracle's tensors (weights or gradients) by the names of our parameters."""
    tensors = {}
    for name, tensor in theirs.items():
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        if found := re.match(r"encoder\.layers\.(\d)\.downsample\.(.*)", name):  # timm's stands before the next stage
            name = f"layers.{int(found[1]) + 1}.downsample.{found[2]}"
        tensors[name] = tensor
    for name in [name for name in tensors if "attention.q_proj" in name]:
        query, key, value = (tensors.pop(name.replace("q_proj", part), None) for part in ("q_proj", "k_proj", "v_proj"))
        fused = name.replace("attention.q_proj", "attn.qkv")
        if key is None:  # BEiT's keys have no bias
            bare = fused.removesuffix("qkv.bias")
            tensors |= {f"{bare}q_bias": query, f"{bare}v_bias": value}
        else:
            tensors[fused] = torch.cat([query, key, value])
    named = {}
    for name, tensor in tensors.items():
        if name == "predict.weight":
            tensor = tensor.flatten(1)  # their 1x1 convolution
        if name.startswith("predict"):
            named[f"objectives.main.head.{name}"] = per_place(tensor, model)
        else:
            named["encoder.mask_token" if name == "mask_token" else f"encoder.timm_model.{name}"] = tensor
    return named


def per_place(rows: Tensor, model: Model) -> Tensor:
    """Rows for the pixel shuffle, (c, i, j) over the pixels of a token, as ours: place (fi, fj) first, then (c, p, q)."""
    encoder, p = model.encoder, model.encoder.patch_size
    f = encoder.grid[0] // encoder.out_grid[0]
    if rows.shape[0] != encoder.in_chans * (f * p) ** 2:
        return rows
    return rearrange(rows, "(c fi p fj q) ... -> (fi fj c p q) ...", fi=f, fj=f, p=p, q=p)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    ours, theirs = ours.detach(), theirs.detach()
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def same_gradients(model: Model, theirs: nn.Module) -> None:
    wanted = renamed({name: p.grad for name, p in theirs.named_parameters()}, model)
    found = {name: p.grad for name, p in model.named_parameters()}
    assert wanted.keys() == found.keys()
    gaps = {name: gap(found[name], wanted[name]) for name in wanted}
    assert max(gaps.values()) < 1e-5, sorted(gaps.items(), key=lambda item: -item[1])[:3]


def load(model: Model, theirs: nn.Module) -> None:
    state = renamed({name: p.detach() for name, p in theirs.named_parameters()}, model)
    assert state.keys() == {name for name, _ in model.named_parameters()}
    model.load_state_dict(state, strict=False)


def swin() -> tuple[nn.Module, dict]:
    """16x16 and 8x8 tokens in shifted windows of 4, then 4x4 in one; a token for 4x4 places comes out."""
    config = SwinConfig(image_size=64, patch_size=4, encoder_stride=16, drop_path_rate=0.0, **STAGES)
    return SwinForMaskedImageModeling(config), {"name": "swin", "patch_size": 4, **STAGES}


def vit() -> tuple[nn.Module, dict]:
    return ViTForMaskedImageModeling(ViTConfig(**WIDTH, **GEOMETRY, encoder_stride=5)), {
        "name": "vit",
        "pos_embed": "learned",
        **ENCODER,
    }


@pytest.mark.parametrize("unequal", [False, True], ids=["equal-counts", "unequal-counts"])
@pytest.mark.parametrize("oracle", [swin, vit])
def test_simmim_equals_the_oracle(oracle, unequal):
    """Against transformers' Swin and ViT for masked image modelling: L1 at hidden pixels, over their number and 3."""
    theirs, encoder = oracle()
    randomised(theirs)
    size, p = theirs.config.image_size, theirs.config.patch_size
    model = ours(encoder, size)
    load(model, theirs)
    images = torch.rand(2, 3, size, size)
    standard = Standardize(3)(images)
    hidden = torch.rand(2, (size // p) ** 2) < torch.tensor([[0.6], [0.3 if unequal else 0.6]])
    if not unequal:
        hidden[1] = hidden[0].flip(0)

    wanted = theirs(pixel_values=standard, bool_masked_pos=hidden)
    wanted.loss.backward()
    out = model(images, mask=mimkit.Mask.from_hidden(hidden))
    out.loss.backward()

    patches, target = (
        rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)[hidden]
        for pixels in (wanted.reconstruction, standard)
    )
    assert gap(out.prediction.flatten(0, -2), patches) < 1e-5
    assert gap(out.target.flatten(0, -2), target) < 1e-5
    assert gap(out.loss, wanted.loss) < 1e-5
    same_gradients(model, theirs)


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, {"use_shared_relative_position_bias": True}),
        ({"rel_pos": "block"}, {"use_relative_position_bias": True}),
        (
            {"rel_pos": "none", "abs_pos": True, "init_values": None},
            {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
        ),
    ],
    ids=["shared", "per-block", "absolute"],
)
def test_beit_equals_the_oracle(options, config):
    """Against transformers' BEiT for masked image modelling; 75 numbers are as good as logits of 75 codes."""
    theirs = BeitForMaskedImageModeling(BeitConfig(**WIDTH, **GEOMETRY, vocab_size=75, use_mask_token=True, **config))
    randomised(theirs)
    model = ours({"name": "beit", **ENCODER, **options}, 20)
    load(model, theirs)
    images = torch.rand(2, 3, 20, 20)
    hidden = torch.rand(2, 16) < torch.tensor([[0.7], [0.4]])
    codes = torch.randint(75, (2, 16))[hidden]

    wanted = theirs(pixel_values=Standardize(3)(images), bool_masked_pos=hidden, labels=codes)
    wanted.loss.backward()
    out = model(images, mask=mimkit.Mask.from_hidden(hidden))
    loss = F.cross_entropy(out.prediction, codes)
    loss.backward()

    assert gap(out.prediction, wanted.logits[hidden]) < 1e-5
    assert gap(loss, wanted.loss) < 1e-5
    same_gradients(model, theirs)
