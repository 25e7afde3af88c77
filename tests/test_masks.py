"""Masks: counts and shares of the authors' code, uniformity by statistics, the contract of `Mask` by hand."""

import jaxtyping
import pytest
import torch

from mimkit.errors import UserError
from mimkit.masks.block import Block
from mimkit.masks.grid import Grid
from mimkit.masks.none import NoMask
from mimkit.masks.random import Random
from mimkit.types import Mask


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("grid", "options", "hidden"),
    [
        ((14, 14), {"ratio": 0.75}, 147),
        ((14, 14), {"ratio": 0.65}, 128),  # 68 stay
        ((10, 10), {"ratio": 0.9}, 91),  # int(100 * (1 - 0.9)) is 9
        ((16, 16), {"ratio": 0.75}, 192),
        ((7, 11), {"ratio": 0.6, "rounding": "ceil_hidden"}, 47),
        ((7, 11), {"ratio": 0.6, "rounding": "nearest"}, 46),
        ((7, 11), {"ratio": 0.6, "count": 13}, 13),
    ],
)
def test_random_hides_as_many_as_the_authors(grid, options, hidden):
    """Against the authors' truncation on Python floats, and against ceil and round."""
    mask = Random(**options).draw(grid, 3, generator(), None)
    places = grid[0] * grid[1]
    assert mask.hidden.shape == (3, places)
    assert mask.hidden.sum(1).tolist() == [hidden] * 3
    assert mask.fed.shape == (3, places - hidden)
    assert not mask.hidden.gather(1, mask.fed).any()
    assert torch.equal(mask.fed, mask.fed.sort(1).values)
    assert torch.equal(mask.predicted, mask.hidden)
    assert torch.equal(mask.predicted_index, mask.hidden.nonzero()[:, 1].view(3, -1))
    assert mask.grid == grid


def test_random_hides_every_place_and_pair_equally_often():
    """By statistics: 4000 draws of 30 of 77; shares within five standard deviations."""
    hidden = Random(count=30).draw((7, 11), 4000, generator(), None).hidden.double()
    share = 30 / 77
    assert (hidden.mean(0) - share).abs().max() < 5 * (share * (1 - share) / 4000) ** 0.5
    pairs = (hidden.T @ hidden / 4000)[~torch.eye(77, dtype=torch.bool)]
    wanted = share * 29 / 76
    assert (pairs - wanted).abs().max() < 5 * (wanted * (1 - wanted) / 4000) ** 0.5


def test_block_at_most_meets_the_shares_of_beits_own_generator():
    """Against BEiT's generator on 14x14 with 75: full in 67.5 %, one short in 22.8 %, 74.49 on average."""
    mask = Block(count=75, rule="at_most", feed="all").draw((14, 14), 4000, generator(), None)
    counts = mask.hidden.sum(1)
    assert counts.max() == 75
    assert (counts == 75).double().mean() == pytest.approx(0.675, abs=0.03)
    assert (counts == 74).double().mean() == pytest.approx(0.228, abs=0.03)
    assert counts.double().mean() == pytest.approx(74.49, abs=0.1)
    assert mask.predicted_index is None
    assert mask.fed is None


@pytest.mark.parametrize(("grid", "options", "hidden"), [((14, 14), {"count": 75}, 75), ((7, 11), {"ratio": 0.4}, 30)])
def test_block_exact_always_hides_the_count(grid, options, hidden):
    """BEiT v2: filled up with single places."""
    mask = Block(**options).draw(grid, 500, generator(), None)
    assert (mask.hidden.sum(1) == hidden).all()
    assert mask.fed.shape == (500, grid[0] * grid[1] - hidden)
    assert not mask.hidden.gather(1, mask.fed).any()


def test_blocks_hang_together_more_than_random_places():
    """By statistics: a hidden place's right neighbour is hidden far more often than the share."""
    hidden = Block(count=75).draw((14, 14), 500, generator(), None).hidden.view(-1, 14, 14)
    together = (hidden[:, :, 1:] & hidden[:, :, :-1]).sum() / hidden[:, :, :-1].sum()
    assert together > 0.65  # random places: 75 / 196 = 0.38


def test_grid_leaves_the_upper_left_place_of_each_cell():
    """By hand on 3 rows of 5 columns."""
    mask = Grid().draw((3, 5), 2, generator(), None)
    assert mask.fed.tolist() == [[0, 2, 4, 10, 12, 14]] * 2
    assert mask.hidden.sum(1).tolist() == [9, 9]
    assert Grid(feed="all").draw((3, 5), 2, generator(), None).fed is None


def test_none_hides_nothing_and_predicts_everything():
    """By definition."""
    mask = NoMask().draw((7, 11), 2, generator(), None)
    assert not mask.hidden.any()
    assert mask.predicted.all()
    assert mask.fed is None
    assert mask.predicted_index.tolist() == [list(range(77))] * 2


@pytest.mark.parametrize(
    "masking", [Random(), Block(), Block(rule="at_most", feed="all")], ids=["random", "exact", "at_most"]
)
def test_the_same_generator_gives_the_same_mask(masking):
    """By repetition: equal seeds agree, other seeds differ, the global generator is left alone."""
    before = torch.get_rng_state()
    first, again, other = (masking.draw((7, 11), 5, generator(seed), None).hidden for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(map(tuple, first.tolist()))) == 5


def test_select_takes_the_predicted_places_in_raster_order():
    """By hand: equal counts stay (B, P, D), unequal ones are concatenated."""
    values = torch.arange(2 * 5 * 3).view(2, 5, 3)
    equal = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]], dtype=torch.bool)
    chosen = Mask.from_hidden(equal).select(values)
    assert chosen[:, :, 0].tolist() == [[3, 12], [15, 24]]
    unequal = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    assert Mask.from_hidden(unequal).select(values)[:, 0].tolist() == [3, 12, 15]
    assert Mask.from_hidden(unequal, predicted=~equal).select(values)[:, :, 0].tolist() == [[0, 6, 9], [18, 21, 27]]
    assert Mask.from_hidden(unequal).select(values[..., 0]).tolist() == [3, 12, 15]


def test_feed_visible_lists_what_is_not_hidden():
    """By hand; unequal counts are refused."""
    equal = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]], dtype=torch.bool)
    assert Mask.from_hidden(equal).feed_visible().fed.tolist() == [[0, 2, 3], [1, 2, 4]]
    unequal = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    with pytest.raises(UserError, match="same number of visible places"):
        Mask.from_hidden(unequal).feed_visible()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: Mask.from_hidden(torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)),
            "differ in shape",
        ),
        (lambda: Mask.from_hidden(torch.ones(2, 5, dtype=torch.bool), fed=torch.tensor([[0], [5]])), r"outside 0\.\.4"),
        (
            lambda: Mask.from_hidden(torch.ones(2, 5, dtype=torch.bool), fed=torch.tensor([[0], [-1]])),
            r"outside 0\.\.4",
        ),
        (lambda: Mask.from_hidden(torch.ones(2, 5, dtype=torch.bool), fed=torch.tensor([[0]])), "number of images"),
        (lambda: Mask.from_hidden(torch.ones(2, 77, dtype=torch.bool)).on_grid((7, 10), 2), "grid 7x10"),
        (lambda: Random(ratio=0.9).draw((1, 3), 1, generator(), None), "would hide 3 of 3 places"),
        (lambda: Random(count=77).draw((7, 11), 1, generator(), None), "would hide 77 of 77 places"),
        (lambda: Block(rule="at_most"), r"set mask\.feed=all or mask\.rule=exact"),
        (lambda: Grid().draw((1, 9), 1, generator(), None), "at least 2x2 places"),
    ],
)
def test_impossible_masks_are_told(make, told, monkeypatch):
    """The user's mistake in one line, as in production, where the types do not run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=told):
        make()
