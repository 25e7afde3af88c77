"""EVA-02 against its authors' maths written anew in float64: rotary positions, features, prediction, loss, gradients."""

import math

import pytest
import timm
import torch
from timm.models.eva import checkpoint_filter_fn
from torch import nn

import mimkit
from mimkit import registry
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.model import build_encoder, build_head
from mimkit.saved.encoder import save_encoder
from mimkit.show.features import _encode
from mimkit.types import Mask, Standardize, patchify
from mimkit.weights.export import export
from mimkit.weights.published import known_layouts, recognise
from tests.eva02 import (
    GRID,
    KINDS,
    TINY,
    angles,
    by_hand,
    encoder,
    eva02,
    gap,
    model,
    official,
    ours,
    pictures,
    published,
    unequal,
)


@pytest.mark.parametrize("size", [(224, 224), (35, 55)])
def test_rotary_positions_are_the_authors(size):
    """Against the formula place by place; at 224 px in patches of 14 the positions are 0 to 15."""
    patch = 14 if size == (224, 224) else 5
    rope = encoder(image_size=size, patch_size=patch).timm_model.rope.get_embed()
    wanted = angles((size[0] // patch, size[1] // patch), 8)
    if patch == 14:
        torch.testing.assert_close(wanted[16 * 3 + 5, [0, 2]], torch.tensor([3.0, 5.0], dtype=torch.float64))
    wanted = wanted.repeat_interleave(2, dim=1)
    torch.testing.assert_close(rope.double(), torch.cat([wanted.sin(), wanted.cos()], 1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", KINDS)
def test_published_weights_compute_what_the_authors_model_computes(size):
    """Against float64 by hand: features, prediction, minus the cosine, every gradient."""
    state, into = official(KINDS[size]), model(size, patch_grad=0.1)
    report = mimkit.load_official(into, published(state))
    assert not report.absent and all("rope" in name for name in report.left_over)
    images, hidden = pictures(), unequal()
    out = into(images, mask=Mask.from_hidden(hidden))
    out.loss.backward()
    features = into.encoder(images, Mask.from_hidden(hidden)).sequence

    exact = {name: x.double().requires_grad_() for name, x in state.items() if "rope" not in name}
    wanted = by_hand(exact, Standardize(3)(images).double(), hidden)
    prediction = wanted[:, 1:][hidden] @ exact["lm_head.weight"].T + exact["lm_head.bias"]
    target = patchify(Standardize(3)(images), 5).flatten(2)[hidden].double()
    cosines = (prediction * target).sum(-1) / prediction.norm(dim=-1) / target.norm(dim=-1)
    (-cosines.mean()).backward()

    assert gap(features, wanted) < 1e-5
    assert gap(out.prediction, prediction) < 1e-5
    assert out.loss.item() - 1 == pytest.approx(-cosines.mean().item(), rel=1e-5)
    parameters = dict(into.named_parameters())
    assert {ours(name, KINDS[size]) for name in exact} == parameters.keys()
    gaps = {name: gap(parameters[ours(name, KINDS[size])].grad, x.grad) for name, x in exact.items()}
    assert max(gaps.values()) < 1e-5, sorted(gaps.items(), key=lambda item: -item[1])[:3]


@torch.no_grad()
@pytest.mark.parametrize("size", KINDS)
def test_visible_places_keep_their_rotary_positions(size):
    """Against float64 by hand, in the order in which places are fed."""
    state, masked, made = official(KINDS[size]), encoder(size=size), encoder(feed="visible", size=size)
    mimkit.load_official(masked, published(state))
    made.timm_model.load_state_dict(masked.timm_model.state_dict())
    fed = torch.tensor([[40, 3, 76, 12, 0], [5, 61, 2, 33, 70]])
    hidden = torch.ones(2, 77, dtype=torch.bool).scatter_(1, fed, False)
    found = made(pictures(), Mask.from_hidden(hidden, fed=fed))
    exact = {name: x.double() for name, x in state.items()}
    assert gap(found.sequence, by_hand(exact, made.standardize(pictures()).double(), hidden, fed)) < 1e-5
    assert found.grid is None and made.mask_token is None


@pytest.mark.parametrize("size", KINDS)
def test_a_published_file_is_of_one_kind(size):
    """By asking all layouts."""
    state = official(KINDS[size])
    assert [layout for layout in known_layouts() if layout.recognises(state)] == [published(state).layout]
    assert size in published(state).layout.name and recognise(state).layout == published(state).layout


@pytest.mark.parametrize("size", KINDS)
def test_weights_lie_as_timm_converts_them(size):
    """Against timm's own conversion of the same file."""
    state, made = official(KINDS[size]), encoder(size=size)
    mimkit.load_official(made, published(state))
    theirs = checkpoint_filter_fn({"model": state}, made.timm_model)
    theirs = {name.replace("fc_norm", "norm"): x for name, x in theirs.items()}
    here = made.timm_model.state_dict()
    assert theirs.keys() == here.keys() and all(torch.equal(x, here[name]) for name, x in theirs.items())


def blocks(width: int, depth: int, sub_norm: bool) -> int:
    """Trainable numbers of a ViT/14 at 224 px with 256 places and a prediction of 1024."""
    hidden = int(width * 8 / 3)
    attention, mlp = 4 * width**2 + 3 * width, 3 * width * hidden + 2 * hidden + width
    block = attention + mlp + 4 * width + 2 * sub_norm * hidden
    return depth * block + (588 + 1 + 257 + 2 + 2) * width + 1024 * (width + 1)


@pytest.mark.parametrize(("size", "width"), [("base", 768), ("tiny", 192)])
def test_the_recipes_hold_the_authors_settings(size, width):
    """Against the authors' command lines, and the shapes of their published files."""
    recipe = load_recipe(f"imagenet/eva02_vit_{size}", ["data=shapes"])
    with torch.device("meta"):
        masking, made = build_encoder(recipe)
        head = build_head(recipe.objectives["main"].head, made, masking.feed, 1024)
    count = sum(p.numel() for part in (made, head) for p in part.parameters())
    assert count == blocks(width, 12, KINDS[size])
    names = eva02(KINDS[size], width, 12, width // 64, 14, (16, 16), 1024)
    assert count == sum(math.prod(shape) for name, shape in names.items() if "rope" not in name)
    optim, run, batches = recipe.optim, recipe.train, recipe.batches
    assert (optim.lr, batches.batch_size, run.epochs) == {"base": (1.5e-3, 2048, 150), "tiny": (3e-3, 4000, 240)}[size]
    assert (optim.min_lr, optim.weight_decay, optim.betas, optim.eps) == (1e-5, 0.05, (0.9, 0.98), 1e-6)
    assert (run.warmup_epochs, run.clip_grad, batches.crop_scale) == (1, 3.0, (0.2, 1.0))
    assert recipe.encoder.options["patch_grad"] == 0.1 and recipe.encoder.options["drop_path"] == 0
    head_std = recipe.objectives["main"].head.options["init_std"]
    assert head_std == pytest.approx(math.sqrt(2 / (width + 1408)), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sub_norm", [True, False])
def test_initial_weights_follow_the_authors(sub_norm):
    """Xavier's std sqrt(2 / (in + out)); with sub-LN times sqrt(log(2 depth)) after q and k; tokens cut at one std."""
    torch.manual_seed(0)
    options = {"embed_dim": 192, "depth": 2, "num_heads": 3, "patch_size": 16, "sub_norm": sub_norm}
    made = registry.build("encoder", "eva", options, {"image_size": (96, 96)})
    eva, scale = made.timm_model, math.sqrt(math.log(4)) if sub_norm else 1.0
    attn, mlp = eva.blocks[1].attn, eva.blocks[1].mlp
    plain = [attn.q_proj, attn.k_proj] if sub_norm else [attn.qkv]
    scaled = [attn.v_proj, mlp.fc1_g, mlp.fc1_x] if sub_norm else [mlp.fc1]
    for layers, factor in ((plain, 1.0), ([*scaled, attn.proj, mlp.fc2], scale)):
        for each in layers:
            assert each.weight.std() == pytest.approx(factor * math.sqrt(2 / sum(each.weight.shape)), rel=0.02)
            assert each.weight.abs().max() > 3 * each.weight.std()  # normal, not uniform
            assert each.bias is None or not each.bias.any()
    projection = eva.patch_embed.proj.weight
    assert projection.abs().max() == pytest.approx(math.sqrt(6 / (192 + 768)), rel=0.01)
    for token in (eva.pos_embed, eva.cls_token, made.mask_token):
        assert token.abs().max() <= 0.02 and token.std() == pytest.approx(0.5396 * 0.02, rel=0.2)
    assert {m.eps for m in eva.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


@torch.no_grad()
@pytest.mark.parametrize("size", KINDS)
def test_full_image_equals_timms_own_forward(size):
    """Against forward_features, with 3 and with 2 channels; layers, norm, and the picture's attention by hand of timm."""
    for chans in (3, 2):
        made = encoder(size=size, in_chans=chans)
        images, eva = pictures(chans=chans), made.timm_model
        pixels = Standardize(chans)(images)
        found = made(images, layers=(-1, 0, 1))
        torch.testing.assert_close(found.sequence, eva.forward_features(pixels), atol=2e-5, rtol=1e-5)
        entering, rope = eva._pos_embed(eva.patch_embed(pixels))
        torch.testing.assert_close(found.layers[0], entering, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.layers[1], eva.blocks[0](entering, rope=rope), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.norm(found.layers[2]), found.sequence)
        assert found.grid == GRID and found.num_prefix_tokens == 1 and found.attn_bias is None
        features, attention = _encode(made, images)
        torch.testing.assert_close(features.sequence, found.sequence, atol=1e-5, rtol=1e-4)
        assert attention is not None and attention.shape == (2, 77)


def test_hidden_pixels_and_autocast():
    """By perturbation; under bfloat16 the residual stream and the loss stay in float32, and every parameter is trained."""
    into = model(patch_grad=0.1)
    images, mask = pictures(), Mask.from_hidden(unequal())
    other = mimkit.unpatchify(
        torch.where(mask.hidden[..., None], 0.5, patchify(images, 5).flatten(2)), GRID, into.encoder.patch_size
    )
    torch.testing.assert_close(into.encoder(images, mask).sequence, into.encoder(other, mask).sequence)
    with torch.autocast("cpu", torch.bfloat16):
        out = into(images, mask=mask)
        assert into.encoder(images, mask, layers=(1,)).layers[0].dtype == torch.float32
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in into.parameters())
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(into(images, mask=mask).loss.item(), rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("size", KINDS)
def test_a_saved_encoder_comes_back_at_any_size(size, tmp_path):
    """By round trip, and against timm's own resizing: learned positions resampled, rotary ones spread anew."""
    made = encoder(size=size)
    save_encoder(tmp_path, made, "eva", {**TINY, "size": size})
    assert torch.equal(mimkit.load(tmp_path)(pictures()).sequence, made(pictures()).sequence)
    other = (50, 40)
    back = mimkit.load(tmp_path, image_size=other)
    made.timm_model.set_input_size(img_size=other)
    wanted = made.timm_model.forward_features(made.standardize(pictures(other)))
    torch.testing.assert_close(back(pictures(other)).sequence, wanted, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", KINDS)
def test_timm_loads_the_export(size, tmp_path):
    """Against timm.create_model on the folder."""
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    made = encoder(size=size)
    known = registry.options(registry.find("encoder", "eva"), registry.ROLES["encoder"].facts)
    save_encoder(run, made, "eva", {name: option.default for name, option in known.items()} | TINY | {"size": size})
    assert "it gives the mean of the patch tokens" in export(run, out, "timm")
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    pixels = made.standardize(pictures())
    torch.testing.assert_close(theirs.forward_features(pixels), made(pictures()).sequence, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs(pixels), made(pictures()).pooled, atol=1e-4, rtol=1e-4)


def test_impossible_options_are_told():
    """The user's mistake in one line."""
    with pytest.raises(UserError, match=r"^encoder.embed_dim=24 must be divisible by 4 \* num_heads=16$"):
        encoder(num_heads=4)
    with pytest.raises(UserError, match="the encoder reads images of 3x35x55, got 3x35x50"):
        encoder()(pictures((35, 50)))
