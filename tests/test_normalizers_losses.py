"""Normalizers and losses against torch's functional forms, and against numbers computed by hand."""

import pytest
import torch
import torch.nn.functional as F

from mimkit import losses, normalizers

B, P, D, K = 2, 7, 24, 11


def values(seed=0):
    return 3 * torch.randn(B, P, D, generator=torch.Generator().manual_seed(seed)) + 5


def test_layer_norm_equals_torchs():
    """Against torch.nn.functional.layer_norm."""
    torch.testing.assert_close(normalizers.layer_norm()(values()), F.layer_norm(values(), (D,)))
    torch.testing.assert_close(normalizers.layer_norm(eps=0.1)(values()), F.layer_norm(values(), (D,), eps=0.1))


def test_per_patch_divides_by_the_unbiased_deviation():
    """By hand: of 1, 2, 3, 6 the mean is 3 and the unbiased variance 14 / 3."""
    normal = normalizers.per_patch()(torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    torch.testing.assert_close(normal, torch.tensor([[-2.0, -1.0, 0.0, 3.0]]) / (14 / 3) ** 0.5, atol=1e-6, rtol=0)
    biased = normalizers.per_patch(unbiased=False)(torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    torch.testing.assert_close(biased, torch.tensor([[-2.0, -1.0, 0.0, 3.0]]) / 3.5**0.5, atol=1e-6, rtol=0)


def test_per_patch_of_a_flat_patch_is_zero_and_finite():
    """By hand: only eps is divided by."""
    flat = normalizers.per_patch()(torch.full((2, D), 0.7))
    torch.testing.assert_close(flat, torch.zeros(2, D), atol=1e-3, rtol=0)
    ten = normalizers.per_patch(eps=1e-6)(torch.tensor([[0.0, 1e-3]]))
    torch.testing.assert_close(ten, torch.tensor([[-5e-4, 5e-4]]) / (5e-7 + 1e-6) ** 0.5)


def test_l2_equals_torchs_normalize():
    """Against torch.nn.functional.normalize."""
    torch.testing.assert_close(normalizers.l2()(values()), F.normalize(values(), dim=-1))


def test_none_changes_nothing():
    """By definition."""
    assert torch.equal(normalizers.none()(values()), values())


@pytest.mark.parametrize("name", ["none", "layer_norm", "per_patch", "l2"])
def test_invert_undoes_the_normalizer(name):
    """By definition: with the statistics of the values themselves."""
    normalizer = getattr(normalizers, name)()
    torch.testing.assert_close(normalizer.invert(normalizer(values()), values()), values())


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (losses.mse(), lambda x, y: F.mse_loss(x, y, reduction="none").mean(-1)),
        (losses.l1(), lambda x, y: F.l1_loss(x, y, reduction="none").mean(-1)),
        (losses.smooth_l1(beta=2.0), lambda x, y: F.smooth_l1_loss(x, y, reduction="none", beta=2.0).mean(-1)),
        (losses.cosine(), lambda x, y: 1 - F.cosine_similarity(x, y, dim=-1)),
        (losses.cosine(scale=2), lambda x, y: (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).square().sum(-1)),
    ],
    ids=["mse", "l1", "smooth_l1", "cosine", "2 - 2 cos"],
)
def test_continuous_losses_equal_torchs(loss, reference):
    """Against torch.nn.functional; 2 - 2 cos is the squared distance of unit vectors."""
    per_place = loss(values(1), values(2))
    assert per_place.shape == (B, P)
    torch.testing.assert_close(per_place, reference(values(1), values(2)))
    flat = loss(values(1).flatten(0, 1), values(2).flatten(0, 1))
    torch.testing.assert_close(flat, per_place.flatten())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_its_definition(smoothing):
    """Against log-probabilities: the wanted one's, and the mean of all with smoothing."""
    logits = torch.randn(B, P, K)
    codes = torch.randint(K, (B, P))
    log = logits.log_softmax(-1)
    wanted = -(1 - smoothing) * log.gather(-1, codes[..., None])[..., 0] - smoothing * log.mean(-1)
    torch.testing.assert_close(losses.cross_entropy(label_smoothing=smoothing)(logits, codes), wanted)
