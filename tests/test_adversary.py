"""The adversarial loss: discriminator, hinge and adaptive weight written out; the order of things in a training step."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import mimkit
from mimkit.adversary import PatchDiscriminator, hinge
from mimkit.compare.cost import cost_of
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.train.loop import train
from mimkit.train.session import Run, prepare
from mimkit.train.step import step
from tests.vqgan import HEAD, PIXELS, SMALL

AGAINST: dict[str, Any] = {
    "prediction": "main",
    "target": PIXELS,
    "loss": {"name": "adversarial", "channels": 4, "layers": 2, "lr": 2e-3, "start_step": 2},
    "weight": 0.8,
    "adaptive": True,
}
RECIPE = SMALL | {"objectives": {"against": AGAINST}, "head": HEAD | {"revive": True}, "probe": {"every": 0}}
RECIPE["train"] = {"max_steps": 6, "log_every": 1, "checkpoint_every": 0.5, "pictures_every": 9}


def test_the_discriminator_of_the_paper() -> None:
    """30x30 logits of 256 px, names and biases of the authors' class, its initial weights."""
    torch.manual_seed(0)
    net = PatchDiscriminator(3, channels=64, layers=3, image_size=(256, 256))
    assert net(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    convolutions = {"0": (64, 3), "2": (128, 64), "5": (256, 128), "8": (512, 256), "11": (1, 512)}
    for number, shape in convolutions.items():
        weight = net.get_parameter(f"main.{number}.weight")
        assert weight.shape == (*shape, 4, 4) and (f"main.{number}.bias" in net.state_dict()) == (number in ("0", "11"))
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    norms = torch.cat([net.get_parameter(f"main.{number}.weight") for number in (3, 6, 9)])
    assert norms.mean().item() == pytest.approx(1, abs=0.003) and norms.std().item() == pytest.approx(0.02, rel=0.1)
    assert {name.split(".")[1] for name in net.state_dict()} == {"0", "2", "3", "5", "6", "8", "9", "11"}
    with pytest.raises(UserError, match=r"layers=3 needs images of at least 24 pixels: lower loss\.layers"):
        PatchDiscriminator(3, channels=4, layers=3, image_size=(24, 20))


def test_the_discriminator_written_out() -> None:
    """Convolutions by torch, batch statistics and leak by hand."""
    net = PatchDiscriminator(2, channels=3, layers=2, image_size=(16, 16)).double().train()
    w = net.state_dict()
    x = torch.randn(3, 2, 16, 20, dtype=torch.float64)
    ours = net(x)
    x = F.conv2d(x, w["main.0.weight"], w["main.0.bias"], 2, 1)
    for conv, stride in ((2, 2), (5, 1)):
        x = F.conv2d(torch.where(x > 0, x, 0.2 * x), w[f"main.{conv}.weight"], None, stride, 1)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        scale, shift = (w[f"main.{conv + 1}.{part}"][:, None, None] for part in ("weight", "bias"))
        x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
    x = F.conv2d(torch.where(x > 0, x, 0.2 * x), w["main.8.weight"], w["main.8.bias"], 1, 1)
    torch.testing.assert_close(ours, x)


def test_hinge_by_hand() -> None:
    real, fake = (torch.tensor(rows).view(1, 1, 1, 3) for rows in ([2.0, 0.5, -1.0], [-3.0, -0.5, 1.0]))
    assert hinge(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3))


def built(active: bool = True) -> Model:
    torch.manual_seed(5)
    model = mimkit.build(RECIPE).double().train()
    model.objectives["against"].compare.active = active  # type: ignore[union-attr]
    return model


def test_loss_and_gradients_with_the_adaptive_weight() -> None:
    """total = l1 + codebook + 0.8 · λ · (-mean D), λ the ratio of gradient norms at the last layer, itself no variable."""
    model, images = built(), torch.rand(4, 3, 16, 24, dtype=torch.float64)
    by_hand = copy.deepcopy(model)
    out = model(images)
    out.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}

    head, net = by_hand.objectives["main"].head, by_hand.objectives["against"].compare.discriminator  # type: ignore
    prediction = head(by_hand.encoder(images), out.mask)
    painted = prediction.values.view(4, 4, 6, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(4, 3, 16, 24)
    l1, g = (painted - (2 * images.float().double() - 1)).abs().mean(), -net(painted).mean()
    last = head.decoder.conv_out.weight
    norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (l1, g)]
    factor = (norms[0] / (norms[1] + 1e-4)).detach()
    total = l1 + prediction.losses["codebook"] + 0.8 * factor * g
    total.backward()
    assert out.metrics["against.factor"].item() == pytest.approx(factor.item(), rel=1e-5)
    assert out.loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert out.losses["against"].item() == pytest.approx(g.item(), rel=1e-5)
    for name, p in by_hand.named_parameters():
        assert (found[name] is None) == (p.grad is None) == ("discriminator" in name), name
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_before_its_step_it_counts_for_nothing() -> None:
    model = built(active=False)
    out = model(torch.rand(2, 3, 16, 24, dtype=torch.float64))
    assert out.losses["against"].item() == 0 and out.metrics["against.factor"].item() == 1
    assert out.loss.item() == pytest.approx((out.losses["main"] + out.losses["main.codebook"]).item())


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in module.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_order_of_things(tmp_path: Path, accumulate: int) -> None:
    """The discriminator learns after the model, from what the updated model makes, by Adam; nothing else moves then."""
    tree = copy.deepcopy(RECIPE)
    tree["train"]["accumulate"] = accumulate
    run = prepare(load_recipe(tree), tmp_path / "run", resume=False)
    stream, loss = run.batches.start(), run.model.objectives["against"].compare  # type: ignore[union-attr]
    start = state(loss.discriminator)
    for _ in range(2):
        losses, _ = step(run, next(stream))
        assert "loss_against.opponent" not in losses and losses["loss_against"] == 0
    assert all(torch.equal(x, start[name]) for name, x in loss.discriminator.state_dict().items())

    views = next(stream)
    reference = copy.deepcopy(loss.discriminator)
    losses, _ = step(run, views)
    for p in loss.discriminator.parameters():
        assert not p.requires_grad and p.grad is None
    assert losses["loss_against"] != 0
    check = copy.deepcopy(run.model).eval()
    reference.train().requires_grad_(True)
    optimizer = torch.optim.Adam(reference.parameters(), 2e-3, (0.5, 0.9))
    total = 0.0
    for part in views["image"].chunk(accumulate):
        with torch.no_grad():
            made = check(part).prediction
            fake = 2 * check.objectives["main"].target.to_images(made, (4, 6)) - 1  # type: ignore[union-attr]
        real = 2 * part.float() / 255 - 1
        term = (F.relu(1 - reference(real)).mean() + F.relu(1 + reference(fake)).mean()) / 2 / accumulate
        term.backward()
        total += term.item()
    optimizer.step()
    assert losses["loss_against.opponent"].item() == pytest.approx(total, rel=1e-5)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(loss.discriminator.get_parameter(name).detach(), p.detach(), rtol=1e-4, atol=1e-6)
    assert run.model.training and loss.discriminator.training


def test_the_model_is_the_same_whether_the_discriminator_learns_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step with its own step left out: model, codebook and counts have the same bits, the discriminator has not."""
    ends = []
    for number in range(2):
        run = prepare(
            load_recipe(RECIPE, ["objectives.against.loss.start_step=0"]), tmp_path / f"{number}", resume=False
        )
        if number:
            monkeypatch.setattr("mimkit.train.step.oppose", lambda run, parts, batch: {})
        step(run, next(run.batches.start()))
        ends.append(state(run.model))
    differ = {name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])}
    assert differ and all(".discriminator." in name for name in differ)


def stop_after(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mimkit.train import loop

    stops: list[Any] = []
    enter, after, steps = loop.StopRequest.__enter__, Model.after_step, iter(range(1, 100))
    monkeypatch.setattr(loop.StopRequest, "__enter__", lambda self: (stops.append(self), enter(self))[1])

    def stop(self: Model, progress: float) -> None:
        after(self, progress)
        if next(steps) == cut:
            stops[-1].name = "SIGTERM"

    monkeypatch.setattr(Model, "after_step", stop)


@pytest.mark.parametrize("cut", [1, 4])
def test_a_cut_run_ends_with_the_same_bits(tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the discriminator began: its weights, statistics and optimizer are in the checkpoints."""
    recipe = load_recipe(RECIPE)
    train(recipe, tmp_path / "whole")
    stop_after(cut, monkeypatch)
    assert train(recipe, tmp_path / "cut")["exit"] == "SIGTERM"
    monkeypatch.undo()
    assert train(recipe, tmp_path / "cut", resume=True)["exit"] == "done"
    for file in ("model", "optimizer"):
        whole, other = (
            load_file(tmp_path / run / "checkpoints" / "step-00000006" / f"{file}.safetensors")
            for run in ("whole", "cut")
        )
        assert whole.keys() == other.keys() and all(torch.equal(whole[name], other[name]) for name in whole)
        assert any("discriminator" in name for name in whole)


def test_a_discriminator_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mimkit.losses import adversarial

    monkeypatch.setattr(
        adversarial, "oppose", lambda self, made, true: made.sum() * float("nan") + self._logits(true).sum()
    )
    with pytest.raises(UserError, match="step 3: the loss or its gradient is not finite"):
        train(load_recipe(RECIPE), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"target": "hog"}, "loss 'adversarial' compares images: take target=pixels"),
        ({"loss": {"name": "adversarial", "layers": 3}}, "needs images of at least 24 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        mimkit.build(RECIPE | {"objectives": {"against": AGAINST | change}})


def test_a_part_of_an_image_is_no_image() -> None:
    mask = {"name": "random", "feed": "all"}
    model = mimkit.build(
        RECIPE | {"mask": mask, "head": {"name": "linear"}, "objectives": {"against": AGAINST | {"adaptive": False}}}
    )
    model.objectives["against"].compare.active = True  # type: ignore[union-attr]
    with pytest.raises(UserError, match="compares whole images, of which a part is predicted: set mask=none"):
        model(torch.rand(2, 3, 16, 24))
    adaptive = mimkit.build(RECIPE | {"head": {"name": "linear"}})
    adaptive.objectives["against"].compare.active = True  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"head 'linear' tells no last layer, .* set adaptive=false"):
        adaptive(torch.rand(2, 3, 16, 24))


def test_runs_without_opponents_have_one_optimizer(tmp_path: Path) -> None:
    run: Run = prepare(load_recipe(SMALL), tmp_path / "run", resume=False)
    assert run.opponents == [] and run.optimizers == [run.optimizer]


def test_an_adaptive_weight_needs_a_fixed_one_beside_it() -> None:
    rest = {name: x for name, x in RECIPE.items() if name not in ("head", "target", "normalizer", "loss")}
    paint = {"head": HEAD, "target": PIXELS, "loss": "l1", "adaptive": True}
    with pytest.raises(UserError, match="objective 'paint' is adaptive, so its head needs an objective with a fixed"):
        mimkit.build(rest | {"objectives": {"paint": paint}})


def test_the_operations_of_a_step_count_the_discriminators() -> None:
    """Its own step: the discriminator forward and backward on images and on what is made, and the model once more."""
    without = cost_of(mimkit.build({name: x for name, x in RECIPE.items() if name != "objectives"}))
    whole = cost_of(mimkit.build(RECIPE))
    assert whole.step > 1.3 * without.step  # a forward pass is a third of a step
