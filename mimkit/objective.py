"""One objective: what its head predicts, what its target wants, how the two are compared."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.types import Features, Head, Loss, Mask, Normalizer, Prediction, Target, Views, Wanted


class Objective(nn.Module):
    """What is predicted, and how it counts.

    head: predicts the target; None where the prediction of another objective is taken.
    prediction: which one: `main`, or `main.latents` for one that main's head names besides.
    weight: of the loss; where it is `adaptive`, multiplied by the factor of `adaptive_factor`.
    """

    def __init__(
        self,
        head: Head | None,
        target: Target,
        normalizer: Normalizer,
        loss: Loss,
        weight: float = 1.0,
        adaptive: bool = False,
        prediction: str | None = None,
    ):
        super().__init__()
        self.head, self.target, self.normalizer, self.compare = head, target, normalizer, loss
        self.weight, self.adaptive, self.prediction = weight, adaptive, prediction

    def wanted(self, views: Views, mask: Mask | None = None) -> Wanted:
        """What the target gives for its view, and for the mask if it reads that.

        Raises UserError where that view is missing.
        """
        if self.target.view not in views:
            raise UserError(f"the target reads the view '{self.target.view}', given are: {', '.join(views)}")
        view = views[self.target.view]
        with torch.inference_mode():
            wanted = self.target(view) if mask is None else self.target(view, mask)
        wanted = wanted if isinstance(wanted, Wanted) else Wanted(wanted)
        ordinary = {
            name: value.clone() for name, value in vars(wanted).items() if value is not None
        }  # usable in a graph
        return replace(wanted, **ordinary)

    def predict(self, features: Features, mask: Mask, made: Mapping[str, Prediction]) -> Prediction:
        """What the head predicts, or what was `made` by that of another objective.

        Raises UserError where that head names no such prediction.
        """
        if self.head is not None:
            prediction = self.head(features, mask)
            return prediction if isinstance(prediction, Prediction) else Prediction(prediction)
        source, _, part = str(self.prediction).partition(".")
        if not part:
            return replace(made[source], losses={}, metrics={})
        if part not in made[source].named:
            known = ", ".join(f"{source}.{name}" for name in made[source].named) or "none"
            raise UserError(f"prediction: {self.prediction}: that head names no '{part}'; it names: {known}")
        return Prediction(made[source].named[part])

    def score(self, prediction: Prediction, wanted: Wanted, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """The loss, and what is wanted at the predicted places, on its scale.

        The loss is the mean over all predicted places of the batch (each image as a whole counts as one more), summed
        over the head's predictions. Raises UserError where the head predicts nothing of what is wanted.
        """
        values = wanted.values
        if values is not None:
            values = self.normalized(mask.select(values) if self.target.reads == "image" else values)
        total = torch.zeros((), device=mask.hidden.device)
        for predicted in (prediction.values, *prediction.also):
            terms = [] if predicted is None or values is None else [self(predicted, values).flatten()]
            if prediction.cls is not None and wanted.cls is not None:
                terms.append(self(prediction.cls, self.normalized(wanted.cls)).flatten())
            if not terms:
                raise UserError(
                    "head and target do not meet: one is of single places, the other of the image as a whole"
                )
            total = total + torch.cat(terms).mean()
        return total, values

    def forward(self, prediction: Tensor, values: Tensor) -> Tensor:
        """Loss per place of a prediction against normalised values, in float32."""
        return self.compare(prediction.float(), values)

    def normalized(self, values: Tensor) -> Tensor:
        """Target values on the scale of the loss; codes as they are."""
        return self.normalizer(values.float()) if values.is_floating_point() else values


def adaptive_factor(others: Tensor, loss: Tensor, weight: Tensor) -> Tensor:
    """What makes the gradient of a loss at `weight` as long as that of the `others`; 1 where there are no gradients.

    Source: VQGAN (arXiv 2012.09841, equation 7), with the bounds of its code.
    """
    if not (loss.requires_grad and others.requires_grad):
        return torch.ones_like(loss)
    theirs, own = (torch.autograd.grad(each, weight, retain_graph=True)[0].norm() for each in (others, loss))
    return (theirs / (own + 1e-4)).clamp(0, 1e4).detach()
