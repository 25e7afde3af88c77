"""CAE's regressor, decoder and alignment, step by step in float64; the copy's place in the order of steps."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mimkit
from mimkit.errors import UserError
from mimkit.heads.regressor import Regressor
from mimkit.model import Model
from mimkit.types import Features, Mask, Standardize

GRID, WIDTH, HEADS, CODES, DEPTH = (3, 4), 24, 3, 10, 2
PLACES = GRID[0] * GRID[1]
TOKENIZER = """
import torch
from mimkit.types import Target, patchify

class Codes(Target):
    vocab_size, loss = 10, "cross_entropy"

    def __init__(self, *, patch_size: int):
        super().__init__()
        self.patch_size = patch_size

    def forward(self, images):
        return (patchify(images, self.patch_size).mean((2, 3)) * 10000).long() % 10
"""
ALIGN = {
    "prediction": "main.latents",
    "target": {"name": "ema", "hidden": True, "layers": 0, "decay": 0, "moves": "before", "train_mode": True},
    "normalizer": "none",
    "loss": "mse",
    "weight": 2.0,
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "mean_codes.py"
    path.write_text(TOKENIZER)
    return path


def cae(plugin: Path, align: dict | None = None, **encoder) -> Model:
    """CAE in float64 on oblong images, every trained weight random and the copy equal to the encoder."""
    torch.manual_seed(2)
    size = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": 4}
    tree = {
        "method": "cae", "image_size": [12, 16], "optim": {"lr": 1e-3}, "train": {"epochs": 1},
        "encoder": {"name": "beit", "rel_pos": "none", "abs_pos": "sincos", "init": "xavier", **size, **encoder},
        "mask": {"name": "block", "ratio": 0.5, "min_area": 3, "rule": "blocks", "feed": "visible"},
        "head": {"name": "regressor", "regressor_depth": 3, "decoder_depth": 2, "num_heads": HEADS},
        "target": "mean_codes", "objectives": {"align": ALIGN | (align or {})},
    }  # fmt: skip
    model = mimkit.build(tree, plugins=[plugin]).double()
    for parameter in [*model.encoder.parameters(), *model.objectives["main"].head.parameters()]:
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.2)
    model.restart_targets()
    return model.train()


def positions() -> Tensor:
    """Row before column, sines before cosines, place by place."""
    table = torch.zeros(PLACES, WIDTH, dtype=torch.float64)
    for place in range(PLACES):
        for half, at in enumerate(divmod(place, GRID[1])):
            for k in range(WIDTH // 4):
                angle = torch.tensor(at / 10000 ** (k / (WIDTH // 4)), dtype=torch.float64)
                table[place, half * WIDTH // 2 + k] = angle.sin()
                table[place, half * WIDTH // 2 + WIDTH // 4 + k] = angle.cos()
    return table


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention, head by head."""
    parts = zip(*(part.chunk(HEADS, -1) for part in (query, key, value)), strict=True)
    return torch.cat([(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in parts], -1)


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias


def mlp(x: Tensor, layer: nn.Module) -> Tensor:
    return layer.fc2(F.gelu(layer.fc1(x)))


def beit_block(x: Tensor, block: nn.Module) -> Tensor:
    """Queries and values have a bias, keys none; layer scale."""
    q, k, v = (norm(x, block.norm1) @ block.attn.qkv.weight.T).chunk(3, -1)
    x = x + block.gamma_1 * block.attn.proj(attend(q + block.attn.q_bias, k, v + block.attn.v_bias))
    return x + block.gamma_2 * mlp(norm(x, block.norm2), block.mlp)


def encode(encoder: nn.Module, images: Tensor, seen: Tensor) -> Tensor:
    """Patches of the places `seen` (B, V) alone, embedded, with their positions; behind the class token, which is cut off."""
    beit = encoder.timm_model
    tokens = beit.patch_embed.proj(Standardize(3).double()(images)).flatten(2).mT + positions()
    x = torch.stack([row[index] for row, index in zip(tokens, seen, strict=True)])
    x = torch.cat([beit.cls_token.expand(len(x), -1, -1), x], 1)
    for block in beit.blocks:
        x = beit_block(x, block)
    return norm(x, beit.norm)[:, 1:]


def regress(head: nn.Module, visible: Tensor, seen: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and latents at the hidden places."""
    at = positions()
    x = head.mask_token.expand(*hidden.shape, -1)
    for block in head.regressor:
        memory = torch.cat([visible, x], 1)
        q = block.attn.q(norm(x + at[hidden], block.norm_q))
        k = norm(memory + at[torch.cat([seen, hidden], 1)], block.norm_k) @ block.attn.k.weight.T
        v = block.attn.v(norm(memory, block.norm_v))
        x = norm(x + block.gamma_1 * block.attn.proj(attend(q, k, v)), block.norm_mlp)
        x = x + block.gamma_2 * mlp(x, block.mlp)
    latents = norm(x, head.regressor_norm)
    y = latents + at[hidden]
    for block in head.decoder:
        y = beit_block(y, block)
    return head.predict(norm(y, head.decoder_norm)), latents


def gap(ours: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    ours, wanted = ours.detach().double(), wanted.detach()
    assert ours.shape == wanted.shape
    return float((ours - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def steps(model: Model, count: int, lag: bool) -> None:
    """Prediction, both losses and every gradient of `count` steps; with `lag` the copy is the encoder of the step before."""
    encoder, head = model.encoder, model.objectives["main"].head
    copy = deepcopy(encoder).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(count):
        images = torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(step))
        out = model(images, generator=torch.Generator().manual_seed(step))
        hidden = torch.stack([row.nonzero()[:, 0] for row in out.mask.hidden])
        seen = torch.stack([row.nonzero()[:, 0] for row in ~out.mask.hidden])
        theirs, their_head = deepcopy(encoder).double(), deepcopy(head).double()
        logits, latents = regress(their_head, encode(theirs, images, seen), seen, hidden)
        with torch.no_grad():
            wanted = encode(copy, images, hidden)
        codes = model.objectives["main"].target(images).gather(1, hidden)
        main, align = F.cross_entropy(logits.flatten(0, 1), codes.flatten()), (latents - wanted).square().mean()
        (main + 2 * align).backward()
        optimizer.zero_grad()
        out.loss.backward()
        assert gap(out.prediction, logits) < 1e-5 and torch.equal(out.target, codes)
        assert gap(out.losses["main"], main) < 1e-5 and gap(out.losses["align"], align) < 1e-5
        assert gap(out.loss, main + 2 * align) < 1e-5
        for ours, reference in ((encoder, theirs), (head, their_head)):
            grads = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
            for name, p in ours.named_parameters():
                if name.endswith("norm_k.bias"):  # no key is nearer by it: zero but for rounding
                    assert p.grad.abs().max() < 1e-6
                elif p.requires_grad:
                    assert gap(p.grad, grads[name]) < 1e-5, name
        if lag:
            copy = deepcopy(encoder).double()
        model.before_step(step / count)
        optimizer.step()
        model.after_step((step + 1) / count)
        if not lag:
            copy = deepcopy(encoder).double()


def test_cae_by_hand(plugin):
    """Four steps of the whole model: what the copy gives is that of the step before, for hidden places alone."""
    steps(cae(plugin), 4, lag=True)


def test_a_copy_that_moves_after_the_step_is_another_method(plugin):
    """The same reference without the lag, and neither of them fits the other order."""
    after = {"target": ALIGN["target"] | {"moves": "after"}}
    steps(cae(plugin, after), 2, lag=False)
    for order, lag in ((after, True), (None, False)):
        with pytest.raises(AssertionError):
            steps(cae(plugin, order), 3, lag=lag)


def test_the_copys_stochastic_depth(plugin):
    """Active in training where it is asked for, off in evaluation."""
    images = torch.rand(8, 3, 12, 16)
    mask = Mask.from_hidden(torch.arange(PLACES).expand(8, -1) % 2 == 0)
    for train_mode in (True, False):
        model = cae(plugin, {"target": ALIGN["target"] | {"train_mode": train_mode}}, drop_path=0.5)
        target = model.objectives["align"].target
        first, second = (target(images, mask) for _ in range(2))
        assert torch.equal(first, second) != train_mode
        model.eval()
        assert torch.equal(target(images, mask), target(images, mask)) and not target.encoder.training


def test_under_bf16_autocast_both_losses_are_near(plugin):
    """Within a few per cent of those in float32, and in float32 themselves."""
    model = cae(plugin).float().eval()
    images = torch.rand(4, 3, 12, 16)
    wanted = model(images, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images, generator=torch.Generator().manual_seed(0))
    for name, loss in out.losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted.losses[name], rtol=0.05, atol=0.01)


def test_layers_of_the_hidden_places_can_be_averaged(plugin):
    model = cae(plugin, {"target": ALIGN["target"] | {"layers": 2}}, abs_pos=True)
    out = model(torch.rand(4, 3, 12, 16))
    features = model.objectives["align"].target(torch.rand(4, 3, 12, 16), out.mask)
    assert features.shape == (4, 6, WIDTH) and torch.isfinite(out.loss)


def test_initial_weights():
    """Base: Xavier-uniform, biases 0; large: cut at one std, what leaves block l divided by sqrt(2 l)."""
    torch.manual_seed(0)
    head = Regressor(encoder_dim=192, out_dim=64, grid=GRID, drop_path=0.3, init_values=1e-5)
    assert head.regressor[0].attn.num_heads == 3 and len(head.regressor) == len(head.decoder) == 4
    for layer in (head.regressor[1].attn.k, head.regressor[3].mlp.fc2, head.decoder[0].attn.qkv, head.predict):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is None or not layer.bias.any()
    assert 0.019 < head.mask_token.abs().max() <= 0.02 and (head.decoder[2].gamma_1 == 1e-5).all()
    for stack in (head.regressor, head.decoder):
        rates = [getattr(block, "drop_path", None) or block.drop_path1 for block in stack]
        assert [getattr(rate, "drop_prob", 0) for rate in rates] == pytest.approx([0, 0.1, 0.2, 0.3])
    head = Regressor(encoder_dim=192, out_dim=64, grid=GRID, init="cut")
    for stack in (head.regressor, head.decoder):
        for number, block in enumerate(stack, start=1):
            for layer in (block.attn.proj, block.mlp.fc2):
                assert 0.019 < layer.weight.abs().max() * (2 * number) ** 0.5 <= 0.02001
    assert 0.0195 < head.predict.weight.abs().max() <= 0.02


def test_what_does_not_fit_is_refused_in_one_line(plugin):
    facts = {"encoder_dim": WIDTH, "out_dim": CODES, "grid": GRID}
    for more, message in (
        ({"feed": "all"}, "predicts hidden places from visible ones: set mask.feed=visible"),
        ({"num_heads": 5}, r"as wide as the encoder, 24: it must be divisible by head\.num_heads=5 and by 4"),
        ({"encoder_dim": 22, "num_heads": 2}, "it must be divisible by .* and by 4"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            Regressor(**facts | more)
        assert "\n" not in str(refusal.value)
    hidden = torch.arange(PLACES).expand(2, -1) < torch.tensor([[6], [5]])
    mask = Mask.from_hidden(hidden, fed=torch.tensor([[8, 9], [8, 9]]))
    with pytest.raises(UserError, match="needs as many predicted places in every image"):
        Regressor(**facts)(Features(torch.randn(2, 3, WIDTH), 1), mask)
    with pytest.raises(UserError, match=r"target\.hidden=true needs as many predicted places in every image"):
        cae(plugin).objectives["align"].target(torch.rand(2, 3, 12, 16), mask)
