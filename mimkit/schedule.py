"""The learning rate per step."""

import math
from dataclasses import dataclass


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
