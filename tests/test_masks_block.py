"""Block masks against their authors' procedure, written anew."""

import math
import random

import pytest
import torch

from mimkit.masks.block import Block
from tests.test_masks import generator


def beits_generator(grid, count, min_area, max_area, reach_edges=True, until_full=False):
    """The authors' procedure for one image, place by place and attempt by attempt."""
    (height, width), hidden = grid, set()
    while len(hidden) < count:
        budget = min(count - len(hidden), max_area)
        for _ in range(10):
            area, aspect = random.uniform(min_area, budget), math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= height or w >= width:
                continue
            top, left = (random.randrange(side + reach_edges) for side in (height - h, width - w))
            block = {(top + y) * width + left + x for y in range(h) for x in range(w)}
            if 0 < len(block - hidden) <= budget:
                hidden |= block
                break
        else:
            if not until_full:
                return hidden
    return hidden


@pytest.mark.parametrize(
    ("grid", "count", "min_area", "max_area", "edges", "rule"),
    [
        ((14, 14), 75, 16, 75, True, "at_most"),
        ((14, 14), 120, 16, 196, True, "at_most"),
        ((7, 11), 30, 6, 30, True, "at_most"),
        ((4, 4), 6, 1, 4, True, "at_most"),
        ((14, 14), 78, 15, 78, True, "blocks"),
        ((14, 14), 78, 15, 78, False, "blocks"),
    ],
)
def test_blocks_are_drawn_as_by_the_authors(grid, count, min_area, max_area, edges, rule):
    """Against the procedure of BEiT's masking_generator: numbers hidden, and how often each place is."""
    random.seed(0)
    draws, places = 3000, grid[0] * grid[1]
    wanted = torch.zeros(draws, places, dtype=torch.bool)
    for row in wanted:
        row[list(beits_generator(grid, count, min_area, max_area, edges, rule == "blocks"))] = True
    masking = Block(count=count, min_area=min_area, max_area=max_area, edges=edges, rule=rule, feed="all")
    hidden = masking.draw(grid, draws, generator(), None).hidden
    noise = 5 / (2 * draws) ** 0.5  # five standard deviations of a difference of shares, at the most
    for number in range(count - 3, count + 1):
        share = ((x.sum(1) == number).double().mean() for x in (hidden, wanted))
        assert abs(next(share) - next(share)) < noise, number
    assert (hidden.double().mean(0) - wanted.double().mean(0)).abs().max() < noise
    assert hidden.sum(1).max() == count


@pytest.mark.parametrize(
    ("grid", "options", "full", "mean"),
    [
        ((14, 14), {"count": 75}, 0.666, 74.47),  # BEiT
        ((16, 16), {"count": 105, "min_area": 16}, 0.653, 104.45),  # EVA
        ((14, 14), {"count": 120, "max_area": 196}, 0.699, 119.54),  # data2vec
    ],
)
def test_block_at_most_meets_the_shares_of_the_authors_settings(grid, options, full, mean):
    """Against 20 000 draws of the procedure above; never more than the count."""
    mask = Block(**options, rule="at_most", feed="all").draw(grid, 10000, generator(), None)
    counts = mask.hidden.sum(1)
    assert counts.max() == options["count"]
    assert (counts == options["count"]).double().mean() == pytest.approx(full, abs=0.02)
    assert counts.double().mean() == pytest.approx(mean, abs=0.06)
    assert mask.predicted_index is None
    assert mask.fed is None


@pytest.mark.parametrize(("edges", "shares"), [(True, (0.145, 0.147)), (False, (0, 0))])
def test_maskfeats_blocks_hide_78_and_reach_the_edge_in_one_version(edges, shares):
    """How often the last row and column are hidden: the figures of mmselfsup (.145, .147) and mmpretrain (never)."""
    mask = Block(ratio=0.4, rule="blocks", min_area=15, edges=edges).draw((14, 14), 2000, generator(), None)
    assert (mask.hidden.sum(1) == 78).all() and mask.fed.shape == (2000, 118)
    hidden = mask.hidden.view(-1, 14, 14).double()
    assert hidden[:, 13].mean() == pytest.approx(shares[0], abs=0.012)
    assert hidden[:, :, 13].mean() == pytest.approx(shares[1], abs=0.012)


@pytest.mark.parametrize(
    ("grid", "options", "hidden"),
    [
        ((14, 14), {"count": 75}, 75),
        ((7, 11), {"ratio": 0.4}, 30),
        ((4, 4), {"count": 15}, 15),
        ((4, 4), {"count": 9, "rule": "blocks", "edges": False}, 9),  # all that blocks reach
    ],
)
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
