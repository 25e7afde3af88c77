"""Iterative decoding with predictors of known distributions, and the Fréchet distance by its formula."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from mimkit.evaluate.frechet import frechet_distance
from mimkit.generate.sampler import Sampling, fill_in

L, K = 9, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blank(images=3):
    return torch.zeros(images, L, dtype=torch.long), torch.ones(images, L, dtype=torch.bool)


class Fixed:
    """Predicts the same distribution for every image, and notes what it is asked."""

    def __init__(self, log_p):
        self.log_p, self.asked = log_p, []

    def __call__(self, codes, unknown):
        self.asked.append((codes.clone(), unknown.clone()))
        return self.log_p.expand(len(codes), -1, -1)


def test_one_step_draws_each_place_from_its_own_distribution():
    """By counting 20,000 images; logits count up to a constant."""
    log_p = torch.randn(L, K, generator=generator(1)).log_softmax(-1)
    codes = fill_in(Fixed(log_p + 7), *blank(20000), Sampling(1, 6.0), generator())
    shares = torch.stack([(codes == code).double().mean(0) for code in range(K)], 1)
    torch.testing.assert_close(shares, log_p.exp().double(), rtol=0, atol=0.015)  # 4 standard errors


@pytest.mark.parametrize(("steps", "unknown"), [(4, 9), (20, 9), (3, 256), (20, 256), (8, 5)])
def test_the_number_of_unknown_codes_follows_the_cosine(steps, unknown):
    """By hand: floor(n cos(pi/2 (t+1)/T)), at least one, and at least one less than before while more than one is left."""
    predict = Fixed(torch.zeros(unknown, K))
    start = torch.ones(2, unknown, dtype=torch.bool)
    fill_in(predict, torch.zeros(2, unknown, dtype=torch.long), start, Sampling(steps, 1.0), generator())
    found = [asked.sum(1).tolist() for _, asked in predict.asked]
    left, wanted = unknown, []
    for step in range(steps):
        wanted.append([left] * 2)
        left = max(1, min(left - 1, math.floor(unknown * math.cos(math.pi / 2 * (step + 1) / steps))))
    assert found == wanted and len(found) == steps


def test_a_schedule_by_hand():
    """9 codes in 4 steps: 9 cos(pi/8) = 8.31, 9 cos(pi/4) = 6.36, 9 cos(3 pi/8) = 3.44."""
    predict = Fixed(torch.zeros(L, K))
    fill_in(predict, *blank(1), Sampling(4, 6.0), generator())
    assert [int(unknown.sum()) for _, unknown in predict.asked] == [9, 8, 6, 3]


def test_known_codes_stay_and_what_is_drawn_stays():
    """In every step: given codes are never touched, codes that were kept never change again, nothing known is forgotten."""
    codes, unknown = torch.randint(K, (3, L), generator=generator(2)), torch.rand(3, L, generator=generator(3)) < 0.7
    unknown[2] = False
    predict = Fixed(torch.zeros(L, K))
    found = fill_in(predict, codes, unknown, Sampling(5, 6.0), generator())
    assert torch.equal(found[~unknown], codes[~unknown]) and (found[unknown] != codes[unknown]).any()
    for (before, was), (after, now) in zip(predict.asked, predict.asked[1:]):
        assert (now <= was).all() and torch.equal(after[~was], before[~was])
    last, was = predict.asked[-1]
    assert torch.equal(found[~was], last[~was])


def alike(copies):
    """Log-probabilities of places, of which each has so many codes of equal probability: any of them is as sure."""
    log_p = torch.full((len(copies), max(copies)), -torch.inf)
    for place, count in enumerate(copies):
        log_p[place, :count] = -math.log(count)
    return log_p


def test_without_chance_the_surest_codes_are_kept():
    """By construction: place 0 is the surest, then place 1, and so on."""
    predict = Fixed(alike(range(1, L + 1)))
    fill_in(predict, *blank(), Sampling(4, 0.0), generator())
    for _, unknown in predict.asked[1:]:
        assert torch.equal(unknown, (torch.arange(L) >= L - unknown[0].sum()).expand(3, -1))


@pytest.mark.parametrize("copies", [1, 3])
def test_chance_is_gumbel_noise(copies):
    """Of codes with log-probabilities 0 and -log(copies) one is kept. The difference of two Gumbel variables is logistic, so
    with half of a temperature of 4 the first is kept with probability 1 / (1 + exp(-log(copies) / 2)).
    """
    predict = Fixed(alike([1, copies]))
    unknown = torch.ones(40000, 2, dtype=torch.bool)
    fill_in(predict, torch.zeros_like(unknown, dtype=torch.long), unknown, Sampling(2, 4.0), generator())
    kept = (~predict.asked[1][1]).double().mean(0)
    assert kept[0].item() == pytest.approx(1 / (1 + copies**-0.5), abs=0.01) and kept.sum() == 1


def test_seeds():
    log_p = torch.zeros(L, K)
    first, again, other = (fill_in(Fixed(log_p), *blank(), Sampling(4, 6.0), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_frechet_distance_by_its_formula():
    """Against scipy's matrix root, and by hand for one dimension: (m1 - m2)² + (s1 - s2)²."""
    first = torch.randn(50, 6, generator=generator(4)) @ torch.randn(6, 6, generator=generator(5))
    second = torch.randn(40, 6, generator=generator(6)) + 1
    a, b = first.double().numpy(), second.double().numpy()
    c1, c2 = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(c1 @ c2).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-9)
    line = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [9.0]])
    assert frechet_distance(*line) == pytest.approx(16 + (2**0.5 - 32**0.5) ** 2)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    few = torch.randn(4, 6, generator=generator(7))  # fewer than dimensions: singular covariances
    assert 0 < frechet_distance(few, second) < math.inf
