"""`mimkit eval`: probes against scikit-learn and by hand, features kept on disk, mistakes through the real command."""


import numpy as np
import pytest
import torch

from mimkit.evaluate import linear
from mimkit.evaluate.knn import knn_predict, top1
from mimkit.evaluate.linear import fit_best

TIMM = {"model": "vit_tiny_patch16_224", "patch_size": 16}
DATA = ("data=shapes", "data.num_images=120", "data.num_test=60")


def clusters(count: int, width: int, classes: int, distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of overlapping classes, on scales that differ by a hundred."""
    draw = torch.Generator().manual_seed(4)
    labels = torch.randint(classes, (count,), generator=draw)
    centres = distance * torch.randn(classes, width, generator=draw)
    mix = torch.randn(width, width, generator=draw) * torch.logspace(0, -2, width)
    return (centres[labels] + torch.randn(count, width, generator=draw)) @ mix + 3, labels


def test_knn_votes_as_scikit_learns_weighted_neighbours() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = clusters(600, 16, 5, 0.4)
    bank, queries = features[:400], features[400:]
    theirs = KNeighborsClassifier(20, weights=lambda distance: np.exp((1 - distance) / 0.07), metric="cosine")
    wanted = theirs.fit(bank.double().numpy(), labels[:400].numpy()).predict(queries.double().numpy())
    predicted = knn_predict(bank, labels[:400], queries, 20, 0.07)
    assert np.array_equal(predicted.numpy(), wanted) and 30 < top1(predicted, labels[400:]) < 99


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_linear_is_scikit_learns_logistic_regression(C: float) -> None:
    """The same decision function at the same C, on the same standardised features."""
    from sklearn.linear_model import LogisticRegression

    features, labels = clusters(1500, 24, 5, 0.5)
    mean, std = features[:1000].mean(0), (features[:1000].var(0, correction=0) + 1e-6).sqrt()
    standard = ((features - mean) / std).double().numpy()
    theirs = LogisticRegression(C=C, tol=1e-9, max_iter=10000).fit(standard[:1000], labels[:1000].numpy())
    wanted = theirs.decision_function(standard[1000:])
    ours = fit_best(features[:1000], labels[:1000], C)
    decided = (features[1000:] @ ours.weight + ours.bias).numpy()
    decided -= decided.mean(1, keepdims=True)  # a shift of all classes decides nothing
    assert np.abs(decided - wanted).max() < 2e-3 * np.abs(wanted).max()
    accuracy = 100 * (wanted.argmax(1) == labels[1000:].numpy()).mean()
    assert abs(top1(ours.predict(features[1000:]), labels[1000:]) - accuracy) < 0.2


def test_the_c_that_is_best_on_held_out_images_is_taken() -> None:
    """Noisy labels and few images: strong regularisation wins, and what was held out says so."""
    features, labels = clusters(150, 60, 3, 0.15)
    chosen = fit_best(features, labels, None)
    each = {C: fit_best(features, labels, C).held_out_top1 for C in linear.GRID}
    assert chosen.held_out_top1 == max(each.values()) > min(each.values())
    assert chosen.C in [C for C, accuracy in each.items() if accuracy == max(each.values())]
    again = fit_best(features, labels, chosen.C)
    torch.testing.assert_close(chosen.weight, again.weight, rtol=0, atol=2e-3 * again.weight.abs().max().item())
