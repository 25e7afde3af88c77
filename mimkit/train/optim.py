"""AdamW with MAE's parameter groups, and the rate per step."""

import torch
from torch import nn

from mimkit.schedule import Schedule
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
