"""The encoders beit, swin and timm in use: initial weights, the linear head, training, hand-over, pictures."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mimkit
from mimkit import registry
from mimkit.evaluate.features import pooled_features
from mimkit.heads.linear import Linear
from mimkit.saved.encoder import save_encoder
from mimkit.show.features import _encode, draw_features
from mimkit.types import Features, Mask
from tests.encoders import CASES, make, pictures


@torch.no_grad()
def test_beits_initial_weights_follow_the_authors():
    """Cut at one std: 0.5396 of it is left; what leaves block l is divided by sqrt(2 l); uncut, the projection is torch's."""
    torch.manual_seed(0)
    options = {"embed_dim": 192, "depth": 2, "num_heads": 3}
    encoder = registry.build("encoder", "beit", {**options, "abs_pos": True}, {"image_size": (96, 96)})
    timm_model, effective = encoder.timm_model, 0.5396 * 0.02
    for weight in (timm_model.patch_embed.proj.weight, timm_model.blocks[1].attn.qkv.weight, timm_model.pos_embed):
        assert weight.abs().max() <= 0.02 and weight.std() == pytest.approx(effective, rel=0.03)
    for token in (timm_model.cls_token, encoder.mask_token):
        assert token.abs().max() <= 0.02 and token.std() == pytest.approx(effective, rel=0.2)
    for number, block in enumerate(timm_model.blocks, 1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std() == pytest.approx(effective / math.sqrt(2 * number), rel=0.02)
        assert not any(
            bias.any() for bias in (block.attn.q_bias, block.attn.v_bias, block.attn.k_bias, block.mlp.fc1.bias)
        )
        assert (block.gamma_1 == 0.1).all() and (block.gamma_2 == 0.1).all()
    assert not timm_model.patch_embed.proj.bias.any() and not timm_model.rel_pos_bias.relative_position_bias_table.any()
    assert timm_model.norm.eps == timm_model.blocks[0].norm1.eps == 1e-6

    normal = registry.build(
        "encoder", "beit", {**options, "init": "normal", "init_std": 0.015}, {"image_size": (96, 96)}
    ).timm_model
    assert normal.blocks[0].attn.qkv.weight.std() == pytest.approx(0.015, rel=0.02)
    assert normal.blocks[0].attn.qkv.weight.abs().max() > 0.05
    assert normal.blocks[1].mlp.fc2.weight.std() == pytest.approx(0.015 / 2, rel=0.02)
    assert normal.patch_embed.proj.weight.std() == pytest.approx(1 / math.sqrt(3 * 768), rel=0.02)


@torch.no_grad()
def test_swins_initial_weights_follow_the_authors():
    """Linear layers, tables and mask token normal with std 0.02, biases 0, the patch projection as torch makes it."""
    torch.manual_seed(0)
    options = {"embed_dim": 96, "depths": (2, 2), "num_heads": (3, 6)}
    encoder = registry.build("encoder", "swin", options, {"image_size": (48, 96)})
    stages = encoder.timm_model.layers
    block = stages[1].blocks[1]
    for weight in (
        block.attn.qkv.weight,
        block.attn.proj.weight,
        block.mlp.fc2.weight,
        stages[1].downsample.reduction.weight,
    ):
        assert weight.std() == pytest.approx(0.02, rel=0.02)
    assert block.attn.relative_position_bias_table.std() == pytest.approx(0.02, rel=0.1)
    assert encoder.mask_token.std() == pytest.approx(0.02, rel=0.25)
    assert not block.attn.qkv.bias.any() and not block.mlp.fc1.bias.any()
    assert encoder.timm_model.patch_embed.proj.weight.std() == pytest.approx(1 / math.sqrt(3 * 48), rel=0.05)
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert [(b.window_size, b.shift_size) for stage in stages for b in stage.blocks] == [
        ((6, 6), (0, 0)), ((6, 6), (3, 3)), ((6, 6), (0, 0)), ((6, 6), (0, 3)),  # the second stage has 6x12 tokens
    ]  # fmt: skip


def test_one_token_predicts_its_places_row_by_row():
    """By hand: the prediction of every place, from the token and the rows of the weight that are its own."""
    torch.manual_seed(3)
    head = Linear(encoder_dim=6, out_dim=5, grid=(4, 9), out_grid=(2, 3), init="torch")
    tokens, hidden = torch.rand(2, 6, 6), torch.rand(2, 36) < 0.5
    mask = Mask.from_hidden(hidden)
    wanted = []
    for image, place in hidden.nonzero().tolist():
        row, column = divmod(place, 9)
        first = 5 * (3 * (row % 2) + column % 3)
        weight, bias = head.predict.weight[first : first + 5], head.predict.bias[first : first + 5]
        wanted.append(weight @ tokens[image, 3 * (row // 2) + column // 3] + bias)
    torch.testing.assert_close(head(Features(tokens), mask).flatten(0, -2), torch.stack(wanted))


@torch.no_grad()
def test_the_linear_heads_initial_weights():
    """Against the published distributions: uncut, cut at one std (0.5396 of it is left), torch's uniform."""
    given = {"encoder_dim": 400, "out_dim": 100, "grid": (2, 2), "out_grid": (2, 2)}
    wanted = {"normal": 0.02, "cut": 0.5396 * 0.02, "torch": 1 / math.sqrt(3 * 400)}
    for init, std in wanted.items():
        head = Linear(**given, init=init)
        assert head.predict.weight.std() == pytest.approx(std, rel=0.02)
        assert head.predict.bias.any() == (init == "torch")
    assert Linear(**given, init="cut", init_std=0.015).predict.weight.abs().max() <= 0.015


def built(case: str, target: str = "norm_pixels") -> mimkit.model.Model:
    name, size, options = CASES[case]
    mask = {"name": "random", "ratio": 0.6, "feed": "all"}
    recipe = {"method": "test", "image_size": list(size), "encoder": {"name": name, **options}, "mask": mask}
    rest = {"head": "linear", "target": target, "optim": {"lr": 1e-3}, "train": {"epochs": 1}}
    return mimkit.build({**recipe, **rest})


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_trained_with_and_without_a_mask(case):
    """A gradient for each; under bfloat16 autocast the residual stream and the loss stay in float32."""
    model = built(case)
    images = pictures(model.encoder)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images)
        layers = (-1,) if model.encoder.num_layers else ()
        features = model.encoder(images, layers=layers)
    assert out.loss.dtype == torch.float32 and torch.isfinite(out.loss)
    assert all(layer.dtype == torch.float32 for layer in features.layers)
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    exact = model(images, mask=out.mask).loss
    assert out.loss.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_encoder_comes_back_equal(case, tmp_path):
    """By round trip through the files of the hand-over."""
    name, _, options = CASES[case]
    encoder = make(case)
    save_encoder(tmp_path, encoder, name, options)
    back = mimkit.load(tmp_path)
    images = pictures(encoder)
    with torch.no_grad():
        assert torch.equal(back(images).sequence, encoder(images).sequence)
    assert back.out_grid == encoder.out_grid and not any(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize("case", ["beit-shared", "swin", "timm-convnext", "timm-vit"])
def test_evaluation_and_pictures_take_coarse_grids(case, tmp_path):
    """The mean of the tokens as the evaluation pools it; a picture of the features with the grid that they have."""
    from mimkit.data.sources.shapes import Shapes

    encoder = make(case)
    source = Shapes(image_size=encoder.image_size, in_chans=3, num_images=4)
    pooled, read = pooled_features(encoder, source, np.arange(3))
    assert pooled.shape == (3, encoder.embed_dim) and read.tolist() == [0, 1, 2]
    draw_features(encoder, pictures(encoder), tmp_path / "features.png")
    assert (tmp_path / "features.png").stat().st_size > 5000


@torch.no_grad()
def test_the_picture_shows_beits_attention_with_its_relative_positions():
    """Against softmax(q k / sqrt(d) + bias) of the last block, computed by hand; the class token's row, mean over heads."""
    encoder = make("beit-shared")
    images = pictures(encoder)
    features, attention = _encode(encoder, images)
    entering = encoder(images, layers=(1,)).layers[0]
    attn, normed = encoder.timm_model.blocks[2].attn, encoder.timm_model.blocks[2].norm1(entering)
    query, key, _ = (normed @ attn.qkv.weight.T).view(2, 78, 3, 3, 8).permute(2, 0, 3, 1, 4)
    scores = (query + attn.q_bias.view(3, 1, 8)) @ key.mT / math.sqrt(8) + features.attn_bias
    torch.testing.assert_close(attention, scores.softmax(-1)[:, :, 0, 1:].mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.sequence, encoder(images).sequence, atol=1e-5, rtol=1e-4)
