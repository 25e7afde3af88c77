"""What a bench compares: sweeps, overrides that concern some recipes only, stages, and what is made equal."""

from pathlib import Path
from typing import Any

import pytest

from mimkit import strict_yaml
from mimkit.compare.length import of_length, own_steps
from mimkit.compare.plan import Plan
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.train.optim import schedule


def options(plan: Plan, name: str, role: str) -> dict[str, Any]:
    recipe = next(variant for variant in plan.variants if variant.name == name).placed
    choice = vars(recipe).get(role) or vars(recipe.objectives["main"])[role]
    return dict(choice.options)


def test_a_sweep_is_a_row_for_each_combination() -> None:
    plan = Plan(["mae", "crossmae", "mask.ratio=0.5,0.75", "crossmae:encoder.depth=2,4", "optim.betas=[0.9,0.99]"])
    assert [variant.name for variant in plan.variants] == [
        "mae mask.ratio=0.5",
        "mae mask.ratio=0.75",
        "crossmae mask.ratio=0.5 encoder.depth=2",
        "crossmae mask.ratio=0.5 encoder.depth=4",
        "crossmae mask.ratio=0.75 encoder.depth=2",
        "crossmae mask.ratio=0.75 encoder.depth=4",
    ]
    assert plan.variants[4].recipe == "crossmae" and plan.variants[4].changes == ("mask.ratio=0.75", "encoder.depth=2")
    assert options(plan, "mae mask.ratio=0.5", "mask")["ratio"] == 0.5
    assert options(plan, "crossmae mask.ratio=0.75 encoder.depth=2", "encoder")["depth"] == 2
    assert all(variant.placed.optim.betas == (0.9, 0.99) for variant in plan.variants)


def test_an_override_is_for_the_recipes_that_have_the_option() -> None:
    """Also where a swap gives them it; swept ones make no rows where they say nothing."""
    plan = Plan(["mae", "maskfeat", "simmim", "target.bins=6,8", "simmim:target=hog"])
    names = [variant.name for variant in plan.variants]
    assert names == ["mae", *(f"{name} target.bins={bins}" for name in ("maskfeat", "simmim") for bins in (6, 8))]
    assert plan.applies == {"target.bins=6,8": ["maskfeat", "simmim"]}
    assert options(plan, "simmim target.bins=6", "target")["bins"] == 6
    assert Plan(["mae", "simmim", "mask.ratio=0.5"]).applies == {}


def test_a_stage_takes_what_is_for_all_and_is_shared_with_its_own_row() -> None:
    plan = Plan(["beit2", "vqkd", "target.model=local-dir:clip", "beit2:head.depth=1,2"])
    one, two, tokenizer = plan.variants
    assert [v.name for v in plan.variants] == ["beit2 head.depth=1", "beit2 head.depth=2", "vqkd"]
    assert one.stages == {("target", "checkpoint"): tokenizer} and two.stages[("target", "checkpoint")] is tokenizer
    recipe = one.checked(lambda stage: Path("runs") / stage.name)
    assert recipe.objectives["main"].target.options["checkpoint"] == "runs/vqkd"
    assert plan.applies == {"target.model=local-dir:clip": ["vqkd"]}
    alone = Plan(["beit2", "target.model=local-dir:clip"])
    assert [v.name for v in alone.variants] == ["beit2"]
    assert alone.variants[0].stages[("target", "checkpoint")].placed == tokenizer.placed


def test_all_see_the_first_ones_images_and_crops_and_keep_their_batch(tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["data"] |= {"batch_size": 4, "crop_scale": [0.9, 1.0], "flip": 0.0}
    (tmp_path / "other.yaml").write_text(strict_yaml.dump(tiny))
    plan = Plan(["mae", str(tmp_path / "other.yaml"), "data.num_images=64"])
    mae, other = (variant.placed for variant in plan.variants)
    assert (other.data, other.image_size) == (mae.data, (32, 32)) and mae.data.options["num_images"] == 64
    assert other.batches.crop_scale == (0.5, 1.0) and other.batches.flip == 0.5 and other.batches.batch_size == 4
    assert "other: data.crop_scale=[0.5, 1.0] as in mae; its recipe says [0.9, 1.0]" in plan.notes
    assert "other: image_size=32 as in mae; its recipe says 16" in plan.notes
    assert not any("batch_size" in note or "num_images" in note for note in plan.notes)
    assert Plan(["mae", "simmim"]).notes == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mae", "mask.ration=0.5"], "mask 'random' has no option 'ration'; did you mean 'ratio'"),
        (["mae", "simmim", "target.model=x"], "target 'norm_pixels' has no option 'model'"),
        (["mae", "simmim", "simmim:mask.ration=1"], "mask 'cells' has no option 'ration'; did you mean 'ratio'"),
        (["mae", "mea"], "no recipe 'mea'; did you mean 'mae'"),
        (["mae", "mae"], "have the same name"),
        (["data=shapes"], "no recipe is named"),
        (["mae", "mea:mask.ratio=0.5"], "no recipe 'mea'; did you mean 'mae'"),
        (["mae", "seed=4"], "the seeds of a bench are 0, 1, …; --seeds"),
        (["mae", "train.epochs=1,2"], "all rows have the same budget"),
        (["mae", "simmim", "simmim:data.num_images=64"], "all rows see the same images"),
        (["mae", "mask.ratio=0.5,high"], "override 'mask.ratio=high': mask 'random', option 'ratio'"),
    ],
)
def test_a_mistake_is_told(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Plan(words)


def test_a_run_of_another_length_keeps_the_shape_of_its_schedule() -> None:
    """The warm-up's and the drops' shares of the run stay, so each rate comes at the same share; so does the end."""
    changes = ["train.epochs=8", "train.warmup_epochs=2", "optim.schedule=step", "optim.drop_epochs=[4,6]"]
    recipe = load_recipe("mae", ["data.batch_size=10", *changes])
    assert own_steps(recipe, 105) == 80
    shorter = of_length(recipe, 105, 20, seed=5)
    assert (shorter.train.max_steps, shorter.train.epochs, shorter.seed) == (20, None, 5)
    whole, part = (schedule(each.optim, each.train, 10, 10) for each in (recipe, shorter))
    assert part.total_steps == 20
    assert [part(step) for step in range(20)] == pytest.approx([whole(4 * step) for step in range(20)])
    assert of_length(recipe, 105, 80, 0).train.warmup_epochs == recipe.train.warmup_epochs


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 1001])
def test_each_run_is_probed_at_most_thrice_and_draws_at_its_end_only(steps: int) -> None:
    """The loop's rule: at step 0, at each multiple of `every` and at the end."""
    recipe = of_length(load_recipe("mae", ["data.batch_size=10"]), 105, steps, 0)
    every, pictures = (max(1, round(epochs * 10)) for epochs in (recipe.probe.every, recipe.train.pictures_every))
    probed = [step for step in range(steps + 1) if step in (0, steps) or step % every == 0]
    assert len(probed) == min(3, steps + 1)
    assert not any(step % pictures == 0 for step in range(1, steps))
