"""Linear probe: multinomial logistic regression on frozen features, solved to its optimum rather than trained for a while.

Standardised features play the part of MAE's batch norm without affine before its linear layer (arXiv 2111.06377,
appendix A.1). The objective is scikit-learn's: C x the sum of cross-entropies + half the sum of squared weights.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float, Int
from torch import Tensor

from mimkit.evaluate.frozen import Frozen, Score
from mimkit.evaluate.knn import top1

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of C, from strong regularisation to weak
HELD_OUT = 10  # one training image in so many chooses C
EPS = 1e-6  # added to the variances, as MAE's batch norm
ITERATIONS = 500  # at most; 10 to 200 are usual


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Logistic regression on the pooled features.

    C: inverse strength of the regularisation, scikit-learn's; null chooses by a held-out tenth of the training images.
    """

    C: Annotated[float, Gt(0)] | None = None

    def __call__(self, frozen: Frozen) -> Score:
        """Top-1 on the test images."""
        train, test = frozen.labelled("train", frozen.pool), frozen.labelled("test", frozen.pool)
        fitted = fit_best(train.features.to(frozen.device), train.labels.to(frozen.device), self.C)
        return Score(
            value=top1(fitted.predict(test.features), test.labels),
            note=f"C={fitted.C:g}, held-out {fitted.held_out_top1:.2f} %",
            details={"C": fitted.C, "held_out_top1": fitted.held_out_top1},
        )


@dataclass(frozen=True)
class Fitted:
    """A linear classifier: logits = features @ weight + bias. `held_out_top1`: of a fit to the other training images."""

    weight: Float[Tensor, "D K"]
    bias: Float[Tensor, " K"]
    C: float
    held_out_top1: float

    def predict(self, features: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        """The class of each image."""
        return torch.addmm(self.bias, features.to(self.weight), self.weight).argmax(1).cpu()


def fit_best(features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], C: float | None) -> Fitted:
    """The classifier for all images, with the `C` given, or of GRID the one that is best on a held-out tenth.

    Each C begins where the one before ended.
    """
    problem = Regression(features, labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)
    cut = max(1, len(labels) // HELD_OUT)
    held, fitting = order[:cut], order[cut:]
    weights = problem.start()
    best = (-1.0, 0.0, weights)
    for each in GRID if C is None else (C,):
        weights = problem.solve(each, fitting, weights)
        accuracy = top1(problem.logits(weights, held).argmax(1), problem.labels[held])
        if accuracy > best[0]:
            best = (accuracy, each, weights)
    accuracy, chosen, weights = best
    weight, bias = problem.raw(problem.solve(chosen, slice(None), weights))
    return Fitted(weight, bias, chosen, accuracy)


class Regression:
    """Logistic regression on standardised features, which are turned to their principal axes.

    The turn leaves the objective as it is, and its curvature along one axis says little about another one: so L-BFGS
    needs few steps once it counts each weight in units of its own curvature.
    """

    def __init__(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]):
        variance, self.mean = torch.var_mean(features, dim=0, correction=0)
        self.std = (variance + EPS).sqrt()
        x = (features - self.mean) / self.std
        self.axes = torch.linalg.eigh((x.T @ x).double())[1].to(x)
        self.x, self.labels, self.classes = x @ self.axes, labels, int(labels.max()) + 1

    def start(self) -> Float[Tensor, "E K"]:
        """Zero weights; the last row is the bias."""
        return self.x.new_zeros(self.x.shape[1] + 1, self.classes)

    def logits(self, weights: Float[Tensor, "E K"], rows: Tensor | slice) -> Float[Tensor, "N K"]:
        """Of the images in `rows`."""
        return _logits(weights, self.x[rows])

    def raw(self, weights: Float[Tensor, "E K"]) -> tuple[Float[Tensor, "D K"], Float[Tensor, " K"]]:
        """Weight and bias for features as they come."""
        weight = self.axes @ weights[:-1] / self.std[:, None]
        return weight, weights[-1] - self.mean @ weight

    def solve(self, C: float, rows: Tensor | slice, start: Float[Tensor, "E K"]) -> Float[Tensor, "E K"]:
        """The optimum for the images in `rows`, searched for from `start`."""
        x, labels = self.x[rows], self.labels[rows]
        decay = 1 / (C * len(x))
        probability = _logits(start, x).softmax(1)
        spread = probability * (1 - probability)
        curvature = torch.cat([(spread.T @ x.square()).T / len(x) + decay, spread.mean(0, keepdim=True) + EPS])
        unit = curvature.rsqrt()
        scaled = (start / unit).requires_grad_()
        solver = torch.optim.LBFGS(
            [scaled],
            max_iter=ITERATIONS,
            tolerance_grad=1e-5,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            solver.zero_grad()
            weights = scaled * unit
            loss = F.cross_entropy(_logits(weights, x), labels) + decay / 2 * weights[:-1].square().sum()
            loss.backward()
            return loss

        solver.step(objective)
        return (scaled * unit).detach()


def _logits(weights: Float[Tensor, "E K"], x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
    # Laid out so, torch takes grad.T @ x for the gradient: with many features several times as fast as x.T @ grad.
    return F.linear(x, weights[:-1].T.contiguous(), weights[-1])
