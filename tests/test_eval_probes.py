"""The probes themselves, on given features: against scikit-learn, and torch's own attention."""

import numpy as np
import pytest
import torch

from mimkit.evaluate import linear
from mimkit.evaluate.attentive import AttentiveHead
from mimkit.evaluate.knn import knn_predict, top1
from mimkit.evaluate.linear import fit_best


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


def test_the_attentive_head_is_cross_attention_as_torch_computes_it() -> None:
    """Norm, multi-head attention of one query, batch norm and linear layer, with the same weights, in float64."""
    torch.manual_seed(0)
    head = AttentiveHead(24, 3, 5).double()
    torch.nn.init.normal_(head.query)
    torch.nn.init.normal_(head.key)
    tokens = torch.randn(7, 10, 24, dtype=torch.float64) * 3 + 1
    attention = torch.nn.MultiheadAttention(24, 3, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        identity = torch.eye(24, dtype=torch.float64)
        attention.in_proj_weight.copy_(torch.cat([identity, head.key.flatten(0, 1), head.value.flatten(0, 1)]))
        attention.out_proj.weight.copy_(head.proj.weight)
    x = torch.nn.LayerNorm(24, eps=1e-6, elementwise_affine=False)(tokens)
    pooled = attention(head.query.reshape(1, 1, 24).expand(7, 1, 24), x, x)[0][:, 0]
    standard = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    wanted = standard @ head.classify.weight.T + head.classify.bias
    torch.testing.assert_close(head(tokens), wanted, rtol=1e-9, atol=1e-9)
