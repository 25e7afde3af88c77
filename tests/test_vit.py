"""The ViT encoder and its positions: against timm's own forward, and against values computed by hand."""

import math

import pytest
import torch

from mimkit.encoders.vit import ViT
from mimkit.errors import UserError
from mimkit.transformer import sincos_positions
from mimkit.types import Mask, gather_places, patchify, unpatchify


def vit(**options):
    torch.manual_seed(5)
    given = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 5, "image_size": (35, 55), **options}
    encoder = ViT(**given).eval()
    for parameter in encoder.parameters():
        if parameter.ndim == 1:  # biases and norms away from 0 and 1
            torch.nn.init.normal_(parameter, mean=0.5)
    return encoder


def images(batch=2, chans=3, size=(35, 55)):
    return torch.rand(batch, chans, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("pos_embed", ["sincos", "learned"])
@pytest.mark.parametrize("chans", [3, 4])
def test_full_image_equals_timms_own_forward(class_token, pos_embed, chans):
    """Against timm's VisionTransformer.forward_features on standardised images."""
    encoder = vit(class_token=class_token, pos_embed=pos_embed, in_chans=chans)
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if chans == 3 else ((0.449,) * 4, (0.226,) * 4)
    standard = (images(chans=chans) - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    features = encoder(images(chans=chans))
    wanted = encoder.timm_model.forward_features(standard)
    torch.testing.assert_close(features.sequence, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.tokens, wanted[:, int(class_token) :], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.pooled, wanted[:, int(class_token) :].mean(1), atol=1e-5, rtol=0)
    assert (features.cls is None) != class_token
    assert features.grid == (7, 11)


def test_uint8_images_give_what_their_fractions_give():
    """By definition: 255 is 1."""
    pixels = torch.randint(256, (2, 3, 35, 55), dtype=torch.uint8)
    encoder = vit()
    torch.testing.assert_close(encoder(pixels).sequence, encoder(pixels / 255).sequence)


def test_visible_places_only_equals_timms_blocks_on_those_tokens():
    """Against timm's patch embedding, blocks and norm, walked by hand on the kept tokens, in the order they are fed."""
    encoder = vit()
    timm_model = encoder.timm_model
    fed = torch.tensor([[40, 3, 76, 12, 0], [5, 61, 2, 33, 70]])
    hidden = torch.ones(2, 77, dtype=torch.bool).scatter_(1, fed, False)
    features = encoder(images(), Mask.from_hidden(hidden, fed=fed), layers=(-1, 0, 2))

    tokens = timm_model.patch_embed(encoder.standardize(images())) + timm_model.pos_embed[:, 1:]
    cls = (timm_model.cls_token + timm_model.pos_embed[:, :1]).expand(2, -1, -1)
    wanted = torch.cat([cls, gather_places(tokens, fed)], dim=1)
    layers = [wanted]  # what enters the first block
    for block in timm_model.blocks:
        wanted = block(wanted)
        layers.append(wanted)
    torch.testing.assert_close(features.sequence, timm_model.norm(wanted), atol=1e-5, rtol=0)
    assert len(features.layers) == 3
    for found, by_hand in zip(features.layers, (layers[0], layers[1], layers[3]), strict=True):
        torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.norm(features.layers[2]), features.sequence, atol=1e-5, rtol=0)
    assert features.grid is None


def test_hidden_places_of_a_fully_fed_encoder_bring_the_mask_token_and_no_pixels():
    """By perturbation: pixels of hidden places change nothing, those of visible ones do."""
    encoder = vit(feed="all")
    hidden = torch.zeros(2, 77, dtype=torch.bool)
    hidden[:, 12:40] = True
    mask = Mask.from_hidden(hidden)
    patches = patchify(images(), 5).flatten(2)
    other = torch.where(hidden[..., None], torch.rand_like(patches), patches)
    changed = unpatchify(other, (7, 11), 5)
    torch.testing.assert_close(encoder(images(), mask).sequence, encoder(changed, mask).sequence)
    assert not torch.allclose(encoder(images()).sequence, encoder(changed).sequence)
    before = encoder(images(), mask).sequence
    torch.nn.init.normal_(encoder.mask_token)
    assert not torch.allclose(before, encoder(images(), mask).sequence)


def test_sincos_positions_have_the_published_values():
    """Against the values of the authors' code for ViT-Base: column in the first half, row in the second."""
    positions = sincos_positions((14, 14), 768)[0]
    assert positions.shape == (196, 768)
    row0_column1, row1_column0 = positions[1], positions[14]
    assert row0_column1[0] == pytest.approx(0.841471, abs=1e-6)
    assert row0_column1[384] == 0
    assert row1_column0[0] == 0
    assert row1_column0[384] == pytest.approx(0.841471, abs=1e-6)
    assert row0_column1[192] == pytest.approx(math.cos(1), abs=1e-6)  # sine block, then cosine block
    assert row0_column1[1] == pytest.approx(math.sin(10000 ** (-1 / 192)), abs=1e-6)
    swapped = sincos_positions((14, 14), 768, column_first=False)[0]
    torch.testing.assert_close(swapped, torch.cat([positions[:, 384:], positions[:, :384]], dim=1))


def test_positions_of_an_oblong_grid_count_rows_and_columns():
    """By hand on 7 rows of 11 columns."""
    positions = sincos_positions((7, 11), 24)[0]
    row, column = 4, 9
    assert positions[row * 11 + column, 0] == pytest.approx(math.sin(9), abs=1e-6)
    assert positions[row * 11 + column, 12] == pytest.approx(math.sin(4), abs=1e-6)


def test_class_token_has_no_position_and_fixed_positions_do_not_train():
    """MAE: row 0 of pos_embed is zero, the table is frozen."""
    pos_embed = vit().timm_model.pos_embed
    assert not pos_embed[0, 0].any()
    assert not pos_embed.requires_grad
    assert vit(pos_embed="learned").timm_model.pos_embed.requires_grad


def test_patches_lie_row_by_row_with_the_channel_last():
    """By hand: pixel (c, y, x) has the value 10000 c + 100 y + x."""
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(10), torch.arange(15), indexing="ij")
    patches = patchify((10000 * c + 100 * y + x)[None].float(), 5)
    assert patches.shape == (1, 6, 25, 3)
    assert patches[0, 4, 7].tolist() == [607, 10607, 20607]  # place (1, 1), pixel (1, 2): y = 6, x = 7
    assert torch.equal(unpatchify(patches.flatten(2), (2, 3), 5), (10000 * c + 100 * y + x)[None].float())


@torch.no_grad()
def test_initial_weights_follow_the_authors():
    """Against the published initialisation: Xavier-uniform, qkv and patch projection as one matrix each."""
    torch.manual_seed(0)
    timm_model = ViT(image_size=(32, 32), embed_dim=192, depth=2, num_heads=3, patch_size=16).timm_model

    def is_uniform(tensor, bound, tolerance=0.03):
        assert tensor.abs().max() <= bound
        assert tensor.std() == pytest.approx(bound / math.sqrt(3), rel=tolerance)

    block = timm_model.blocks[1]
    is_uniform(block.attn.qkv.weight, math.sqrt(6 / (4 * 192)))
    is_uniform(block.attn.proj.weight, math.sqrt(6 / (2 * 192)))
    is_uniform(block.mlp.fc1.weight, math.sqrt(6 / (5 * 192)))
    is_uniform(timm_model.patch_embed.proj.weight, math.sqrt(6 / (192 + 768)))
    is_uniform(timm_model.patch_embed.proj.bias, 1 / math.sqrt(768), tolerance=0.2)
    for bias in (block.attn.qkv.bias, block.attn.proj.bias, block.mlp.fc1.bias, block.mlp.fc2.bias, block.norm1.bias):
        assert not bias.any()
    assert (block.norm1.weight == 1).all()
    assert block.norm1.eps == timm_model.norm.eps == 1e-6
    assert timm_model.cls_token.std() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
def test_maskfeats_initial_weights():
    """Against the published ones: truncated normal of std 0.02 for matrices, patch projection, tokens and positions."""
    torch.manual_seed(0)
    encoder = ViT(
        image_size=(64, 64), embed_dim=192, depth=1, num_heads=3, feed="all", pos_embed="learned", init="trunc_normal"
    )
    timm_model = encoder.timm_model
    block = timm_model.blocks[0]
    large = (block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight, timm_model.patch_embed.proj.weight)
    for weight in large:
        assert weight.std() == pytest.approx(0.02, rel=0.02) and weight.abs().max() > 0.06
    for weight in (timm_model.cls_token, encoder.mask_token, timm_model.pos_embed):
        assert weight.std() == pytest.approx(0.02, rel=0.15)
    for bias in (block.attn.qkv.bias, block.mlp.fc2.bias, timm_model.norm.bias):
        assert not bias.any()


def test_a_final_norm_that_is_not_trained_stays_as_it_is():
    """CrossMAE's encoder has none: weight 1, bias 0, no gradient."""
    norm = ViT(image_size=(35, 55), patch_size=5, embed_dim=24, num_heads=2, depth=1, final_norm=False).timm_model.norm
    assert (norm.weight == 1).all() and not norm.bias.any()
    assert not norm.weight.requires_grad and not norm.bias.requires_grad


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_size": (36, 55)}, "image_size 36x55 is not divisible by encoder.patch_size=5"),
        ({"num_heads": 5}, "encoder.embed_dim=24 must be divisible by num_heads=5"),
        ({"embed_dim": 27}, "encoder.embed_dim=27 must be divisible by 4, or take pos_embed=learned"),
        ({"mean": (0.5,), "std": (0.5,)}, "one value per channel"),
    ],
)
def test_impossible_options_are_told(options, told):
    """The user's mistake in one line."""
    with pytest.raises(UserError, match=told):
        vit(**options)


def test_images_of_another_size_or_type_are_refused():
    """The user's mistake in one line."""
    with pytest.raises(UserError, match="reads images of 3x35x55, got 3x35x50"):
        vit()(images(size=(35, 50)))
    with pytest.raises(UserError, match="reads images of 3x35x55, got 1x35x55"):
        vit()(images(chans=1))
