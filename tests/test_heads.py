"""Heads against the authors' order of computation, written out in float64; what they refuse; how they begin."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.heads.cross_attention import CrossAttention
from mimkit.heads.decoder import Decoder
from mimkit.heads.prompting import Prompting
from mimkit.types import Features, Mask, Prediction

GRID, PLACES, WIDTH, OUT, LAYERS = (7, 11), 77, 24, 18, 3
SIZES = {"encoder_dim": WIDTH, "out_dim": OUT, "grid": GRID, "embed_dim": 40, "depth": 3, "num_heads": 5}


def gap(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    return float((ours.detach().double() - reference.detach()).abs().max() / reference.detach().abs().max())


def randomised(head: nn.Module) -> nn.Module:
    """Every parameter away from its special initial values."""
    torch.manual_seed(5)
    for parameter in head.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.2)
    return head


def shuffled(batch: int = 2) -> Tensor:
    return torch.rand(batch, PLACES, generator=torch.Generator().manual_seed(6)).argsort(1)


def hidden_of(order: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The last `counts` of each row of places in their drawn order."""
    hidden = torch.zeros(order.shape, dtype=torch.bool)
    for row, count in enumerate(counts):
        hidden[row, order[row, PLACES - count :]] = True
    return hidden


def split_attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Softmax attention head by head; keys are the first half of `kv`."""
    keys, values = kv.chunk(2, dim=-1)
    mixed = []
    for q1, k1, v1 in zip(q.chunk(heads, -1), keys.chunk(heads, -1), values.chunk(heads, -1), strict=True):
        mixed.append((q1 @ k1.mT / q1.shape[-1] ** 0.5).softmax(-1) @ v1)
    return torch.cat(mixed, -1)


def milan_decoder(head: Prompting, sequence: Tensor, order: Tensor, prefix: int) -> Tensor:
    """MILAN's decoder on all places: unshuffle, add positions, split, unshuffle in every block; class token first."""
    seen = sequence.shape[1] - prefix
    keep, dump, restore = order[:, :seen], order[:, seen:], order.argsort(1)

    def pick(tokens, index):
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))

    embedded = F.linear(sequence, head.embed.weight, head.embed.bias)
    blanks = head.mask_token.repeat(len(sequence), PLACES - seen, 1)
    full = pick(torch.cat([embedded[:, prefix:], blanks], 1), restore) + head.pos_embed[:, 1:]
    cls = embedded[:, :prefix] + head.pos_embed[:, :prefix]
    fixed, masked = pick(full, keep), pick(full, dump)
    for block in head.blocks:
        normed = block.norm1(masked)
        context = torch.cat([cls, pick(torch.cat([fixed, normed], 1), restore)], 1)
        attn = block.attn
        q = F.linear(normed, attn.q.weight, attn.q.bias)
        kv = F.linear(context, attn.kv.weight, attn.kv.bias)
        mixed = split_attention(q, kv, SIZES["num_heads"])
        masked = masked + F.linear(mixed, attn.proj.weight, attn.proj.bias)
        inner = F.gelu(F.linear(block.norm2(masked), block.mlp.fc1.weight, block.mlp.fc1.bias))
        masked = masked + F.linear(inner, block.mlp.fc2.weight, block.mlp.fc2.bias)
    everything = torch.cat([cls, pick(torch.cat([fixed, masked], 1), restore)], 1)
    return F.linear(head.norm(everything), head.predict.weight, head.predict.bias)


def crossmae_decoder(head: CrossAttention, layers: list[Tensor], predicted: Tensor) -> list[Tensor]:
    """CrossMAE's decoder image by image: mix, norm, cross-attend, norm, predict."""
    stacked = torch.stack(layers, -1)
    mixed = F.linear(stacked, head.mix.weight)
    results = []
    for image, wanted in enumerate(predicted):
        x = (head.pos_embed[0, 1:][wanted] + head.mask_token[0])[None]
        for number, block in enumerate(head.blocks):
            memory = head.norms[number](mixed[image : image + 1, ..., number])
            attn = block.cross_attn
            q = F.linear(block.norm1(x), attn.q.weight, attn.q.bias)
            kv = F.linear(memory, attn.kv.weight, attn.kv.bias)
            x = x + F.linear(split_attention(q, kv, SIZES["num_heads"]), attn.proj.weight, attn.proj.bias)
            inner = F.gelu(F.linear(block.norm2(x), block.mlp.fc1.weight, block.mlp.fc1.bias))
            x = x + F.linear(inner, block.mlp.fc2.weight, block.mlp.fc2.bias)
        results.append(F.linear(head.norm(x), head.predict.weight, head.predict.bias)[0])
    return results


def weights_like(values: Tensor) -> Tensor:
    """Fixed weights, so that every predicted number counts differently in the loss."""
    return torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view(values.shape)


def compare_gradients(ours: Tensor, inputs: list[Tensor], reference: Tensor, their_inputs: list[Tensor]) -> None:
    found = torch.autograd.grad((ours.square() * weights_like(ours)).sum(), inputs)
    expected = torch.autograd.grad((reference.square() * weights_like(reference)).sum(), their_inputs)
    assert max(gap(mine, theirs) for mine, theirs in zip(found, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("predict", ["hidden", "all", "part", "unequal"])
def test_prompting_equals_milans_order_of_computation(predict, prefix):
    """Fed in a shuffled order; predictions at hidden places, all, a third of all, or unequally many."""
    head = randomised(Prompting(**SIZES))
    head.pos_embed[:, 0] = 0.3  # published files state the class token's position, too
    double = deepcopy(head).double()
    order = shuffled()
    hidden = hidden_of(order, (58, 58))
    third = (torch.arange(PLACES) % 3 == 0).expand(2, -1)
    predicted = {"hidden": hidden, "all": torch.ones_like(hidden), "part": third, "unequal": hidden & third}[predict]
    mask = Mask.from_hidden(hidden, predicted=predicted, fed=order[:, :19])
    assert (mask.predicted_index is None) == (predict == "unequal")
    sequence = torch.randn(2, prefix + 19, WIDTH, requires_grad=True)
    exact = sequence.detach().double().requires_grad_()

    ours = head(Features(sequence, prefix), mask)
    theirs = milan_decoder(double, exact, order, prefix)
    values = ours.values.flatten(0, -2)
    wanted = theirs[:, prefix:][predicted]
    assert gap(values, wanted) < 1e-5
    assert (ours.cls is None) == (prefix == 0)
    if ours.cls is not None:
        assert gap(ours.cls, theirs[:, 0]) < 1e-5
        values, wanted = torch.cat([ours.cls, values]), torch.cat([theirs[:, 0], wanted])
    compare_gradients(values, [sequence, *head.parameters()], wanted, [exact, *double.parameters()])


@pytest.mark.parametrize("use_input", [True, False])
@pytest.mark.parametrize("predict", ["hidden", "part", "unequal"])
@pytest.mark.parametrize("feed", ["visible", "all"])
def test_cross_attention_equals_crossmaes_order_of_computation(feed, predict, use_input):
    """Predictions at hidden places, at some of them, or unequally many; the final norm's output is not read."""
    head = randomised(CrossAttention(num_layers=LAYERS, use_input=use_input, **SIZES))
    double = deepcopy(head).double()
    assert head.layers == ((-1, 0, 1, 2) if use_input else (0, 1, 2))
    order = shuffled()
    hidden = hidden_of(order, (58, 58))
    predicted = {"hidden": hidden, "part": hidden_of(order, (19, 19)), "unequal": hidden_of(order, (19, 30))}[predict]
    mask = Mask.from_hidden(hidden, predicted=predicted)
    mask = mask.feed_visible() if feed == "visible" else mask
    count = 1 + (19 if feed == "visible" else PLACES)
    layers = [torch.randn(2, count, WIDTH, requires_grad=True) for _ in head.layers]
    exact = [layer.detach().double().requires_grad_() for layer in layers]

    ours = head(Features(torch.full((2, count, WIDTH), torch.nan), 1, layers=tuple(layers)), mask)
    theirs = torch.cat(crossmae_decoder(double, exact, predicted))
    assert gap(ours.flatten(0, -2), theirs) < 1e-5
    compare_gradients(ours, [*layers, *head.parameters()], theirs, [*exact, *double.parameters()])


def test_predicted_places_of_cross_attention_do_not_depend_on_each_other():
    head = randomised(CrossAttention(num_layers=LAYERS, **SIZES))
    hidden = hidden_of(shuffled(), (58, 58))
    some = hidden & (hidden.cumsum(1) <= 20)
    features = Features(torch.zeros(2, 20, WIDTH), 1, layers=tuple(torch.randn(4, 2, 20, WIDTH)))
    every, few = (head(features, Mask.from_hidden(hidden, predicted=p).feed_visible()) for p in (hidden, some))
    torch.testing.assert_close(every[:, :20], few)


@pytest.mark.parametrize("feed", ["visible", "all"])
def test_decoder_predicts_all_places(feed):
    """Visible places too: the same as each half of the places predicted for itself."""
    head = randomised(Decoder(feed=feed, **SIZES))
    hidden = hidden_of(shuffled(), (58, 58))
    masks = [Mask.from_hidden(hidden, predicted=p) for p in (hidden, ~hidden, torch.ones_like(hidden))]
    masks = [mask.feed_visible() for mask in masks] if feed == "visible" else masks
    features = Features(torch.randn(2, 1 + (19 if feed == "visible" else PLACES), WIDTH), 1)
    of_hidden, of_visible, of_all = (head(features, mask) for mask in masks)
    torch.testing.assert_close(of_all[hidden], of_hidden.flatten(0, 1))
    torch.testing.assert_close(of_all[~hidden], of_visible.flatten(0, 1))


def test_initial_weights_are_the_authors():
    """Xavier-uniform for every linear layer, the fused kv as one matrix and CrossMAE's mix included; biases 0."""
    torch.manual_seed(0)
    sizes = {**SIZES, "embed_dim": 160, "encoder_dim": 120}
    for head in (Prompting(**sizes), CrossAttention(num_layers=12, **{**sizes, "depth": 12})):
        for name, layer in head.named_modules():
            if isinstance(layer, nn.Linear):
                bound = (6 / sum(layer.weight.shape)) ** 0.5
                assert 0.95 * bound < layer.weight.abs().max() <= bound, name
                assert layer.bias is None or not layer.bias.any(), name
            if isinstance(layer, nn.LayerNorm):
                assert layer.eps == 1e-6 and (layer.weight == 1).all() and not layer.bias.any(), name
        assert 0.015 < head.mask_token.std() < 0.025


def test_state_dicts_have_the_published_parts():
    part = "weight", "bias"
    block = [f"{layer}.{p}" for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for p in part]
    own = {"mask_token", "pos_embed", *(f"{layer}.{p}" for layer in ("norm", "predict") for p in part)}
    prompting = own | {f"embed.{p}" for p in part}
    prompting |= {f"blocks.{i}.{name}" for i in range(3) for name in block}
    prompting |= {f"blocks.{i}.attn.{layer}.{p}" for i in range(3) for layer in ("q", "kv", "proj") for p in part}
    assert set(Prompting(**SIZES).state_dict()) == prompting
    cross = own | {"mix.weight"} | {f"norms.{i}.{p}" for i in range(3) for p in part}
    cross |= {f"blocks.{i}.{name}" for i in range(3) for name in block}
    cross |= {f"blocks.{i}.cross_attn.{layer}.{p}" for i in range(3) for layer in ("q", "kv", "proj") for p in part}
    assert set(CrossAttention(num_layers=LAYERS, **SIZES).state_dict()) == cross


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Prompting(feed="all", **SIZES), "head 'prompting' .* set mask.feed=visible"),
        (lambda: Prompting(**{**SIZES, "num_heads": 7}), "head.embed_dim=40 must be divisible by num_heads=7"),
        (lambda: CrossAttention(num_layers=0, **SIZES), "mixes the encoder's layers, this one gives none"),
        (lambda: CrossAttention(num_layers=2, **{**SIZES, "embed_dim": 42}), "head.embed_dim=42 must be divisible by"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build, message):
    with pytest.raises(UserError, match=message) as refusal:
        build()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["prompting", "cross_attention"])
def test_heads_run_under_bfloat16(name):
    """Close to the float32 result, and finite gradients."""
    head = randomised(Prompting(**SIZES) if name == "prompting" else CrossAttention(num_layers=LAYERS, **SIZES))
    mask = Mask.from_hidden(hidden_of(shuffled(), (58, 58))).feed_visible()
    layers = tuple(torch.randn(4, 2, 20, WIDTH))
    features = Features(layers[-1], 1, layers=layers)
    exact = head(features, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(features, mask)
    exact, rough = (p.values if isinstance(p, Prediction) else p for p in (exact, rough))
    assert gap(rough, exact.double()) < 0.05
    rough.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
