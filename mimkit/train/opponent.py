"""The discriminators of adversarial losses: each learns by an optimizer of its own, after the model's step.

Source: VQGAN (arXiv 2012.09841) with its published code: the same images once more through the model that has just
learned, without gradient for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mimkit.losses import adversarial
from mimkit.model import Model
from mimkit.objective import Objective

if TYPE_CHECKING:
    from mimkit.train.session import Run


@dataclass(frozen=True)
class Opponent:
    """The discriminator of an objective's loss, and what it learns by.

    name: of the objective.
    """

    name: str
    objective: Objective
    loss: adversarial
    optimizer: torch.optim.Adam


def opponents(model: Model) -> list[Opponent]:
    """Those of a model that is on its device."""
    found = []
    objectives: Any = model.objectives.items()
    for name, objective in objectives:
        loss = objective.compare
        if isinstance(loss, adversarial):
            parameters = loss.discriminator.parameters()
            found.append(Opponent(name, objective, loss, torch.optim.Adam(parameters, loss.lr, loss.betas, fused=True)))
    return found


def awaken(run: "Run") -> None:
    """Let those losses count whose step has come."""
    for opponent in run.opponents:
        opponent.loss.active = run.step >= opponent.loss.start_step


def oppose(run: "Run", parts: Iterable[Mapping[str, Tensor]], batch: int) -> dict[str, Tensor]:
    """One step of every discriminator whose step has come, on the views of a batch of so many images in parts; their losses
    by name.

    The model is in eval mode, so that no codebook moves. Where a loss is not finite, no discriminator moves either.
    """
    active = [opponent for opponent in run.opponents if opponent.loss.active]
    if not active:
        return {}
    sums: dict[str, Tensor] = {}
    for opponent in active:
        opponent.loss.discriminator.requires_grad_(True)
    for part in parts:
        run.model.eval()
        with torch.no_grad(), run.autocast():
            _, made, wanted = run.model.predict(part)
        run.model.train()
        for opponent in active:
            values, true = made[opponent.name].values, wanted[opponent.name].values
            assert values is not None and true is not None, "images have places"
            loss = opponent.loss.oppose(values, opponent.objective.normalized(true)) * len(part["image"]) / batch
            loss.backward()
            name = f"loss_{opponent.name}.opponent"
            sums[name] = sums.get(name, 0) + loss.detach()
    for opponent in active:
        run.take_step(opponent.optimizer, sums[f"loss_{opponent.name}.opponent"])
        opponent.optimizer.zero_grad()
        opponent.loss.discriminator.requires_grad_(False)
    return sums
