"""The perceptual loss: by its definition on the features of timm's models and of our runs, and where its gradient goes."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import mimkit
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.perceptual import PerceptualDistance
from mimkit.saved.encoder import save_encoder
from mimkit.train.loop import train
from tests.vqgan import PIXELS, SMALL

VIT = {"name": "vit", "embed_dim": 12, "depth": 3, "num_heads": 2, "patch_size": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-over of an encoder as a run leaves it: with a class token, on 16x24 pixels."""
    torch.manual_seed(2)
    tree = {key: SMALL[key] for key in ("method", "image_size", "mask", "target", "optim", "train")}
    model = mimkit.build(tree | {"encoder": VIT, "head": "linear"})
    for p in model.encoder.parameters():
        torch.nn.init.normal_(p, std=0.2)
    folder = tmp_path_factory.mktemp("runs") / "mae-1"
    folder.mkdir()
    save_encoder(folder, model.encoder, "vit", model.recipe.encoder.options)
    return folder


def by_definition(ours: list[torch.Tensor], theirs: list[torch.Tensor], weights: list[Any]) -> torch.Tensor:
    """Of features (B, D, …), a position and a channel at a time."""
    total = torch.zeros(len(ours[0]), dtype=torch.float64)
    for a, b, weight in zip(ours, theirs, weights, strict=True):
        a, b = (x.double().flatten(2) / (x.double().flatten(2) ** 2).sum(1, keepdim=True).sqrt() for x in (a, b))
        per_position = sum(w * (a[:, channel] - b[:, channel]) ** 2 for channel, w in zip(range(a.shape[1]), weight))
        total += per_position.mean(-1)  # type: ignore[union-attr]
    return total


def images(seed: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_blocks_of_a_run(run: Path) -> None:
    """The patch tokens of the blocks before the final norm, without the class token; the last block is not the end."""
    distance, encoder = PerceptualDistance(str(run), True, (0, 2), None, 3, (16, 24)), mimkit.load(run)
    a, b = images(0, (16, 24)), images(1, (16, 24))
    with torch.no_grad():
        maps = [[layer[:, 1:].mT for layer in encoder(x, None, (0, 2)).layers] for x in (a, b)]
    torch.testing.assert_close(distance(a, b).double(), by_definition(*maps, [[1] * 12] * 2), rtol=1e-5, atol=1e-7)
    assert distance(a, a).abs().max() == 0


def test_a_network_of_another_size_sees_resized_images(run: Path) -> None:
    distance, a, b = (
        PerceptualDistance(str(run), True, (1,), None, 3, (32, 48)),
        images(0, (32, 48)),
        images(1, (32, 48)),
    )
    small = [torch.nn.functional.interpolate(x, (16, 24), mode="bicubic", antialias=True) for x in (a, b)]
    torch.testing.assert_close(distance(a, b), PerceptualDistance(str(run), True, (1,), None, 3, (16, 24))(*small))
    grey = PerceptualDistance(str(run), True, (1,), None, 1, (16, 24))
    one, other = a[:, :1, :16, :24], b[:, :1, :16, :24]
    torch.testing.assert_close(grey(one, other), grey(one.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "lpips"])
def test_stages_of_a_timm_model(weighted: bool, tmp_path: Path) -> None:
    """timm's own features at its mean and std; LPIPS's file weighs the channels."""
    torch.manual_seed(0)
    net: Any = timm.create_model("test_resnet", num_classes=0).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    widths = [32, 48]
    weights = [torch.rand(width) for width in widths]
    lpips = {f"lin{number}.model.1.weight": w.view(1, -1, 1, 1) for number, w in enumerate(weights)}
    save_file(lpips | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, tmp_path / "lpips.safetensors")
    file = str(tmp_path / "lpips.safetensors") if weighted else None
    distance = PerceptualDistance("test_resnet", str(tmp_path / "net.pth"), (1, 2), file, 3, (32, 48))
    a, b, cfg = images(0, (32, 48)), images(1, (32, 48)), net.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        maps = [net.forward_intermediates((x - mean) / std, indices=[1, 2], intermediates_only=True) for x in (a, b)]
    wanted = by_definition(*maps, weights if weighted else [[1] * width for width in widths])
    torch.testing.assert_close(distance(a, b).double(), wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=r"weights of channels for layers of width 32, 48, loss\.layers are 48 wide"):
        PerceptualDistance("test_resnet", False, (2,), str(tmp_path / "lpips.safetensors"), 3, (32, 48))


def built(run: Path, **loss: Any) -> Model:
    perceptual = {"name": "perceptual", "model": str(run), "layers": [0, 2]} | loss
    objective = {"prediction": "main", "target": PIXELS, "loss": perceptual, "weight": 0.5}
    torch.manual_seed(3)
    return mimkit.build(SMALL | {"objectives": {"perceptual": objective}})


def test_the_objective(run: Path) -> None:
    """The distance of what is painted, in [0, 1] units, to the images; it adds to the loss by its weight."""
    model, true = built(run).train(), images(4, (16, 24))
    out = model(true)
    painted = model.objectives["main"].target.to_images(out.prediction, (4, 6))  # type: ignore[union-attr]
    distance = PerceptualDistance(str(run), True, (0, 2), None, 3, (16, 24))
    torch.testing.assert_close(out.losses["perceptual"], distance(painted, true).mean())
    torch.testing.assert_close(
        out.loss, out.losses["main"] + out.losses["main.codebook"] + 0.5 * out.losses["perceptual"]
    )


def test_gradient_goes_through_the_frozen_network_into_the_decoder(run: Path) -> None:
    """Not into the network, which stays in eval mode and out of checkpoints."""
    model = built(run).train()
    out = model(images(4, (16, 24)))
    out.losses["perceptual"].backward()
    decoder, loss = model.objectives["main"].head.decoder, model.objectives["perceptual"].compare  # type: ignore[union-attr]
    assert decoder.conv_out.weight.grad.norm() > 0 and model.encoder.timm_model.conv_in.weight.grad.norm() > 0
    assert not any(p.requires_grad or p.grad is not None for p in loss.parameters())
    assert not any(module.training for module in loss.distance.modules())
    assert any("perceptual" in name for name in model.state_dict())
    assert not any("perceptual" in name for name in model.own_state())


def test_float32_under_autocast(run: Path) -> None:
    distance, a, b = (
        PerceptualDistance(str(run), True, (0,), None, 3, (16, 24)),
        images(0, (16, 24)),
        images(1, (16, 24)),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(a, b)
    assert found.dtype == torch.float32 and torch.equal(found, distance(a, b))


def test_the_small_recipe_trains_against_the_encoder_of_a_run(tmp_path: Path) -> None:
    """As its header says: an encoder first; here both for a step."""
    tiny = ["data=shapes", "data.num_images=16", "data.num_test=8", "data.batch_size=8", "probe.every=0"]
    short = [*tiny, "train.epochs=0.5", "train.device=cpu"]
    train(load_recipe("mae", short), tmp_path / "mae")
    model = f"objectives.perceptual.loss.model={tmp_path / 'mae'}"
    assert train(load_recipe("peco", [*short, model]), tmp_path / "peco")["step"] == 1
    assert (tmp_path / "peco" / "tokenizer.safetensors").is_file()


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        ({"layers": [0, 3]}, r"loss\.layers: .*mae-1 has the blocks 0 to 2, not 3"),
        ({"model": "runs/none-1"}, r"loss\.model: runs/none-1: no such run folder or weights file"),
        ({"model": "vit_tinny", "pretrained": False}, r"loss\.model: timm has no 'vit_tinny'; did you mean"),
        ({"model": "test_vit", "pretrained": False, "layers": [9]}, r"loss\.model=test_vit loss\.layers=\[9\]: "),
        ({"model": "test_vit", "pretrained": "x.pth"}, "weights x.pth: no such file"),
        ({"lpips": "x.pth"}, "weights x.pth: no such file"),
    ],
)
def test_what_cannot_be_had_is_refused(run: Path, loss: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted) as refusal:
        built(run, **loss)
    assert "\n" not in str(refusal.value)


def test_a_damaged_run_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no encoder\.safetensors; a run writes it with its first checkpoint"):
        built(tmp_path)
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(UserError, match=r"encoder\.json is damaged"):
        built(tmp_path)
