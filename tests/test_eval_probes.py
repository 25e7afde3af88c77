"""The probes themselves: against scikit-learn, torch's own attention, and steps by hand."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimkit.data.crops import RandomCrop
from mimkit.data.source import BadImage, Pixels, Source
from mimkit.evaluate import linear
from mimkit.evaluate.attentive import AttentiveHead
from mimkit.evaluate.attentive_sgd import AttentiveSgd
from mimkit.evaluate.frozen import Frozen
from mimkit.evaluate.knn import knn_predict, top1
from mimkit.evaluate.linear import fit_best
from mimkit.evaluate.linear_lars import ClippedCrop, LinearLars, lars, linear_head
from mimkit.evaluate.training import Crops, train_on_crops
from mimkit.types import Encoder, Features, as_float


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
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(7, 10, 24, dtype=torch.float64) * 3 + 1
    attention = torch.nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    norm_q, norm_k, norm_v = (torch.nn.LayerNorm(24, eps=1e-6, dtype=torch.float64) for _ in range(3))
    shift = torch.randn(5, 24, dtype=torch.float64)  # what the head leaves out, since it changes nothing
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([head.q.weight, head.k.weight, head.v.weight]))
        attention.in_proj_bias.copy_(torch.cat([head.q.bias, shift[0], shift[1]]))
        attention.out_proj.weight.copy_(head.proj.weight)
        attention.out_proj.bias.copy_(shift[2])
        for norm, scale, bias in (
            (norm_q, head.norm_q.weight, head.norm_q.bias),
            (norm_k, head.scale_k, shift[3]),
            (norm_v, head.scale_v, shift[4]),
        ):
            norm.weight.copy_(scale)
            norm.bias.copy_(bias)
    query = norm_q(head.query.expand(7, 1, 24))
    pooled = attention(query, norm_k(tokens), norm_v(tokens))[0][:, 0]
    standard = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    wanted = standard @ head.classify.weight.T + head.classify.bias
    torch.testing.assert_close(head(tokens), wanted, rtol=1e-9, atol=1e-9)


def test_lars_steps_as_maes_by_hand() -> None:
    """v <- 0.9 v + q g and w <- w - rate v, with q = 0.001 |w| / |g| for the matrix and 1 for the bias."""
    torch.manual_seed(0)
    head = linear_head(6, 4).double()
    torch.nn.init.normal_(head[1].bias)
    features, labels = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 4
    optimizer = lars(head)
    weight, bias = (p.detach().clone() for p in head[1].parameters())
    moved = {"weight": torch.zeros_like(weight), "bias": torch.zeros_like(bias)}
    for rate in (0.0, 3.0, 5.0, 2.0):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), labels).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        x = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-6).sqrt()
        error = ((x @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(labels)) / 20
        gradient = error.T @ x
        moved["weight"] = 0.9 * moved["weight"] + 0.001 * weight.norm() / gradient.norm() * gradient
        moved["bias"] = 0.9 * moved["bias"] + error.sum(0)
        weight, bias = weight - rate * moved["weight"], bias - rate * moved["bias"]
        torch.testing.assert_close(head[1].weight.detach(), weight, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(head[1].bias.detach(), bias, rtol=1e-6, atol=1e-9)


def test_crops_whose_sides_are_too_long_are_clipped() -> None:
    """By hand: of 40 x 100 pixels, an area of 0.92 / 2 + 0.08 and a ratio of 1 ask for 46 x 46; then smaller ones."""
    draws = np.full((3, 24), 0.5)
    draws[1, 0], draws[2, 0] = 0.0, 1.0  # areas of 320 and 4000
    draws[2, 1] = 1.0  # ratio 4/3: 55 x 73
    boxes, flips = ClippedCrop((0.08, 1.0)).boxes(np.array([[40, 100]] * 3), draws)
    assert boxes.tolist() == [[0, 27, 40, 46], [11, 41, 18, 18], [0, 14, 40, 73]]
    assert not flips.any()


class Channels(Encoder):
    """An encoder whose only token is the image's mean colour."""

    in_chans, image_size, embed_dim = 3, (8, 8), 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, images: Any, mask: Any = None, layers: Any = ()) -> Features:
        return Features(as_float(images).mean((2, 3))[:, None] * self.scale, grid=(1, 1))


class Coloured(Source):
    """Images of one colour, noisy and in a random order: red, green and blue in turn; some cannot be read."""

    def __init__(self, count: int, unreadable: tuple[int, ...] = ()):
        super().__init__("coloured", np.arange(count) % 3, in_chans=3)
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Pixels:
        if index in self.unreadable:
            raise BadImage("is torn")
        image = torch.randint(0, 90, (3, 12, 9), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        image[index % 3] += 60
        return Pixels(image)


def frozen_colours(folder: Path) -> Frozen:
    sources = {"train": Coloured(90, unreadable=(4, 30)), "test": Coloured(30)}
    return Frozen(Channels(), sources, "mean", folder, {"train": "colours", "test": "colours"})


def test_crops_come_with_the_labels_of_their_images(tmp_path: Path) -> None:
    """Each epoch has every readable image once, and other crops of it than the epoch before."""
    crops = Crops(frozen_colours(tmp_path), "mean", 40, RandomCrop((0.08, 1.0)))
    assert (crops.batch_size, crops.batches.steps_per_epoch, len(crops.source)) == (40, 2, 88)
    batches = list(islice(crops, 4))
    for batch in batches:
        assert torch.equal(batch.features.argmax(1), batch.labels) and batch.features.shape == (40, 3)
    assert len(torch.unique(torch.cat([batch.features for batch in batches]), dim=0)) == 160
    again = next(iter(Crops(frozen_colours(tmp_path), "mean", 40, RandomCrop((0.08, 1.0)))))
    assert torch.equal(again.features, batches[0].features)


@pytest.mark.parametrize("probe", [LinearLars(epochs=60, base_lr=100), AttentiveSgd(epochs=20, base_lr=2)])
def test_the_published_probes_learn(tmp_path: Path, probe: Any) -> None:
    """On colours anybody can tell apart; the second time the same bits."""
    frozen = frozen_colours(tmp_path)
    assert probe(frozen).value > 95 and frozen.unreadable == {"train": 2, "test": 0}
    assert "88 a step" in probe(frozen).note and probe(frozen) == probe(frozen_colours(tmp_path / "new"))


def test_the_rate_rises_for_a_ninth_of_the_steps_and_falls_to_zero(tmp_path: Path) -> None:
    """MAE's rule, by hand: 10 of 90 epochs, base rate x batch size / 256."""
    head, seen = linear_head(3, 3), []
    optimizer = torch.optim.SGD(head.parameters())
    optimizer.register_step_post_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    crops = Crops(frozen_colours(tmp_path), "mean", 44, RandomCrop())
    train_on_crops(head, optimizer, crops, 90, 0.1)
    peak = 0.1 * 44 / 256
    epochs = np.arange(180) / 2
    wanted = np.where(epochs < 10, peak * epochs / 10, peak * 0.5 * (1 + np.cos(np.pi * (epochs - 10) / 80)))
    assert seen == pytest.approx(wanted.tolist())
