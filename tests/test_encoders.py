"""The encoders beit, swin and timm: against timm's own forward, against its parts walked by hand, on oblong images."""

import math

import pytest
import torch

import mimkit
from mimkit import registry
from mimkit.errors import UserError
from mimkit.types import Mask, Standardize, gather_places, patchify
from tests.encoders import BEIT, CASES, SWIN, in_raster_order, make, pictures, some_hidden


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
