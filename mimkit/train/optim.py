"""AdamW with MAE's parameter groups, and the rate per step."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from mimkit.settings import OptimSettings, TrainSettings


def build_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """Fused AdamW; biases and other one-dimensional parameters do not decay, tokens do (MAE's authors, timm 0.3.2)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    without = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    with_decay = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
    groups = [
        {"params": without, "weight_decay": 0.0},
        {"params": with_decay, "weight_decay": settings.weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0, then a half cosine to `min_lr`, as a function of the number of steps done.

    Source: MAE's lr_sched, which counts fractional epochs; the first step has rate 0.
    """

    peak: float
    min_lr: float
    warmup_steps: float
    total_steps: int

    def __call__(self, step: int) -> float:
        """Learning rate of the step after `step` steps."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1e-9, self.total_steps - self.warmup_steps)
        return self.min_lr + (self.peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def schedule(optim: OptimSettings, train: TrainSettings, batch_size: int, steps_per_epoch: int) -> Schedule:
    """The run's schedule; `base_lr` is scaled linearly by the batch: lr = base_lr * batch_size / 256."""
    peak = optim.lr if optim.lr is not None else (optim.base_lr or 0) * batch_size / 256
    total = train.max_steps or max(1, round((train.epochs or 0) * steps_per_epoch))
    return Schedule(peak, optim.min_lr, train.warmup_epochs * steps_per_epoch, total)
