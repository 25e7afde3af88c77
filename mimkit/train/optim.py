"""AdamW with MAE's parameter groups, and the rate per step."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from mimkit.settings import OptimSettings, TrainSettings


def build_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """Fused AdamW; biases and other one-dimensional parameters do not decay, nor what `no_decay` names.

    Without it tokens and learned positions decay, as MAE's do (timm 0.3.2).
    """
    decays: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            last = name.rpartition(".")[2]
            decays[not (parameter.ndim <= 1 or last == "bias" or last in settings.no_decay)].append(parameter)
    groups = [
        {"params": decays[False], "weight_decay": 0.0},
        {"params": decays[True], "weight_decay": settings.weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a half cosine or steps, as a function of the number of steps done.

    peak, min_lr, warmup_lr: rates after the warm-up, at the end of the cosine, at the first step.
    drop_steps: where the rate is multiplied by drop_factor; without them it follows the cosine.

    Sources: MAE's lr_sched (its warm-up starts from 0), SimMIM's multi-step schedule.
    """

    peak: float
    min_lr: float
    warmup_steps: float
    total_steps: int
    warmup_lr: float = 0.0
    drop_steps: tuple[float, ...] = ()
    drop_factor: float = 0.1

    def __call__(self, step: int) -> float:
        """Learning rate of the step after `step` steps."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.peak - self.warmup_lr) * step / self.warmup_steps
        if self.drop_steps:
            return self.peak * self.drop_factor ** sum(step >= drop for drop in self.drop_steps)
        done = (step - self.warmup_steps) / max(1e-9, self.total_steps - self.warmup_steps)
        return self.min_lr + (self.peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def schedule(optim: OptimSettings, train: TrainSettings, batch_size: int, steps_per_epoch: int) -> Schedule:
    """The run's schedule; where `base_lr` is given, all rates are scaled linearly by the batch: rate * batch_size / 256."""
    scale = 1.0 if optim.lr is not None else batch_size / 256
    return Schedule(
        peak=(optim.lr or optim.base_lr or 0) * scale,
        min_lr=optim.min_lr * scale,
        warmup_steps=train.warmup_epochs * steps_per_epoch,
        total_steps=train.max_steps or max(1, round((train.epochs or 0) * steps_per_epoch)),
        warmup_lr=optim.warmup_lr * scale,
        drop_steps=tuple(epoch * steps_per_epoch for epoch in optim.drop_epochs),
        drop_factor=optim.drop_factor,
    )
