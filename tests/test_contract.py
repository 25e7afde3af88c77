"""Every combination that `mimkit list` offers trains one step, or is refused in one line. A new file is tested at once."""

from itertools import product
from typing import Any

import pytest
import torch

import mimkit
from mimkit import registry
from mimkit.errors import UserError
from mimkit.model import Model

ENCODERS = {"vit": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 5}}
HEADS = {"decoder": {"embed_dim": 16, "depth": 2, "num_heads": 2}}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {"encoder": ENCODERS, "head": HEADS}
COMBINATIONS = list(product(*(registry.names(role) for role in ("encoder", "head", "target", "mask"))))


def build(names: tuple[str, ...], feed: str = "visible", **encoder: Any) -> Model:
    roles = dict(zip(("encoder", "head", "target", "mask"), names, strict=True))
    tree: dict[str, Any] = {role: {"name": name, **OPTIONS.get(role, {}).get(name, {})} for role, name in roles.items()}
    tree["encoder"] |= encoder
    if "feed" in registry.options(registry.find("mask", names[3])):
        tree["mask"]["feed"] = feed
    tree |= {"method": "contract", "image_size": [35, 55], "optim": {"lr": 1e-3}, "train": {"epochs": 1}}
    return mimkit.build(tree)


@pytest.mark.parametrize("feed", ["visible", "all"])
@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
def test_a_combination_trains_or_is_refused(names: tuple[str, ...], feed: str) -> None:
    """Oblong images; a finite loss, a gradient for every trainable parameter, none for the target."""
    try:
        model = build(names, feed)
    except UserError as refusal:
        assert "\n" not in str(refusal)
        assert names[1] == "linear" and feed == "visible" and names[3] != "none", refusal
        return
    out = model(torch.rand(2, 3, 35, 55), generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(out.loss) and out.prediction.shape == out.target.shape
    out.loss.backward()
    for name, parameter in model.named_parameters():
        frozen = not parameter.requires_grad
        assert frozen or parameter.grad is not None, f"{name} has no gradient"
        assert not (frozen and parameter.grad is not None), name
    assert not any(p.requires_grad for o in model.objectives.values() for p in o.target.parameters())


@pytest.mark.parametrize("in_chans", [1, 3, 4, 12])
@pytest.mark.parametrize("target", registry.names("target"))
def test_any_number_of_channels(target: str, in_chans: int) -> None:
    model = build(("vit", "decoder", target, "random"), in_chans=in_chans)
    images = torch.randint(0, 256, (2, in_chans, 35, 55), dtype=torch.uint8)
    assert torch.isfinite(model(images).loss)
    assert model.encoder(images).pooled.shape == (2, 24)


def test_bytes_and_floats_are_the_same_images() -> None:
    model = build(("vit", "decoder", "norm_pixels", "random"))
    images = torch.randint(0, 256, (2, 3, 35, 55), dtype=torch.uint8)
    losses = [model(x, generator=torch.Generator().manual_seed(1)).loss for x in (images, images.float() / 255)]
    torch.testing.assert_close(*losses)


def test_a_given_mask_is_fed_as_the_recipe_feeds() -> None:
    model = build(("vit", "decoder", "pixels", "random"))
    hidden = torch.zeros(2, 77, dtype=torch.bool)
    hidden[0, :50], hidden[1, 20:70] = True, True
    out = model(torch.rand(2, 3, 35, 55), mask=mimkit.Mask.from_hidden(hidden))
    assert out.mask.fed is not None and torch.equal(out.mask.fed[0], torch.arange(50, 77)) and out.mask.grid == (7, 11)
    with pytest.raises(UserError, match="need \\(2, 77\\)"):
        model(torch.rand(2, 3, 35, 55), mask=mimkit.Mask.from_hidden(hidden[:, :70]))


def test_a_target_stays_frozen_in_eval_mode() -> None:
    model = build(("vit", "decoder", "pixels", "random")).train()
    assert model.training and not model.objectives["main"].target.training
