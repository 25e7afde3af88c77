"""MILAN and CrossMAE, whole models: loss and every gradient against the authors' order of computation in float64."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mimkit
from mimkit.model import Model
from mimkit.types import Standardize
from tests.test_heads import SIZES, crossmae_decoder, gap, milan_decoder, split_attention

SIZE, PATCH, GRID, PLACES, SEEN, HEADS = (35, 55), 5, (7, 11), 77, 19, 3
ENCODER: dict[str, Any] = {"name": "vit", "embed_dim": 24, "depth": 3, "num_heads": HEADS, "patch_size": PATCH}
TEACHER = """
import torch
from mimkit.types import Target, Wanted, patchify

class MilanTeacher(Target):
    dim, normalizer, loss = 18, "l2", "cosine"

    def __init__(self, *, patch_size: int, in_chans: int):
        super().__init__()
        self.patch_size = patch_size
        self.project = torch.nn.Linear(patch_size**2 * in_chans, 18)

    def forward(self, images):
        values = self.project(patchify(images, self.patch_size).flatten(2))
        return Wanted(values, cls=values.amax(1))
"""


def randomised(model: Model) -> Model:
    """All weights away from their initial values, the fixed positions as they are."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.1)
    return model


def encoded(vit: Any, images: Tensor, keep: Tensor) -> list[Tensor]:
    """What enters the first of timm's blocks, and what leaves each; visible places in the order `keep`."""
    tokens = vit.patch_embed.proj(Standardize(3).double()(images)).flatten(2).mT + vit.pos_embed[:, 1:]
    tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
    x = torch.cat([(vit.cls_token + vit.pos_embed[:, :1]).expand(len(images), -1, -1), tokens], 1)
    layers = [x]
    for block in vit.blocks:
        q, kv = block.attn.qkv(block.norm1(x)).split((24, 48), -1)
        x = x + block.attn.proj(split_attention(q, kv, HEADS))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        layers.append(x)
    return layers


def compare(model: Model, double: Model, ours: Tensor, theirs: Tensor) -> None:
    """The losses and the gradients of all weights that are trained."""
    assert gap(ours, theirs) < 1e-5
    ours.backward()
    theirs.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gaps = {name: gap(p.grad, double.get_parameter(name).grad) for name, p in trained.items()}
    assert len(gaps) > 80 and max(gaps.values()) < 1e-5, sorted(gaps.items(), key=lambda item: -item[1])[:3]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plug-in whose target has a class token."""
    path = tmp_path_factory.mktemp("plugin") / "milan_teacher.py"
    path.write_text(TEACHER)
    return path


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    """Images, and their places in a shuffled order: the first ones are seen."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(3, 3, *SIZE, generator=generator)
    return images, torch.rand(3, PLACES, generator=generator).argsort(1)


def recipe(**roles: Any) -> dict[str, Any]:
    return {"method": "m", "image_size": list(SIZE), "optim": {"lr": 1e-3}, "train": {"epochs": 1}, **roles}


@pytest.mark.parametrize("order", ["shuffled", "raster"])
def test_milan(order: str, drawn: tuple[Tensor, Tensor], teacher: Path) -> None:
    """2 - 2 cos, mean over the class token, the seen and the hidden places alike; fed in the authors' order or in ours."""
    torch.manual_seed(1)
    head = {"name": "prompting", **{name: SIZES[name] for name in ("embed_dim", "depth", "num_heads")}}
    loss = {"name": "cosine", "scale": 2}
    tree = recipe(encoder=ENCODER, mask="random", head=head, target="milan_teacher", loss=loss)
    model = mimkit.build(tree, plugins=[teacher])
    double = deepcopy(randomised(model)).double()
    images, ids_shuffle = drawn
    keep = ids_shuffle[:, :SEEN]
    hidden = torch.ones(3, PLACES, dtype=torch.bool).scatter(1, keep, False)
    fed = keep if order == "shuffled" else None
    out = model(images, mask=mimkit.Mask.from_hidden(hidden, predicted=torch.ones_like(hidden), fed=fed))

    objective, vit = double.objectives["main"], double.encoder.timm_model
    latent = vit.norm(encoded(vit, images, keep)[-1])
    prediction = milan_decoder(objective.head, latent, ids_shuffle, prefix=1)
    wanted = objective.target(images.double())
    features = torch.cat([wanted.cls[:, None], wanted.values], 1).detach()
    cosine = (F.normalize(prediction, dim=-1) * F.normalize(features, dim=-1)).sum(-1)
    assert gap(out.prediction, prediction[:, 1:]) < 1e-5
    compare(model, double, out.loss, (2 - 2 * cosine).mean())


@pytest.mark.parametrize("use_input", [True, False])
def test_crossmae(use_input: bool, drawn: tuple[Tensor, Tensor]) -> None:
    """Some hidden places are neither seen nor predicted; the encoder's final norm is not used and not trained."""
    torch.manual_seed(1)
    head = {"name": "cross_attention", **{name: SIZES[name] for name in ("embed_dim", "depth", "num_heads")}}
    model = mimkit.build(
        recipe(
            encoder=ENCODER | {"final_norm": False},
            mask={"name": "random", "ratio": 0.75, "predict_ratio": 0.25},
            head=head | {"use_input": use_input},
            target="norm_pixels",
        )
    )
    double = deepcopy(randomised(model)).double()
    images, ids_shuffle = drawn
    keep, ignored = ids_shuffle[:, :SEEN], int(PLACES * (0.75 - 0.25))
    hidden = torch.ones(3, PLACES, dtype=torch.bool).scatter(1, keep, False)
    predicted = torch.zeros_like(hidden).scatter(1, ids_shuffle[:, SEEN + ignored :], True)
    out = model(images, mask=mimkit.Mask.from_hidden(hidden, predicted=predicted, fed=keep))

    vit = double.encoder.timm_model
    layers = encoded(vit, images, keep)[0 if use_input else 1 :]
    prediction = torch.stack(crossmae_decoder(double.objectives["main"].head, layers, predicted))
    pixels = Standardize(3).double()(images)
    patches = F.unfold(pixels, PATCH, stride=PATCH).unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)
    patches = patches[predicted].view(3, -1, 75)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    assert gap(out.prediction, prediction) < 1e-5
    compare(model, double, out.loss, (prediction - target).square().mean())
    assert not any(p.requires_grad for p in model.encoder.timm_model.norm.parameters())


def test_crossmae_draws_what_it_predicts() -> None:
    """With the recipe's own mask: 19 seen, int(77 (0.75 - 0.25)) = 38 left out, 20 predicted."""
    head = {"name": "cross_attention", "embed_dim": 16, "depth": 2, "num_heads": 2}
    mask = {"name": "random", "ratio": 0.75, "predict_ratio": 0.25}
    model = mimkit.build(recipe(encoder=ENCODER, mask=mask, head=head, target="norm_pixels"))
    out = model(torch.rand(2, 3, *SIZE))
    assert out.prediction.shape == (2, 20, 75) and int(out.mask.hidden.sum()) == 2 * 58
