"""BEiT v2's patch aggregation, alone and in a whole model, against the authors' order of computation in float64."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mimkit
from mimkit.errors import UserError
from mimkit.heads.aggregation import Aggregation
from mimkit.types import Features, Mask, Standardize
from tests.test_heads import compare_gradients, gap, hidden_of, shuffled

PLACES, WIDTH, OUT, HEADS = 77, 24, 18, 4
TOKENIZER = """
import torch
from mimkit.types import Target, patchify

class BrightnessCodes(Target):
    vocab_size, loss = 18, "cross_entropy"

    def __init__(self, *, patch_size: int):
        super().__init__()
        self.patch_size = patch_size

    def forward(self, images):
        return (patchify(images, self.patch_size).mean((2, 3)) * 10000).long() % 18
"""


def randomised(module: nn.Module) -> Any:
    torch.manual_seed(5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.1)
    return module


def beit_block(block: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """BEiT's block: no bias on the keys, layer scale, a bias to the attention of each head."""
    attn = block.attn
    qkv = F.linear(block.norm1(x), attn.qkv.weight, torch.cat([attn.q_bias, 0 * attn.q_bias, attn.v_bias]))
    mixed = []
    for head, (q, k, v) in enumerate(zip(*(part.chunk(HEADS, -1) for part in qkv.chunk(3, -1)), strict=True)):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        mixed.append((scores if bias is None else scores + bias[head]).softmax(-1) @ v)
    scale_1, scale_2 = (1, 1) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
    x = x + scale_1 * attn.proj(torch.cat(mixed, -1))
    return x + scale_2 * block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def aggregated(head: Any, early: Tensor, last: Tensor, norm: Any, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predictions at all places: from the last block, and behind blocks that see early patches and the last class token."""
    x = torch.cat([last[:, :1], early[:, 1:]], 1)
    for block in head.blocks:
        x = beit_block(block, x, bias)
    return head.predict(norm(last)[:, 1:]), head.predict(norm(x)[:, 1:])


@pytest.mark.parametrize("counts", [(31, 31), (31, 23)], ids=["equal", "unequal"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("init_values", [0.1, None])
def test_aggregation_equals_the_authors_order_of_computation(init_values, with_bias, counts):
    """Predictions and the gradients of the weights, the layers, the shared norm and the shared attention bias."""
    head = randomised(
        Aggregation(encoder_dim=WIDTH, num_layers=8, out_dim=OUT, num_heads=HEADS, init_values=init_values)
    )
    norm, double = nn.LayerNorm(WIDTH, eps=1e-6), deepcopy(head).double()
    exact_norm = deepcopy(norm).double()
    assert head.layers == (5, 7)
    mask = Mask.from_hidden(hidden_of(shuffled(), counts))
    inputs = [torch.randn(2, 1 + PLACES, WIDTH, requires_grad=True) for _ in range(2)]
    if with_bias:
        inputs.append(torch.randn(HEADS, 1 + PLACES, 1 + PLACES, requires_grad=True))
    early, last, *bias = inputs
    exact = [x.detach().double().requires_grad_() for x in inputs]

    features = Features(norm(last), 1, layers=(early, last), norm=norm, attn_bias=bias[0] if bias else None)
    made = head(features, mask)
    wanted = aggregated(double, exact[0], exact[1], exact_norm, exact[2] if bias else None)
    for ours, theirs in zip((made.values, *made.also), wanted, strict=True):
        assert gap(ours.flatten(0, -2), theirs[mask.predicted]) < 1e-5
    ours = torch.cat([p.flatten(0, -2) for p in (made.values, *made.also)])
    theirs = torch.cat([p[mask.predicted] for p in wanted])
    compare_gradients(
        ours,
        [*inputs, *norm.parameters(), *head.parameters()],
        theirs,
        [*exact, *exact_norm.parameters(), *double.parameters()],
    )


def relative_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """BEiT's table (distances, heads) as a bias (heads, N, N): entry by entry; the last three rows concern the class token."""
    rows, columns = grid
    index = torch.empty(1 + rows * columns, 1 + rows * columns, dtype=torch.long)
    for i in range(rows * columns):
        for j in range(rows * columns):
            down, right = i // columns - j // columns, i % columns - j % columns
            index[1 + i, 1 + j] = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    index[0, :], index[:, 0] = len(table) - 3, len(table) - 2
    index[0, 0] = len(table) - 1
    return table[index].permute(2, 0, 1)


def test_whole_model(tmp_path: Path) -> None:
    """Both cross-entropies against the same codes, each a mean over all hidden places of the batch; every gradient."""
    plugin = tmp_path / "brightness_codes.py"
    plugin.write_text(TOKENIZER)
    torch.manual_seed(1)
    model = mimkit.build(
        {
            "method": "m",
            "image_size": [35, 55],
            "encoder": {"name": "beit", "embed_dim": WIDTH, "depth": 4, "num_heads": HEADS, "patch_size": 5},
            "mask": {"name": "random", "ratio": 0.4, "feed": "all"},
            "head": {"name": "aggregation", "early_layer": 2, "num_heads": HEADS},
            "target": "brightness_codes",
            "optim": {"lr": 1e-3},
            "train": {"epochs": 1},
        },
        plugins=[plugin],
    )
    double = deepcopy(randomised(model)).double()
    images, hidden = torch.rand(3, 3, 35, 55), hidden_of(shuffled(3), (31, 29, 31))
    out = model(images, mask=Mask.from_hidden(hidden))

    beit, objective = double.encoder.timm_model, double.objectives["main"]
    tokens = beit.patch_embed.proj(Standardize(3).double()(images)).flatten(2).mT
    tokens = torch.where(hidden[..., None], double.encoder.mask_token, tokens)
    x = torch.cat([beit.cls_token.expand(3, -1, -1), tokens], 1)
    bias = relative_positions(beit.rel_pos_bias.relative_position_bias_table, (7, 11))
    for number, block in enumerate(beit.blocks, start=1):
        x = beit_block(block, x, bias)
        if number == 2:
            early = x
    codes = objective.target(images)[hidden]
    losses = [F.cross_entropy(p[hidden], codes) for p in aggregated(objective.head, early, x, beit.norm, bias)]
    assert gap(out.loss, sum(losses)) < 1e-5
    out.loss.backward()
    sum(losses).backward()
    gaps = {name: gap(p.grad, double.get_parameter(name).grad) for name, p in model.named_parameters()}
    assert len(gaps) > 80 and max(gaps.values()) < 1e-5, sorted(gaps.items(), key=lambda item: -item[1])[:3]


def test_initial_weights_and_rates():
    """Torch's own linear layers, biases included; what enters the residual stream divided by sqrt(2 · depth)."""
    torch.manual_seed(0)
    head = Aggregation(encoder_dim=192, num_layers=12, out_dim=64, drop_path=0.11)
    assert head.layers == (8, 11) and head.num_heads == 3
    for depth, block in zip((10, 11), head.blocks, strict=True):
        for layer, scale in (
            (block.attn.qkv, 1),
            (block.mlp.fc1, 1),
            (block.attn.proj, (2 * depth) ** 0.5),
            (block.mlp.fc2, (2 * depth) ** 0.5),
        ):
            bound = layer.in_features**-0.5
            assert 0.98 * bound / scale < layer.weight.abs().max() <= 1.0001 * bound / scale
            assert layer.bias is None or 0.8 * bound < layer.bias.abs().max() <= bound
        assert not block.attn.q_bias.any() and not block.attn.v_bias.any()
        assert (block.gamma_1 == 0.1).all() and (block.gamma_2 == 0.1).all() and block.norm1.eps == 1e-6
        assert block.drop_path1.drop_prob == pytest.approx(0.01 * (depth - 1))  # linear from 0 to 0.11 over 12 blocks
    assert 0.0195 < head.predict.weight.abs().max() <= 0.02 and not head.predict.bias.any()


def test_deeper_than_the_encoder_the_rates_go_on_to_the_last_block():
    head = Aggregation(encoder_dim=24, num_layers=2, out_dim=6, early_layer=2, depth=3, drop_path=0.4)
    assert head.layers == (1,)
    assert [block.drop_path1.drop_prob for block in head.blocks] == pytest.approx([0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feed": "visible"}, "reads the tokens of hidden places: set mask.feed=all"),
        ({"num_layers": 0}, "reads an early layer, this encoder gives none"),
        ({"early_layer": 5}, "head.early_layer=5 is beyond the encoder's 4 blocks"),
        ({"num_heads": 5}, "head.num_heads=5 does not divide the encoder's width 24"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as refusal:
        Aggregation(**{"encoder_dim": WIDTH, "num_layers": 4, "out_dim": OUT, **options})
    assert "\n" not in str(refusal.value)


def test_features_that_do_not_fit_are_refused_in_one_line():
    head = Aggregation(encoder_dim=WIDTH, num_layers=1, out_dim=OUT)
    mask = Mask.from_hidden(hidden_of(shuffled(), (31, 31)))
    layers = (torch.randn(2, 1 + PLACES, WIDTH),)
    with pytest.raises(UserError, match="needs an encoder with class token"):
        head(Features(layers[0], 0, layers=layers, norm=nn.Identity()), mask)
    bias = torch.zeros(HEADS, 1 + PLACES, 1 + PLACES)
    with pytest.raises(UserError, match=r"bias is for 4 heads, head.num_heads=1: set head.num_heads=4"):
        head(Features(layers[0], 1, layers=layers, norm=nn.Identity(), attn_bias=bias), mask)
