"""The decoder's shortcut against the whole computation: same loss, same gradients."""

import pytest
import torch

from mimkit.errors import UserError
from mimkit.heads.decoder import Decoder
from mimkit.heads.linear import Linear
from mimkit.transformer import block_at
from mimkit.types import Features, Mask

GRID, PLACES, WIDTH, OUT = (7, 11), 77, 24, 48


def decoder(**options):
    torch.manual_seed(3)
    given = {"encoder_dim": WIDTH, "out_dim": OUT, "grid": GRID, "embed_dim": 40, "depth": 3, "num_heads": 5, **options}
    head = Decoder(**given)
    for parameter in head.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5)
    return head


def whole(head, features, mask):
    """The decoder written out: every block on every place, then the choice."""
    embedded = head.embed(features.sequence)
    prefix, tokens = embedded[:, : features.num_prefix_tokens], embedded[:, features.num_prefix_tokens :]
    if mask.fed is None:
        places = tokens
    else:
        places = head.mask_token.repeat(len(tokens), PLACES, 1)
        index = mask.fed[..., None].expand(-1, -1, tokens.shape[-1])
        places = places.scatter(1, index, tokens)
    sequence = torch.cat([prefix, places + head.pos_embed[:, 1:]], dim=1)  # the class token has no position
    for block in head.blocks:
        sequence = block(sequence)
    return head.predict(head.norm(sequence[:, features.num_prefix_tokens :]))


def features_for(mask, prefix):
    count = PLACES if mask.fed is None else mask.fed.shape[1]
    sequence = torch.randn(2, prefix + count, WIDTH, generator=torch.Generator().manual_seed(4))
    return Features(sequence.requires_grad_(), prefix)


def random_hidden(counts):
    hidden = torch.zeros(2, PLACES, dtype=torch.bool)
    for row, count in enumerate(counts):
        hidden[row, torch.randperm(PLACES, generator=torch.Generator().manual_seed(row))[:count]] = True
    return hidden


MASKS = {
    "visible fed": (lambda: Mask.from_hidden(random_hidden((58, 58))).feed_visible(), "visible"),
    "all fed": (lambda: Mask.from_hidden(random_hidden((31, 31))), "all"),
    "unequal counts": (lambda: Mask.from_hidden(random_hidden((31, 23))), "all"),
    "part predicted": (
        lambda: Mask.from_hidden(
            hidden := random_hidden((58, 58)), predicted=hidden & (torch.arange(PLACES) % 2 == 0)
        ).feed_visible(),
        "visible",
    ),
}


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("name", MASKS)
def test_predicted_places_only_equals_the_whole_last_block(name, prefix):
    """Against the decoder written out, places chosen at the end: prediction, loss and all gradients."""
    make, feed = MASKS[name]
    mask, head = make(), decoder(feed=feed)
    features = features_for(mask, prefix)
    short, long = head(features, mask), whole(head, features, mask)[mask.predicted]
    assert short.shape == ((2, mask.predicted_index.shape[1], OUT) if mask.predicted_index is not None else long.shape)
    torch.testing.assert_close(short.flatten(0, -2), long, atol=1e-6, rtol=1e-6)

    trained = [features.sequence, *head.parameters()]
    gradients = [torch.autograd.grad(made.square().mean(), trained, retain_graph=True) for made in (short, long)]
    for got, wanted in zip(*gradients, strict=True):
        assert (got - wanted).abs().max() <= 1e-6 * max(1, wanted.abs().max())


def test_a_block_at_some_places_equals_the_block():
    """Against timm's Block."""
    head, sequence = decoder(), torch.randn(2, PLACES, 40)
    index = torch.tensor([[3, 70, 11], [0, 76, 5]])
    wanted = head.blocks[0](sequence)[torch.arange(2)[:, None], index]
    torch.testing.assert_close(block_at(head.blocks[0], sequence, index), wanted, atol=1e-6, rtol=1e-6)


def test_the_order_in_which_places_are_fed_does_not_matter():
    """By symmetry: tokens travel with their places."""
    head, mask = decoder(), MASKS["visible fed"][0]()
    features = features_for(mask, 1)
    order = torch.randperm(mask.fed.shape[1])
    shuffled = Mask.from_hidden(mask.hidden, fed=mask.fed[:, order])
    moved = Features(torch.cat([features.sequence[:, :1], features.sequence[:, 1:][:, order]], dim=1), 1)
    torch.testing.assert_close(head(moved, shuffled), head(features, mask), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_decoder_starts_like_the_authors():
    """Against the published initialisation: Xavier-uniform embedding and prediction, zero biases, token std 0.02."""
    torch.manual_seed(0)
    head = Decoder(encoder_dim=192, out_dim=300, grid=GRID, embed_dim=160, depth=1, num_heads=5)
    for layer, fans in ((head.embed, 352), (head.predict, 460), (head.blocks[0].attn.qkv, 640)):
        bound = (6 / fans) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert not layer.bias.any()
    assert head.mask_token.std() == pytest.approx(0.02, rel=0.2)
    assert head.norm.eps == head.blocks[0].norm1.eps == 1e-6
    assert not {"pos_embed"} & {name for name, _ in head.named_parameters()}


def test_linear_head_predicts_the_chosen_tokens():
    """By hand: weight and bias applied to the tokens of hidden places."""
    head, mask = Linear(encoder_dim=WIDTH, out_dim=OUT), MASKS["unequal counts"][0]()
    features = features_for(mask, 1)
    wanted = features.sequence[:, 1:][mask.predicted] @ head.predict.weight.T + head.predict.bias
    torch.testing.assert_close(head(features, mask), wanted)


def test_impossible_heads_are_told():
    """The user's mistake in one line."""
    with pytest.raises(UserError, match=r"head\.embed_dim=40 must be divisible by num_heads=3"):
        decoder(num_heads=3)
    with pytest.raises(UserError, match=r"set mask\.feed=all, or take head=decoder"):
        Linear(encoder_dim=WIDTH, out_dim=OUT, feed="visible")
