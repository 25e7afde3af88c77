"""What a recipe costs: floating point operations of a training step, counted while one is done; its parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mimkit.losses import adversarial
from mimkit.model import Model
from mimkit.objective import Objective
from mimkit.quick import ONEDNN
from mimkit.teachers.teacher import Teacher
from mimkit.types import Views

COUNTED = 4  # images in the step that is counted


@dataclass(frozen=True)
class Cost:
    """Of a model.

    step: operations of a training step per image (all its repeats), forward with the target and backward; 2 for a multiply-add.
    target: those of the target in it.
    parameters: of the encoder and the heads. encoder_parameters: of the encoder. target_parameters: of the first target.
    taught: whether that is a frozen network that gives features.
    """

    step: float
    target: float
    parameters: int
    encoder_parameters: int
    target_parameters: int
    taught: bool


def cost_of(model: Model) -> Cost:
    """Count the operations of a step of a few random images; all products of matrices count, nothing else does.

    The figure is the method's, whatever kernels compute (those of attention do parts twice). A target's cache counts as
    empty, and an adversarial loss as begun, with its discriminator's step.
    """
    encoder, objectives = model.encoder, cast(list[Objective], list(model.objectives.values()))
    generator = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        shape = (COUNTED * model.recipe.batches.repeats, encoder.in_chans, *encoder.image_size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    with _plain_attention():
        views = model.views(images())
        mask, *_ = model.predict(views, generator=generator)
        with _counter() as of_targets:
            for objective in objectives:
                if objective.target.reads != "prediction":
                    objective.wanted(views, mask if objective.target.reads == "mask" else None)
        opposed = {
            name: each for name, each in zip(model.objectives, objectives) if isinstance(each.compare, adversarial)
        }
        for each in opposed.values():
            cast(adversarial, each.compare).active = True
        with _counter() as of_step:
            model(images(), generator=generator).loss.backward()
            if opposed:
                _oppose(model, views, opposed)
    main = objectives[0].target
    return Cost(
        step=of_step.get_total_flops() / COUNTED,
        target=of_targets.get_total_flops() / COUNTED,
        parameters=size(encoder) + sum(size(each.head) for each in objectives if each.head is not None),
        encoder_parameters=size(encoder),
        target_parameters=size(main),
        taught=isinstance(main, Teacher) and main.dim is not None,
    )


def _oppose(model: Model, views: Views, opposed: Mapping[str, Objective]) -> None:
    """What the discriminators' step computes."""
    with torch.no_grad():
        _, made, wanted = model.predict(views)
    for name, objective in opposed.items():
        loss, values, true = cast(adversarial, objective.compare), made[name].values, wanted[name].values
        assert values is not None and true is not None, "images have places"
        loss.discriminator.requires_grad_(True)
        loss.oppose(values, objective.normalized(true)).backward()


def size(module: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as products of matrices: what fused kernels do, some of them uncounted, is done in steps."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _linear} if ONEDNN else None
    )


def _linear(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of x (…, in) times weight (out, in), which torch's counter does not know when oneDNN does it."""
    return 2 * prod(x) * weight[0]
