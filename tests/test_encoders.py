"""The encoders beit, swin and timm: against timm's own forward, against its parts walked by hand, on oblong images."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mimkit
from mimkit import registry
from mimkit.errors import UserError
from mimkit.evaluate.features import pooled_features
from mimkit.heads.linear import Linear
from mimkit.show.features import _encode, draw_features
from mimkit.types import Encoder, Features, Mask, Standardize, gather_places, patchify
from mimkit.weights.handover import save_encoder

BEIT = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 5}
SWIN = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "patch_size": 4}
CASES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "beit-shared": ("beit", (35, 55), BEIT),
    "beit-block": ("beit", (35, 55), {**BEIT, "rel_pos": "block", "init_values": None}),
    "beit-absolute": ("beit", (35, 55), {**BEIT, "rel_pos": "none", "abs_pos": True}),
    "swin": ("swin", (32, 64), SWIN),  # the second stage has 4x8 tokens: shifted along the columns only
    "timm-convnext": ("timm", (64, 96), {"model": "test_convnext"}),
    "timm-vit": ("timm", (32, 48), {"model": "test_vit", "patch_size": 8}),
    "timm-swin": ("timm", (64, 96), {"model": "swin_tiny_patch4_window7_224"}),
}


def make(case: str, feed: str = "all", **more: Any) -> Encoder:
    """Random weights everywhere, so that biases, norms and tables count."""
    name, size, options = CASES[case]
    torch.manual_seed(5)
    encoder = registry.build("encoder", name, {**options, **more}, {"image_size": size, "feed": feed})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.1)
    return encoder.eval()


def pictures(encoder: Encoder, batch: int = 2) -> Tensor:
    shape = (batch, encoder.in_chans, *encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def some_hidden(encoder: Encoder) -> Tensor:
    """Unequal numbers of hidden places."""
    draws = torch.rand(2, math.prod(encoder.grid), generator=torch.Generator().manual_seed(2))
    return draws < torch.tensor([[0.6], [0.3]])


def in_raster_order(out: Tensor, dim: int) -> Tensor:
    """A sequence, an NCHW or an NHWC map as a sequence."""
    if out.ndim == 4:
        out = (out if out.shape[3] == dim else out.permute(0, 2, 3, 1)).flatten(1, 2)
    return out


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_full_image_equals_timms_own_forward(case):
    """Against forward_features of the same timm model on standardised images, with 3 and with 2 channels."""
    for in_chans in (3, 2):
        encoder = make(case, in_chans=in_chans)
        images = pictures(encoder)
        features = encoder(images)
        wanted = in_raster_order(encoder.timm_model.forward_features(Standardize(in_chans)(images)), encoder.embed_dim)
        torch.testing.assert_close(features.sequence, wanted, atol=2e-5, rtol=1e-5)
        places = math.prod(encoder.out_grid)
        assert features.grid == encoder.out_grid and features.tokens.shape == (2, places, encoder.embed_dim)
        torch.testing.assert_close(features.pooled, wanted[:, -places:].mean(1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "grid", "out_grid", "cls"),
    [
        ("beit-shared", (7, 11), (7, 11), True),
        ("swin", (8, 16), (4, 8), False),
        ("timm-convnext", (2, 3), (2, 3), False),
        ("timm-vit", (4, 6), (2, 3), True),
    ],
)
def test_grids_of_places_and_of_tokens(case, grid, out_grid, cls):
    """By hand: sides over the patch size, and over the total stride."""
    encoder = make(case)
    assert (encoder.grid, encoder.out_grid) == (grid, out_grid)
    assert (encoder(pictures(encoder)).cls is not None) == cls


@torch.no_grad()
@pytest.mark.parametrize("case", ["beit-shared", "beit-block", "beit-absolute"])
def test_beits_mask_token_joins_before_class_token_and_positions(case):
    """Against timm's parts, walked by hand; intermediate layers, what enters the first block, shared bias and norm."""
    encoder = make(case)
    timm_model, images, hidden = encoder.timm_model, pictures(encoder), some_hidden(encoder)
    features = encoder(images, Mask.from_hidden(hidden), layers=(-1, 1, 2))

    tokens = timm_model.patch_embed(encoder.standardize(images))
    for image, place in hidden.nonzero().tolist():
        tokens[image, place] = encoder.mask_token[0, 0]
    wanted = torch.cat([timm_model.cls_token.expand(2, -1, -1), tokens], dim=1)
    if timm_model.pos_embed is not None:
        wanted = wanted + timm_model.pos_embed
    bias = timm_model.rel_pos_bias() if timm_model.rel_pos_bias is not None else None
    layers = [wanted]
    for block in timm_model.blocks:
        layers.append(block(layers[-1], shared_rel_pos_bias=bias))
    torch.testing.assert_close(features.sequence, timm_model.norm(layers[-1]), atol=1e-5, rtol=1e-5)
    for found, by_hand in zip(features.layers, (layers[0], layers[2], layers[3]), strict=True):
        torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.norm(layers[-1]), features.sequence, atol=1e-5, rtol=1e-5)
    if bias is None:
        assert features.attn_bias is None
    else:
        assert features.attn_bias.shape == (3, 78, 78) and torch.equal(features.attn_bias, bias)


@torch.no_grad()
def test_beit_without_relative_positions_is_fed_visible_places_only():
    """Against timm's embedding and blocks on those tokens, in the order in which they are fed."""
    encoder = make("beit-absolute", feed="visible")
    timm_model, images = encoder.timm_model, pictures(encoder)
    fed = torch.tensor([[40, 3, 76, 12, 0], [5, 61, 2, 33, 70]])
    hidden = torch.ones(2, 77, dtype=torch.bool).scatter_(1, fed, False)
    features = encoder(images, Mask.from_hidden(hidden, fed=fed))
    tokens = timm_model.patch_embed(encoder.standardize(images)) + timm_model.pos_embed[:, 1:]
    cls = (timm_model.cls_token + timm_model.pos_embed[:, :1]).expand(2, -1, -1)
    wanted = torch.cat([cls, gather_places(tokens, fed)], dim=1)
    for block in timm_model.blocks:
        wanted = block(wanted)
    torch.testing.assert_close(features.sequence, timm_model.norm(wanted), atol=1e-5, rtol=1e-5)
    assert features.grid is None and encoder.mask_token is None


@torch.no_grad()
def test_swins_mask_token_joins_after_the_embeddings_norm():
    """Against timm's parts: patch embedding with its norm, token for token replaced, stages, norm."""
    encoder = make("swin")
    timm_model, images, hidden = encoder.timm_model, pictures(encoder), some_hidden(encoder)
    tokens = timm_model.patch_embed(encoder.standardize(images))
    for image, place in hidden.nonzero().tolist():
        tokens[image, place // 16, place % 16] = encoder.mask_token[0, 0]
    wanted = timm_model.norm(timm_model.layers(tokens)).flatten(1, 2)
    found = encoder(images, Mask.from_hidden(hidden))
    torch.testing.assert_close(found.sequence, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", ["timm-convnext", "timm-vit"])
def test_timms_hidden_places_show_the_learned_patch(case):
    """Against forward_features of an image painted pixel by pixel; unlearned, the patch is the mean colour."""
    encoder = make(case)
    images, hidden, p = pictures(encoder), some_hidden(encoder), encoder.patch_size
    painted = encoder.standardize(images)
    for image, place in hidden.nonzero().tolist():
        y, x = p * (place // encoder.grid[1]), p * (place % encoder.grid[1])
        painted[image, :, y : y + p, x : x + p] = encoder.mask_patch
    wanted = in_raster_order(encoder.timm_model.forward_features(painted), encoder.embed_dim)
    found = encoder(images, Mask.from_hidden(hidden))
    torch.testing.assert_close(found.sequence, wanted, atol=2e-5, rtol=1e-5)
    name, size, options = CASES[case]
    assert not registry.build("encoder", name, options, {"image_size": size}).mask_patch.any()


def test_what_a_timm_models_features_do_not_need_is_frozen():
    """By name: ConvNeXt's norm after pooling; all the rest is trained, also where registers replace the class token."""
    encoder = make("timm-convnext")
    frozen = [name for name, p in encoder.timm_model.named_parameters() if not p.requires_grad]
    assert frozen == ["head.norm.weight", "head.norm.bias"]
    encoder = registry.build("encoder", "timm", {"model": "test_vit3"}, {"image_size": (32, 48)})
    assert encoder.timm_model.cls_token is None and encoder.timm_model.num_prefix_tokens == 1
    features = encoder(pictures(encoder))
    assert features.cls is None and features.tokens.shape[1] == 6 == features.sequence.shape[1]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_stochastic_depth_is_the_recipes_not_the_models_own(rate):
    """By the last block's layer; timm's Swin would take 0.1 by itself, and DenseNet knows nothing of it."""
    options = {"model": "swin_tiny_patch4_window7_224", "drop_path": rate}
    encoder = registry.build("encoder", "timm", options, {"image_size": (32, 64)})
    assert getattr(encoder.timm_model.layers[-1].blocks[-1].drop_path1, "drop_prob", 0.0) == pytest.approx(rate)
    assert registry.build("encoder", "timm", {"model": "densenet121"}, {"image_size": (32, 64)}).out_grid == (1, 2)


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


def test_hidden_pixels_reach_no_encoder():
    """By perturbation: other pixels at hidden places change nothing."""
    for case in CASES:
        encoder = make(case)
        images, hidden = pictures(encoder), some_hidden(encoder)
        patches = patchify(images, encoder.patch_size).flatten(2)
        other = mimkit.unpatchify(
            torch.where(hidden[..., None], 1 - patches, patches), encoder.grid, encoder.patch_size
        )
        mask = Mask.from_hidden(hidden)
        with torch.no_grad():
            torch.testing.assert_close(encoder(images, mask).sequence, encoder(other, mask).sequence)
            assert not torch.allclose(encoder(images).sequence, encoder(other).sequence)


@pytest.mark.parametrize(
    ("name", "options", "size", "told"),
    [
        ("beit", {"feed": "visible"}, (20, 20), "encoder.rel_pos=shared needs all places: set mask.feed=all"),
        ("beit", {"num_heads": 5}, (20, 20), "encoder.embed_dim=24 must be divisible by num_heads=5"),
        ("swin", {"feed": "visible"}, (32, 64), "encoder 'swin' reads the tokens of hidden places: set mask.feed=all"),
        ("swin", {}, (32, 60), "image_size 32x60 does not fit .*sides that fit: 8, 16, 32, 64"),
        ("swin", {"num_heads": (2,)}, (32, 64), "encoder.depths has 2 stages, encoder.num_heads 1"),
        ("swin", {"num_heads": (2, 3)}, (32, 64), "encoder.num_heads holds 3"),
        ("timm", {"feed": "visible"}, (64, 64), "encoder 'timm' reads the pixels of all places: set mask.feed=all"),
        ("timm", {"model": "convnextv2_tini"}, (64, 64), "knows no model 'convnextv2_tini'; did you mean 'convnextv2_tiny'"),
        ("timm", {"model": "test_resnet"}, (60, 60), "cannot encode images of 60x60: image_size must be multiples of .* 32"),
        ("timm", {"model": "test_vit", "patch_size": 5}, (80, 80), "encoder.patch_size=5 must divide the stride 16"),
        ("timm", {"model": "vgg11", "drop_path": 0.1}, (64, 64), "unexpected keyword argument 'drop_path_rate'"),
        ("timm", {"model": "inception_next_atto"}, (64, 64), "Cannot disable pooling"),
        ("timm", {"model": "sehalonet33ts"}, (96, 96), "cannot encode images of 96x96: AssertionError"),
    ],
)  # fmt: skip
def test_impossible_options_are_told(name, options, size, told):
    """The user's mistake in one line."""
    given = {"beit": BEIT, "swin": SWIN, "timm": {"model": "test_convnext"}}[name] | options
    facts = {"image_size": size, "feed": given.pop("feed", "all")}
    with pytest.raises(UserError, match=told) as refusal:
        registry.build("encoder", name, given, facts)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("case", ["beit-shared", "swin", "timm-convnext"])
def test_impossible_requests_are_told(case):
    """A mask that feeds a part, intermediate layers that are not there, images of another size."""
    encoder = make(case)
    hidden = some_hidden(encoder)
    with pytest.raises(UserError, match="give a mask without fed"):
        encoder(pictures(encoder), Mask.from_hidden(hidden, fed=torch.zeros(2, 1, dtype=torch.long)))
    if not encoder.num_layers:
        with pytest.raises(UserError, match="gives no intermediate layers"):
            encoder(pictures(encoder), layers=(0,))
    with pytest.raises(UserError, match="the encoder reads images of"):
        encoder(pictures(encoder)[..., :-1])
