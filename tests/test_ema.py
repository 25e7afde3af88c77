"""The moving copy of the encoder: data2vec's target and loss by hand in float64, the copy's order of steps and its life."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mimkit.targets.ema import EMA
from safetensors.torch import load_file

import mimkit
from mimkit.draft import load_recipe
from mimkit.encoders.vit import ViT
from mimkit.errors import UserError
from mimkit.train.loop import train
from mimkit.types import Head, Standardize

HEADS = 2


def encoder(**options):
    return ViT(image_size=(12, 16), patch_size=4, embed_dim=24, depth=3, num_heads=HEADS, **options)


def model(**target):
    """data2vec on oblong images, every weight random and the copy moved away from the encoder."""
    torch.manual_seed(0)
    tree = {
        "method": "data2vec",
        "image_size": [12, 16],
        "encoder": {
            "name": "vit",
            "embed_dim": 24,
            "depth": 3,
            "num_heads": HEADS,
            "patch_size": 4,
            "pos_embed": "learned",
        },
        "mask": {"name": "block", "ratio": 0.8, "min_area": 4, "rule": "at_most", "feed": "all"},
        "head": "linear",
        "target": {"name": "ema", "layers": 2, "decay": 0.9} | target,
        "loss": {"name": "smooth_l1", "beta": 2.0},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1},
    }
    built = mimkit.build(tree)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return built


def blocks(w, images, hidden):
    """A ViT from its definition, with weights by timm's names: what each block gives (B, 1+L, D)."""
    norm = lambda x, name: F.layer_norm(x, (24,), w[f"timm_model.{name}.weight"], w[f"timm_model.{name}.bias"], 1e-6)  # noqa: E731
    linear = lambda x, name: x @ w[f"timm_model.{name}.weight"].T + w[f"timm_model.{name}.bias"]  # noqa: E731
    proj = w["timm_model.patch_embed.proj.weight"]
    tokens = F.conv2d(images, proj, w["timm_model.patch_embed.proj.bias"], stride=4).flatten(2).mT
    if hidden is not None:
        tokens = torch.where(hidden[..., None], w["mask_token"], tokens)
    x = torch.cat([w["timm_model.cls_token"].expand(len(tokens), -1, -1), tokens], dim=1) + w["timm_model.pos_embed"]
    outputs = []
    for i in range(3):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(2, (HEADS, 12)).transpose(1, 2) for part in (q, k, v))
        mixed = ((q @ k.mT) / 12**0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
        outputs.append(x)
    return [*outputs, norm(x, "norm")]


def normed(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def close(ours, wanted):
    assert (ours.double().view(wanted.shape) - wanted).norm() <= 1e-5 * wanted.norm()


def test_data2vec_by_hand():
    """Prediction, target, loss and every gradient against the definition in float64; unequal numbers of hidden places."""
    ours = model()
    images = torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    out = ours(images, generator=torch.Generator().manual_seed(2))
    out.loss.backward()
    hidden = out.mask.hidden
    assert len(set(hidden.sum(1).tolist())) > 1

    standard = Standardize(3)(images).double()
    weights = {name: p.detach().double().requires_grad_() for name, p in ours.encoder.named_parameters()}
    copy = {name: p.double() for name, p in ours.objectives["main"].target.encoder.named_parameters()}
    last = [normed(output[:, 1:]) for output in blocks(copy, standard, None)[1:3]]
    wanted = normed((last[0] + last[1]) / 2)[hidden]
    head = {name: p.detach().double().requires_grad_() for name, p in ours.objectives["main"].head.named_parameters()}
    features = blocks(weights, standard, hidden)[-1][:, 1:][hidden]
    prediction = features @ head["predict.weight"].T + head["predict.bias"]
    error = (prediction - wanted).abs()
    loss = torch.where(error < 2, error**2 / 4, error - 1).mean()
    loss.backward()

    close(out.prediction, prediction)
    close(out.target, wanted)
    close(out.loss, loss)
    for name, parameter in ours.encoder.named_parameters():
        close(parameter.grad, weights[name].grad)
    for name, parameter in ours.objectives["main"].head.named_parameters():
        close(parameter.grad, head[name].grad)
    assert all(p.grad is None for p in ours.objectives["main"].target.parameters())


@pytest.mark.parametrize("layer_norm", [True, False])
def test_options_of_the_target(layer_norm):
    """Without the layers' norm a plain mean; layers=0 is the encoder's own final output on the full image."""
    torch.manual_seed(0)
    net = encoder().eval()
    images = torch.rand(2, 3, 12, 16)
    outputs = net(images, layers=[1, 2])
    mean = torch.stack([normed(x[:, 1:]) if layer_norm else x[:, 1:] for x in outputs.layers]).mean(0)
    torch.testing.assert_close(EMA(encoder=net, layers=2, layer_norm=layer_norm)(images), mean)
    torch.testing.assert_close(EMA(encoder=net, layers=0, layer_norm=layer_norm)(images), outputs.tokens)
    without = encoder(class_token=False).eval()
    assert EMA(encoder=without, layers=3)(images).shape == (2, 12, 24)


def test_the_target_of_a_step_is_the_copy_before_its_update():
    """Five steps: each target comes from the copy so far, which then is the average by hand, decay rising to decay_end."""
    ours = model(decay=0.5, decay_end=0.9)
    target = ours.objectives["main"].target
    optimizer = torch.optim.SGD(ours.parameters(), 0.05)
    by_hand = {name: p.detach().double().clone() for name, p in target.encoder.named_parameters()}
    for step in range(1, 6):
        images = torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(step))
        out = ours(images, generator=torch.Generator().manual_seed(step))
        last = [normed(x[:, 1:]) for x in blocks(by_hand, Standardize(3)(images).double(), None)[1:3]]
        close(out.target, normed((last[0] + last[1]) / 2)[out.mask.hidden])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        ours.after_step(step / 5)
        decay = 0.5 + 0.4 * step / 5
        for name, parameter in ours.encoder.named_parameters():
            by_hand[name] = decay * by_hand[name] + (1 - decay) * parameter.detach().double()
    for name, parameter in target.encoder.named_parameters():
        close(parameter, by_hand[name])


def test_buffers_move_too():
    """A float buffer is averaged, a whole number copied; a constant stays to the bit."""
    net = encoder()
    net.register_buffer("scale", torch.tensor([1.0, 2.0]))
    net.register_buffer("steps", torch.tensor(3))
    target = EMA(encoder=net, layers=1, decay=0.75)
    net.scale += 4
    net.steps += 4
    target.after_step(net, Head(), 0.5)
    assert target.encoder.scale.tolist() == [2.0, 3.0] and target.encoder.steps == 7
    assert torch.equal(target.encoder.standardize.mean, net.standardize.mean)
    assert torch.equal(target.encoder.timm_model.pos_embed, net.timm_model.pos_embed)


def test_a_copy_is_no_part_of_the_encoder_and_begins_anew_on_restart():
    """The encoder is copied at construction, not shared; `restart` takes its weights as they are."""
    ours = model()
    target = ours.objectives["main"].target
    shared = {p.data_ptr() for p in ours.encoder.parameters()} & {p.data_ptr() for p in target.parameters()}
    assert not shared and not any(p.requires_grad for p in target.parameters())
    ours.train()
    assert not target.encoder.training
    ours.restart_targets()
    for (name, copied), own in zip(target.encoder.named_parameters(), ours.encoder.parameters()):
        assert torch.equal(copied, own), name


def test_a_resumed_run_has_the_same_copy(tmp_path: Path, tiny, monkeypatch):
    """Checkpoints hold the copy: a run stopped after five of 14 steps ends with the bits of one that was not."""
    from mimkit.model import Model
    from mimkit.train import loop

    tiny |= {"target": {"name": "ema", "layers": 2, "decay": 0.5, "decay_end": 0.9}, "probe": {"every": 0}}
    recipe = load_recipe(tiny)
    assert any("target.encoder.timm_model.blocks" in name for name in mimkit.build(recipe).own_state())
    train(recipe, tmp_path / "whole")
    stops, after = [], Model.after_step
    enter = loop.StopRequest.__enter__

    def stop_after_five(self, progress):
        after(self, progress)
        if progress == 5 / 14:
            stops[-1].name = "SIGTERM"

    monkeypatch.setattr(loop.StopRequest, "__enter__", lambda self: (stops.append(self), enter(self))[1])
    monkeypatch.setattr(Model, "after_step", stop_after_five)
    assert train(recipe, tmp_path / "cut")["exit"] == "SIGTERM"
    monkeypatch.undo()
    train(recipe, tmp_path / "cut", resume=True)
    whole, cut = (
        load_file(tmp_path / run / "checkpoints" / "step-00000014" / "model.safetensors") for run in ("whole", "cut")
    )
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    moved = "timm_model.blocks.0.mlp.fc1.weight"
    assert not torch.equal(whole[f"objectives.main.target.encoder.{moved}"], whole[f"encoder.{moved}"])


def test_float32_under_autocast():
    """The blocks may run in bfloat16, the means do not."""
    target = EMA(encoder=encoder().eval(), layers=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = target(torch.rand(2, 3, 12, 16))
    assert values.dtype == torch.float32


def test_what_cannot_be_averaged_is_told():
    """One line each: too many blocks, an encoder that shows none, an encoder without a token for each place."""

    class Hierarchical(ViT):
        out_grid = (1, 2)

    with pytest.raises(UserError, match=r"^target\.layers=6 are to be averaged, but the encoder has 3 blocks$"):
        EMA(encoder=encoder())
    closed = encoder()
    closed.num_layers = 0
    with pytest.raises(UserError, match=r"gives no outputs of its blocks: set target\.layers=0$"):
        EMA(encoder=closed)
    assert EMA(encoder=closed, layers=0).dim == 24
    coarse = Hierarchical(image_size=(12, 16), patch_size=4, embed_dim=24, depth=3, num_heads=2)
    with pytest.raises(UserError, match=r"a token for each place, the encoder gives 1x2 for 3x4$"):
        EMA(encoder=coarse, layers=0)
