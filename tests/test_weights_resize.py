"""Encoders at other image sizes, against timm's own resizing of the same model."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

import mimkit
from mimkit import registry
from mimkit.errors import UserError
from mimkit.saved.encoder import save_encoder

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5}
SWIN = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
ENCODERS = {  # name: encoder, options, trained size, other size
    "learned": ("vit", VIT | {"pos_embed": "learned"}, (35, 55), (50, 40)),
    "learned, equally many": ("vit", VIT | {"pos_embed": "learned", "class_token": False}, (20, 45), (30, 30)),
    "shared table": ("beit", VIT, (35, 55), (50, 40)),
    "tables and positions": ("beit", VIT | {"rel_pos": "block", "abs_pos": True}, (35, 35), (20, 60)),
    "windows": ("swin", SWIN, (32, 32), (16, 32)),  # the last stage's window shrinks
    "any of timm": ("timm", {"model": "test_vit"}, (64, 64), (32, 96)),
    "timm's relative positions": ("timm", {"model": "test_vit_relpos"}, (64, 64), (32, 96)),
    "a ConvNet": ("timm", {"model": "test_convnext"}, (64, 64), (32, 96)),
}


def saved(path, name, options, image_size):
    torch.manual_seed(4)
    encoder = registry.build("encoder", name, options, {"image_size": image_size, "feed": "all"})
    for parameter in encoder.timm_model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    save_encoder(path, encoder, name, options)
    return encoder


@pytest.mark.parametrize("case", ENCODERS)
def test_other_sizes_give_what_timms_own_resizing_gives(tmp_path, case):
    """Against `set_input_size` of timm's model, where it has one, by features of a random image."""
    name, options, trained, other = ENCODERS[case]
    encoder = saved(tmp_path, name, options, trained)
    theirs, back = encoder.timm_model.eval(), mimkit.load(tmp_path, image_size=other)
    if hasattr(theirs, "set_input_size"):
        windows = {"window_size": options["window_size"]} if name == "swin" else {}
        theirs.set_input_size(img_size=other, **windows)
    images = torch.rand(2, 3, *other)
    with torch.no_grad():
        wanted = theirs.forward_features(encoder.standardize(images))
    if wanted.ndim == 4:
        wanted = wanted.flatten(1, 2) if name == "swin" else wanted.flatten(2).mT
    torch.testing.assert_close(back(images).sequence, wanted, atol=1e-4, rtol=1e-5)
    assert back.image_size == other and not back.training and not any(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize("pos_first", ["column", "row"])
def test_fixed_positions_are_computed_anew(tmp_path, pos_first):
    """Against an encoder that was built at the other size: interpolated sines would be no sines."""
    options = VIT | {"pos_first": pos_first}
    saved(tmp_path, "vit", options, (35, 35))
    wanted = registry.build("encoder", "vit", options, {"image_size": (50, 50), "feed": "all"})
    assert torch.equal(mimkit.load(tmp_path, image_size=50).timm_model.pos_embed, wanted.timm_model.pos_embed)


def test_fixed_positions_that_came_from_elsewhere_are_resampled(tmp_path):
    """Against timm's function: published positions, rows first, in an encoder whose own have the column first."""
    from timm.layers import resample_abs_pos_embed

    encoder = registry.build("encoder", "vit", VIT, {"image_size": (35, 35), "feed": "all"})
    theirs = registry.build("encoder", "vit", VIT | {"pos_first": "row"}, {"image_size": (35, 35), "feed": "all"})
    encoder.timm_model.load_state_dict(theirs.timm_model.state_dict())
    save_encoder(tmp_path, encoder, "vit", VIT)
    wanted = resample_abs_pos_embed(theirs.timm_model.pos_embed, [10, 10], [7, 7])
    torch.testing.assert_close(mimkit.load(tmp_path, image_size=(50, 50)).timm_model.pos_embed, wanted)


def test_the_trained_size_changes_nothing(tmp_path):
    """By comparison of every tensor."""
    encoder = saved(tmp_path, "beit", VIT, (35, 35))
    for size in (None, 35, (35, 35)):
        back = mimkit.load(tmp_path, image_size=size).timm_model.state_dict()
        assert all(torch.equal(back[name], x) for name, x in encoder.timm_model.state_dict().items())


def test_sizes_that_cannot_be_are_told(tmp_path):
    """The user's mistake in one line."""
    saved(tmp_path, "vit", VIT, (35, 35))
    with pytest.raises(UserError, match="36x36 is not divisible"):
        mimkit.load(tmp_path, image_size=36)
    saved(tmp_path, "timm", {"model": "mixer_s32_224"}, (64, 64))  # its layers mix a fixed number of places
    with pytest.raises(UserError, match=r"image_size=96x96: 'blocks.0.mlp_tokens.fc1.weight' .* cannot be brought to"):
        mimkit.load(tmp_path, image_size=96)


def test_relative_tables_follow_beits_rule(tmp_path):
    """Against scipy's interpolation on BEiT's grid, whose steps grow geometrically from the centre; class rows stay."""
    encoder = saved(tmp_path, "beit", VIT, (35, 35))
    table = encoder.timm_model.rel_pos_bias.relative_position_bias_table.detach()
    low, high = 1.01, 1.5  # the ratio of the steps with which 6 of them reach 9, the new furthest distance
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio**6) / (1 - ratio) > 9 else (ratio, high)
    steps = np.cumsum([ratio**number for number in range(6)])
    axis = np.concatenate([-steps[::-1], [0.0], steps])
    grid = RegularGridInterpolator(
        (axis, axis), table[:-3].view(13, 13, 3).numpy(), bounds_error=False, fill_value=None
    )
    new = np.stack(np.meshgrid(np.arange(-9, 10), np.arange(-9, 10), indexing="ij"), axis=-1)
    back = mimkit.load(tmp_path, image_size=50).timm_model.rel_pos_bias.relative_position_bias_table
    assert torch.equal(back[-3:], table[-3:])
    torch.testing.assert_close(back[:-3].view(19, 19, 3), torch.from_numpy(grid(new)).float(), atol=1e-4, rtol=0)
