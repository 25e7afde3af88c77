"""EVA-02 written out in float64, and state dicts as its authors publish them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mimkit
from mimkit import registry
from mimkit.model import Model
from mimkit.types import Encoder, gather_places
from mimkit.weights.published import Published, known_layouts
from tests.published import Shapes, layer, mask_token, norm, tensors

SIZE, GRID, HEADS = (35, 55), (7, 11), 3  # oblong: rows and columns cannot be mistaken for each other


TINY = {"embed_dim": 24, "depth": 2, "num_heads": HEADS, "patch_size": 5}


KINDS = {"base": True, "tiny": False}  # size: sub-LN and separate matrices


State = dict[str, Tensor]


def eva02(sub_norm: bool, width=24, depth=2, heads=HEADS, patch=5, grid=GRID, target=75) -> Shapes:
    """Names and shapes of eva02_B_pt_in21k_p14.pt and of eva02_Ti_pt_in21k_p14.pt, for any size."""
    places, hidden = grid[0] * grid[1], int(width * 8 / 3)
    rotary = {f"rope.freqs_{part}": (places, width // heads) for part in ("cos", "sin")}
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, places + 1, width), **mask_token(width), **rotary}
    shapes |= layer("patch_embed.proj", width, 3, patch, patch)
    for number in range(depth):
        block, attn = f"blocks.{number}", f"blocks.{number}.attn"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width) | layer(f"{attn}.proj", width, width)
        shapes |= {f"{attn}.q_bias": (width,), f"{attn}.v_bias": (width,)}
        shapes |= {f"{attn}.{name}": shape for name, shape in rotary.items()}
        if sub_norm:
            shapes |= {f"{attn}.{name}_proj.weight": (width, width) for name in "qkv"}
            shapes |= layer(f"{block}.mlp.w1", hidden, width) | layer(f"{block}.mlp.w2", hidden, width)
            shapes |= norm(f"{block}.mlp.ffn_ln", hidden)
        else:
            shapes |= {f"{attn}.qkv.weight": (3 * width, width)} | layer(f"{block}.mlp.w12", 2 * hidden, width)
        shapes |= layer(f"{block}.mlp.w3", width, hidden)
    return shapes | norm("norm", width) | layer("lm_head", target, width)


def official(sub_norm: bool, **size: Any) -> State:
    """A file with random weights everywhere, small enough that the softmax is no step."""
    torch.manual_seed(6)
    return {name: 0.2 * x + 0.5 * (x.ndim == 1) for name, x in tensors(eva02(sub_norm, **size)).items()}


def published(state: State) -> Published:
    """The file with its kind, whatever other kind would also take it."""
    kinds = [layout for layout in known_layouts() if layout.name.startswith("EVA-02") and layout.recognises(state)]
    assert len(kinds) == 1
    return Published(kinds[0], state, "the file")


def encoder(feed: str = "all", image_size: tuple[int, int] = SIZE, **options: Any) -> Encoder:
    """Random weights everywhere."""
    torch.manual_seed(5)
    made = registry.build("encoder", "eva", {**TINY, **options}, {"image_size": image_size, "feed": feed})
    for parameter in made.parameters():
        nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.1)
    return made.eval()


def model(size: str = "base", **options: Any) -> Model:
    return mimkit.build(
        {
            "method": "eva02", "image_size": [*SIZE], "encoder": {"name": "eva", "size": size, **TINY, **options},
            "mask": {"name": "random", "feed": "all"}, "head": "linear", "target": "pixels", "normalizer": "l2",
            "loss": "cosine", "optim": {"lr": 1e-3}, "train": {"epochs": 1},
        }
    )  # fmt: skip


def pictures(size: tuple[int, int] = SIZE, chans: int = 3) -> Tensor:
    return torch.rand(2, chans, *size, generator=torch.Generator().manual_seed(1))


def unequal() -> Tensor:
    """Unequal numbers of hidden places."""
    draws = torch.rand(2, math.prod(GRID), generator=torch.Generator().manual_seed(2))
    return draws < torch.tensor([[0.5], [0.3]])


def angles(grid: tuple[int, int], head_dim: int) -> Tensor:
    """Angle of each place's pairs, row's before column's: position, spread over 16, times 10000^(-2i/(head_dim/2))."""
    rows, columns = grid
    half = head_dim // 2
    found = []
    for place in range(rows * columns):
        row, column = 16 * (place // columns) / rows, 16 * (place % columns) / columns
        found.append([at * 10000 ** (-2 * i / half) for at in (row, column) for i in range(half // 2)])
    return torch.tensor(found, dtype=torch.float64)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Neighbouring numbers as complex ones, turned by their angle; the class token, which comes first, stays."""
    pairs = torch.view_as_complex(x[:, :, 1:].unflatten(-1, (-1, 2)).contiguous())
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([x[:, :, :1], torch.view_as_real(pairs).flatten(-2)], dim=2)


def by_hand(w: State, pixels: Tensor, hidden: Tensor, fed: Tensor | None = None) -> Tensor:
    """Features after the final norm, step by step from the file's own tensors, in float64."""
    width, sub_norm = w["cls_token"].shape[2], "blocks.0.attn.q_proj.weight" in w
    rows, columns = (side // 5 for side in pixels.shape[2:])
    angle = angles((rows, columns), width // HEADS)[None, None]

    def normed(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=5).flatten(2).mT
    x = 0.9 * x.detach() + 0.1 * x
    x = torch.where(hidden[..., None], w["mask_token"], x) + w["pos_embed"][:, 1:]
    if fed is not None:
        x, angle = gather_places(x, fed), angle[0, 0][fed][:, None]
    x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    for block in sorted({name.rpartition(".norm1")[0] for name in w if name.endswith("norm1.weight")}):
        entering = normed(x, f"{block}.norm1")
        if sub_norm:
            q, k, v = (entering @ w[f"{block}.attn.{name}_proj.weight"].T for name in "qkv")
        else:
            q, k, v = (entering @ part.T for part in w[f"{block}.attn.qkv.weight"].chunk(3))
        q, v = q + w[f"{block}.attn.q_bias"], v + w[f"{block}.attn.v_bias"]
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (turned(q, angle) @ turned(k, angle).mT / math.sqrt(width // HEADS)).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        entering = normed(x, f"{block}.norm2")
        if sub_norm:
            gate, value = linear(entering, f"{block}.mlp.w1"), linear(entering, f"{block}.mlp.w2")
        else:
            gate, value = linear(entering, f"{block}.mlp.w12").chunk(2, dim=-1)
        value = gate / (1 + (-gate).exp()) * value
        x = x + linear(normed(value, f"{block}.mlp.ffn_ln") if sub_norm else value, f"{block}.mlp.w3")
    return normed(x, "norm")


def ours(name: str, sub_norm: bool) -> str:
    """Our parameter for a name of the file."""
    if name.startswith("lm_head"):
        return name.replace("lm_head", "objectives.main.head.predict")
    if name == "mask_token":
        return f"encoder.{name}"
    layers = [("w12", "fc1"), ("w1", "fc1_g"), ("w2", "fc1_x"), ("w3", "fc2"), ("ffn_ln", "norm")]
    for theirs, here in [*layers, *((f"{x}_bias", f"{x}_proj.bias") for x in "qv" if sub_norm)]:
        name = name.replace(f".{theirs}", f".{here}")
    return f"encoder.timm_model.{name}"


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    assert found.shape == wanted.shape
    return float((found.detach() - wanted.detach()).abs().max() / wanted.detach().abs().max())
