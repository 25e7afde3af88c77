"""CMAE: loss and every gradient against the authors' order of computation in float64; when its copies move."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mimkit
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.heads.feature_decoder import TwoLayers
from mimkit.model import Model
from mimkit.train.session import prepare
from mimkit.types import Standardize
from mimkit.weights.official import load_official
from tests import published
from tests.test_heads import gap, split_attention
from tests.test_milan_crossmae_oracle import ENCODER, PATCH, PLACES, SEEN, SIZE, encoded, randomised, recipe

DECODER: dict[str, Any] = {"embed_dim": 20, "num_heads": 5}
CONTRAST = {
    "head": {"name": "feature_decoder", **DECODER, "depth": 2, "hidden_dim": 36},
    "target": {"name": "momentum", "dim": 12, "decay": 0.75},
    "loss": {"name": "info_nce", "temperature": 0.07, "scale": 0.14},
}


def cmae(*overrides: str) -> Model:
    torch.manual_seed(1)
    tree = recipe(
        encoder=ENCODER | {"pos_first": "row"},
        mask="random",
        head={"name": "decoder", **DECODER, "depth": 3, "pos_first": "row"},
        target="norm_pixels",
        objectives={"contrast": CONTRAST},
        data={"name": "shapes", "views": {"shifted": {"shift": 4}}},
    )
    return mimkit.build(tree, *overrides)


def decoded(head: Any, latent: Tensor, keep: Tensor) -> Tensor:
    """MAE's decoder over all places in raster order."""
    x = head.embed(latent)
    batch = len(x)
    places = head.mask_token.expand(batch, PLACES, -1).scatter(1, keep[..., None].expand(-1, -1, x.shape[2]), x[:, 1:])
    x = torch.cat([x[:, :1], places], 1) + head.pos_embed
    for block in head.blocks:
        q, kv = block.attn.qkv(block.norm1(x)).split((20, 40), -1)
        x = x + block.attn.proj(split_attention(q, kv, 5))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return head.predict(head.norm(x))[:, 1:]


def two_layers(module: Any, x: Tensor) -> Tensor:
    """With the statistics of the batch."""
    x = module.fc0(x)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt() * module.bn0.weight + module.bn0.bias
    return x.clamp_min(0) @ module.fc1.weight.mT


def test_loss_and_gradients() -> None:
    model = randomised(cmae())
    target: Any = model.objectives["contrast"].target
    target.restart(model.encoder, model.objectives["contrast"].head)
    for parameter in target.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.1)
    target.requires_grad_(False)
    double = deepcopy(model.double())  # batch norms over three images would enlarge float32's last digits
    generator = torch.Generator().manual_seed(2)
    images, shifted = (torch.rand(3, 3, *SIZE, generator=generator) for _ in range(2))
    keep = torch.rand(3, PLACES, generator=generator).argsort(1)[:, :SEEN]
    hidden = torch.ones(3, PLACES, dtype=torch.bool).scatter(1, keep, False)
    out = model(images, mask=mimkit.Mask.from_hidden(hidden, fed=keep), views={"shifted": shifted})

    main, contrast = (double.objectives[name] for name in ("main", "contrast"))
    latent = double.encoder.timm_model.norm(encoded(double.encoder.timm_model, images, keep)[-1])
    pixels = Standardize(3).double()(images)
    patches = F.unfold(pixels, PATCH, stride=PATCH).unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)
    patches = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    squared = (decoded(main.head, latent, keep) - patches).square().mean(-1)
    reconstruction = (squared * hidden).sum() / hidden.sum()

    feature = decoded(contrast.head.decoder, latent, keep).mean(1)
    online = two_layers(contrast.head.predictor, two_layers(contrast.head.projector, feature))
    everywhere = torch.arange(PLACES).expand(3, -1)
    blocks = encoded(contrast.target.encoder.timm_model, shifted, everywhere)
    wanted = two_layers(contrast.target.projector, blocks[-1][:, 1:].mean(1)).detach()
    logits = F.normalize(online, dim=-1) @ F.normalize(wanted, dim=-1).mT / 0.07
    contrastive = 2 * 0.07 * F.cross_entropy(logits, torch.arange(3))
    assert gap(out.losses["main"], reconstruction) < 1e-5 and gap(out.losses["contrast"], contrastive) < 1e-5
    out.loss.backward()
    (reconstruction + contrastive).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    theirs = {name: double.get_parameter(name).grad for name in trained if "target" not in name}
    assert len(trained) == len(theirs) > 90
    for name, grad in theirs.items():
        torch.testing.assert_close(trained[name], grad, rtol=1e-5, atol=1e-5 * grad.abs().max().item() + 1e-9, msg=name)


def test_the_copies_move_after_the_step_by_their_share() -> None:
    """Would fail if they moved before it: the copies would then not know the step's weights."""
    model = cmae()
    head, target = (getattr(model.objectives["contrast"], name) for name in ("head", "target"))
    pairs = [*zip(target.encoder.parameters(), model.encoder.parameters())]
    pairs += zip(target.projector.parameters(), head.projector.parameters())
    before = [copy.clone() for copy, _ in pairs]
    assert all(torch.equal(copy, now) for copy, now in pairs)
    model.before_step(0.5)
    with torch.no_grad():
        for _, now in pairs:
            now += torch.rand_like(now)
    assert all(torch.equal(copy, was) for (copy, _), was in zip(pairs, before))
    model.after_step(0.5)
    for (copy, now), was in zip(pairs, before):
        torch.testing.assert_close(copy, 0.75 * was + 0.25 * now)
    assert not any(copy.requires_grad for copy, _ in pairs)


def test_the_copies_are_in_the_checkpoint_and_begin_anew_with_published_weights() -> None:
    model = cmae("image_size=35")
    names = set(model.own_state())
    assert {"objectives.contrast.target.projector.fc0.weight", "objectives.contrast.head.predictor.bn0.weight"} <= names
    shapes = published.cmae(decoder=20, decoder_depth=3, hidden=36, dim=12, patch=PATCH, width=24, depth=3)
    theirs = {name: torch.rand(shape) for name, shape in shapes.items()}
    report = load_official(model, theirs)
    head, target = (getattr(model.objectives["contrast"], name) for name in ("head", "target"))
    assert torch.equal(head.predictor.fc1.weight, theirs["head.predictor.fc1.weight"])
    assert torch.equal(target.projector.fc0.weight, theirs["projector.fc0.weight"])
    assert torch.equal(target.encoder.timm_model.norm.bias, theirs["backbone.ln1.bias"])
    assert {name.partition(".")[0] for name in report.left_over} == {"target_backbone", "target_projector"}
    assert not report.absent


def test_the_target_needs_a_head_with_a_projector() -> None:
    with pytest.raises(UserError, match="take head=feature_decoder"):
        mimkit.build("mae", "target=momentum", "loss=mse")


def test_one_image_passes_the_norms_of_the_projections() -> None:
    """A batch of one has no variance."""
    model = cmae()
    for mode in (True, False):
        assert torch.isfinite(model.train(mode)(torch.rand(1, 3, *SIZE)).loss)
    assert isinstance(model.objectives["contrast"].head.projector, TwoLayers)


def test_looking_at_a_model_moves_nothing() -> None:
    """Pictures and scores are made in eval mode: the copy's batch statistics stay."""
    model = cmae().eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model(torch.rand(4, 3, *SIZE))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    model.train()(torch.rand(4, 3, *SIZE))
    moved = {name.rpartition(".")[2] for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_batch_in_parts_is_refused(tmp_path: Path) -> None:
    """The negatives would be those of the part."""
    with pytest.raises(
        UserError, match=r"accumulate=2: the loss of objective 'contrast' compares the images of a batch"
    ):
        prepare(load_recipe("cmae", ["train.accumulate=2", "data.num_images=64"]), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_whole_images_alone_are_refused(tmp_path: Path) -> None:
    given = ["head=feature_decoder", "target=momentum", "data.views={shifted: {shift: 4}}", "data.num_images=64"]
    with pytest.raises(UserError, match="the first objective predicts single places"):
        prepare(load_recipe("mae", given), tmp_path / "run", resume=False)
