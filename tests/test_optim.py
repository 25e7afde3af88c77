"""Rates and parameter groups, against each method's own arithmetic."""

import math
from bisect import bisect_right
from typing import Any

import pytest

import mimkit
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.settings import OptimSettings, TrainSettings
from mimkit.train.optim import build_optimizer, schedule


def test_steps_are_those_of_simmim() -> None:
    """SimMIM's multi-step schedule with its published settings (per 512: base 1e-4, warm-up from 5e-7; batch 2048)."""
    optim = OptimSettings(base_lr=5e-5, warmup_lr=2.5e-7, schedule="step", drop_epochs=(700,), drop_factor=0.1)
    rate = schedule(optim, TrainSettings(epochs=800, warmup_epochs=10), batch_size=2048, steps_per_epoch=7)
    peak, first = 1e-4 * 2048 / 512, 5e-7 * 2048 / 512

    def theirs(step: int) -> float:
        if step < 70:
            return first + step * (peak - first) / 70
        return peak * 0.1 ** bisect_right([700 * 7], step)

    assert rate.total_steps == 5600
    assert [rate(step) for step in range(5600)] == pytest.approx([theirs(step) for step in range(5600)], rel=1e-12)
    assert (rate(0), rate(70), rate(4899), rate(4900)) == pytest.approx((2e-6, 4e-4, 4e-4, 4e-5))


def test_several_drops_multiply() -> None:
    optim = OptimSettings(lr=1.0, schedule="step", drop_epochs=(1.5, 2), drop_factor=0.5)
    rate = schedule(optim, TrainSettings(epochs=3), batch_size=64, steps_per_epoch=4)
    assert [rate(step) for step in (0, 5, 6, 7, 8, 11)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_warm_up_and_cosine_are_those_of_maskfeat() -> None:
    """SlowFast's rate by fractional epoch, its settings (warm-up and end at 1e-6, base 2e-4) times the 8 machines."""
    optim = OptimSettings(base_lr=2e-4, warmup_lr=1e-6, min_lr=1e-6)
    rate = schedule(optim, TrainSettings(epochs=300, warmup_epochs=30), batch_size=2048, steps_per_epoch=5)
    base, end = 8 * 2e-4, 8 * 1e-6

    def theirs(epoch: float) -> float:
        if epoch < 30:
            return epoch * (base - end) / 30 + end
        return end + (base - end) * (math.cos(math.pi * (epoch - 30) / (300 - 30)) + 1) * 0.5

    assert [rate(step) for step in range(1500)] == pytest.approx([theirs(s / 5) for s in range(1500)], rel=1e-12)


def test_absolute_rates_are_taken_as_they_are() -> None:
    """BEiT v2's values, which its authors do not scale."""
    optim = OptimSettings(lr=1.5e-3, min_lr=1e-5, warmup_lr=1e-6)
    rate = schedule(optim, TrainSettings(epochs=20, warmup_epochs=10), batch_size=2048, steps_per_epoch=2)
    assert (rate(0), rate(20), rate(30), rate(40)) == pytest.approx((1e-6, 1.5e-3, (1.5e-3 + 1e-5) / 2, 1e-5))


def test_named_parameters_do_not_decay(tiny: dict[str, Any]) -> None:
    """BEiT's exemptions: cls_token and pos_embed; its mask token decays."""
    tiny["encoder"]["pos_embed"] = "learned"
    tiny["mask"] = {"name": "block", "feed": "all"}
    model = mimkit.build(tiny, "head=linear")
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = []
    for given in ((), ("cls_token", "pos_embed", "weigh")):
        kept, group = build_optimizer(model, OptimSettings(lr=1, weight_decay=0.1, no_decay=given)).param_groups
        assert (kept["weight_decay"], group["weight_decay"]) == (0, 0.1)
        assert len(kept["params"]) + len(group["params"]) == len(names)
        decayed.append({names[id(p)] for p in group["params"]})
    assert decayed[0] - decayed[1] == {"encoder.timm_model.cls_token", "encoder.timm_model.pos_embed"}
    assert "encoder.mask_token" in decayed[1] and decayed[1] < decayed[0]


@pytest.mark.parametrize("override", ["optim.schedule=step", "optim.drop_epochs=[1]"])
def test_steps_and_their_epochs_go_together(tiny: dict[str, Any], override: str) -> None:
    with pytest.raises(UserError, match=r"optim\.schedule=step needs optim\.drop_epochs") as caught:
        load_recipe(tiny, [override])
    assert "\n" not in str(caught.value)
    recipe = load_recipe(tiny, ["optim.schedule=step", "optim.drop_epochs=[1, 1.5]"])
    assert recipe.optim.drop_epochs == (1, 1.5)
