"""Masks: counts and shares of the authors' code, uniformity by statistics, the contract of `Mask` by hand."""

from itertools import combinations

import jaxtyping
import pytest
import torch

from mimkit.errors import UserError
from mimkit.masks.block import Block
from mimkit.masks.cells import Cells
from mimkit.masks.grid import Grid
from mimkit.masks.none import NoMask
from mimkit.masks.random import Random
from mimkit.masks.semantic import Semantic
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


@pytest.mark.parametrize(
    ("grid", "ratios", "parts"),  # visible, ignored, predicted
    [
        ((14, 14), (0.75, 0.75), (49, 0, 147)),
        ((14, 14), (0.75, 0.5), (49, 49, 98)),
        ((14, 14), (0.75, 0.25), (49, 98, 49)),
        ((14, 14), (0.75, 0.15), (49, 117, 30)),
        ((28, 28), (0.75, 0.25), (196, 392, 196)),
        ((16, 16), (0.75, 0.25), (64, 128, 64)),
        ((4, 16), (0.7, 0.2), (19, 31, 14)),  # 64 * (0.7 - 0.2) is 31.999…
    ],
)
def test_a_part_of_the_hidden_places_is_predicted(grid, ratios, parts):
    """The three numbers of CrossMAE's code."""
    mask = Random(ratio=ratios[0], predict_ratio=ratios[1]).draw(grid, 3, generator(), None)
    assert not (mask.predicted & ~mask.hidden).any()
    ignored = (mask.hidden & ~mask.predicted).sum(1)
    assert ((~mask.hidden).sum(1).tolist(), ignored.tolist(), mask.predicted.sum(1).tolist()) == tuple(
        [part] * 3 for part in parts
    )
    assert torch.equal(mask.predicted_index, mask.predicted.nonzero()[:, 1].view(3, -1))
    assert torch.equal(mask.fed, (~mask.hidden).nonzero()[:, 1].view(3, -1))
    assert Random(ratio=ratios[0], predict_ratio=ratios[1], feed="all").draw(grid, 3, generator(), None).fed is None


def test_every_hidden_place_is_predicted_equally_often():
    """By statistics: a quarter of all places, whatever is hidden."""
    mask = Random(predict_ratio=0.25).draw((4, 4), 8000, generator(), None)
    assert (mask.predicted.double().mean(0) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 8000) ** 0.5


@pytest.mark.parametrize("masking", [Random(predict="all"), Semantic(predict="all")], ids=["random", "semantic"])
def test_predict_all_counts_everywhere(masking):
    """The same draw as without, the loss at all places in raster order."""
    saliency = torch.rand(3, 12, generator=generator())
    mask = masking.draw((3, 4), 3, generator(), saliency)
    assert mask.predicted.all() and mask.predicted_index.tolist() == [list(range(12))] * 3
    assert torch.equal(mask.hidden, type(masking)().draw((3, 4), 3, generator(), saliency).hidden)
    assert torch.equal(mask.fed, (~mask.hidden).nonzero()[:, 1].view(3, -1))


@pytest.mark.parametrize(
    ("grid", "options", "cells"),
    [
        ((12, 12), {}, 22),  # SimMIM at 192 px: ceil(36 * 0.6)
        ((48, 48), {"cell": 8}, 22),  # the same for Swin's patches of 4 px
        ((14, 14), {}, 30),  # SimMIM at 224 px: ceil(49 * 0.6)
        (
            (14, 14),
            {"ratio": 0.65, "rounding": "floor_visible", "feed": "visible"},
            32,
        ),  # CMAE: int(49 * 0.35) = 17 stay
        ((4, 4), {}, 3),
        ((6, 10), {"ratio": 0.5}, 8),
    ],
)
def test_cells_are_hidden_as_a_whole(grid, options, cells):
    """The numbers of SimMIM's and CMAE's code; each cell is hidden or visible, never cut."""
    mask = Cells(**options).draw(grid, 5, generator(), None)
    cell = options.get("cell", 2)
    pixels = mask.hidden.view(5, grid[0] // cell, cell, grid[1] // cell, cell)
    whole = pixels[:, :, 0, :, 0]
    assert torch.equal(pixels, whole[:, :, None, :, None].expand_as(pixels))
    assert (whole.sum((1, 2)) == cells).all() and mask.grid == grid
    if options.get("feed") == "visible":
        assert torch.equal(mask.fed, (~mask.hidden).nonzero()[:, 1].view(5, -1))
    else:
        assert mask.fed is None


def test_every_cell_is_hidden_equally_often():
    """By statistics on 2 x 3 cells, 4 of them hidden."""
    hidden = Cells().draw((4, 6), 5000, generator(), None).hidden.double().mean(0)
    assert (hidden - 4 / 6).abs().max() < 5 * (4 / 6 * 2 / 6 / 5000) ** 0.5


def test_semantic_samples_one_place_after_another():
    """By hand on four places: the chance of each pair to stay visible in successive sampling without replacement."""
    weights = [0.1, 0.2, 0.3, 0.4]
    saliency = torch.tensor(weights).mul(7).expand(40000, 4)  # only proportions count
    mask = Semantic(ratio=0.5).draw((2, 2), 40000, generator(), saliency)
    for i, j in combinations(range(4), 2):
        p, q = weights[i], weights[j]
        wanted = p * q / (1 - p) + q * p / (1 - q)
        share = (mask.fed == torch.tensor([i, j])).all(1).double().mean()
        assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / 40000) ** 0.5, (i, j)


def test_semantic_leaves_each_image_what_its_own_saliency_shows():
    """Half of the places are a hundred times as salient, another half in each image: nearly all visible ones lie there."""
    saliency = torch.ones(2, 7, 11)
    saliency[0, :, :5], saliency[1, 4:] = 100, 100
    mask = Semantic().draw((7, 11), 2, generator(), saliency.flatten(1))
    assert mask.hidden.sum(1).tolist() == [58, 58]  # int(77 * 0.25) = 19 stay
    assert not mask.hidden.gather(1, mask.fed).any() and torch.equal(mask.fed, mask.fed.sort(1).values)
    shown = saliency.flatten(1).gather(1, mask.fed) == 100
    assert (shown.sum(1) >= 17).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_semantic_bears_zeros_and_low_precision(dtype):
    """What a softmax loses to zero ranks last, in random order; an image of zeros is masked at random."""
    saliency = torch.zeros(4000, 16)
    saliency[:2000, :3] = torch.tensor([0.9, 0.1, 6e-8])  # the last: float16's smallest number
    mask = Semantic(count=11).draw((4, 4), 4000, generator(), saliency.to(dtype))
    assert (mask.hidden.sum(1) == 11).all() and not mask.hidden[:2000, :3].any()
    for image, chance in ((mask.hidden[:2000, 3:], 11 / 13), (mask.hidden[2000:], 11 / 16)):
        assert (image.double().mean(0) - chance).abs().max() < 5 * (chance * (1 - chance) / 2000) ** 0.5


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
    "masking",
    [
        Random(),
        Random(predict_ratio=0.25),
        Semantic(),
        Block(),
        *(Block(rule=r, feed="all") for r in ("at_most", "blocks")),
    ],
    ids=["random", "part", "semantic", "exact", "at_most", "blocks"],
)
def test_the_same_generator_gives_the_same_mask(masking):
    """By repetition: equal seeds agree, other seeds differ, the global generator is left alone."""
    before = torch.get_rng_state()
    even = torch.ones(5, 77)
    first, again, other = (masking.draw((7, 11), 5, generator(seed), even).hidden for seed in (1, 1, 2))
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
        (lambda: Random(ratio=0.5, predict_ratio=0.6), r"predict_ratio=0\.6 must not exceed mask\.ratio=0\.5"),
        (lambda: Random(count=9, predict_ratio=0.5), "goes without mask.count"),
        (lambda: Random(predict="all", predict_ratio=0.5), "goes without .* mask.predict=all"),
        (
            lambda: Random(ratio=0.65, rounding="nearest", predict_ratio=0.01).draw((4, 4), 1, generator(), None),
            "none of 16 places to predict",
        ),
        (
            lambda: Semantic().draw((4, 4), 1, generator(), None),
            r"set target\.saliency=true \(clip, timm\), or mask=random$",
        ),
        (
            lambda: Cells(cell=4).draw((12, 18), 1, generator(), None),
            "divide the grid of 12x18 places; fits: 1, 2, 3, 6$",
        ),
        (lambda: Cells(cell=2).draw((7, 11), 1, generator(), None), "fits: 1$"),
        (lambda: Cells(ratio=0.9).draw((4, 4), 1, generator(), None), "would hide 4 of 4 cells"),
        (lambda: Block(count=3).draw((1, 9), 1, generator(), None), "cannot hide 3 of 1x9 places"),
        (
            lambda: Block(count=10, rule="blocks", edges=False).draw((4, 4), 1, generator(), None),
            "cannot hide 10 of 4x4 places: .* reach 9 of them",
        ),
        (
            lambda: Block(count=3, rule="blocks", min_area=3, min_aspect=1.0).draw((4, 4), 1, generator(), None),
            r"found no way to hide 3 of 4x4 places: .* mask\.rule=exact",
        ),
    ],
)
def test_impossible_masks_are_told(make, told, monkeypatch):
    """The user's mistake in one line, as in production, where the types do not run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=told):
        make()
