"""Recipes: what is accepted, what overrides do, what the messages say."""

from pathlib import Path
from typing import Any

import pytest

import mimkit
from mimkit.draft import draft, load_recipe, shipped
from mimkit.errors import UserError
from mimkit.overrides import sweep


def message(tiny: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(tiny, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_survives_the_round_trip(name: str) -> None:
    runs = [f"{'.'.join(path)}=RUN" for path in draft(name).stages()]
    recipe = load_recipe(name, ["data=shapes", *runs])
    assert load_recipe(_as_dict(recipe.to_yaml())) == recipe


def _as_dict(text: str) -> dict[str, Any]:
    from mimkit import strict_yaml

    return strict_yaml.read(text, "round trip")[0]


@pytest.mark.parametrize(
    ("size", "patch", "width", "depth", "heads"),
    [("base", 16, 768, 12, 12), ("large", 16, 1024, 24, 16), ("huge", 14, 1280, 32, 16)],
)
def test_the_imagenet_recipes_hold_the_authors_settings(
    size: str, patch: int, width: int, depth: int, heads: int
) -> None:
    """Against PRETRAIN.md and main_pretrain.py of the authors, and the paper's table 8."""
    from mimkit.transformer import SIZES

    recipe = load_recipe(f"imagenet/mae_vit_{size}", ["data=shapes"])
    encoder, head = recipe.encoder.options, recipe.objectives["main"].head
    assert (encoder["size"], encoder["patch_size"], SIZES[size]) == (size, patch, (width, depth, heads))
    assert (head.name, head.options["embed_dim"], head.options["depth"], head.options["num_heads"]) == (
        "decoder",
        512,
        8,
        16,
    )
    assert recipe.mask.options["ratio"] == 0.75 and recipe.image_size == (224, 224)
    assert recipe.objectives["main"].normalizer.options == {"eps": 1e-6, "unbiased": True}
    optim, train, batches = recipe.optim, recipe.train, recipe.batches
    assert optim.base_lr is not None and optim.base_lr * batches.batch_size / 256 == pytest.approx(2.4e-3)
    assert (optim.betas, optim.weight_decay, optim.min_lr, optim.eps) == ((0.9, 0.95), 0.05, 0.0, 1e-8)
    assert (train.epochs, train.warmup_epochs, train.clip_grad) == (800, 40, None)
    assert (batches.crop_scale, batches.flip) == ((0.2, 1.0), 0.5)


def test_a_swapped_target_brings_its_own_normalizer_and_loss(tiny: dict[str, Any]) -> None:
    tiny |= {
        "target": {"name": "norm_pixels", "order": "channel_first"},
        "normalizer": {"name": "per_patch", "eps": 0.5},
        "loss": "l1",
    }
    main = load_recipe(tiny, ["target=pixels"]).objectives["main"]
    assert (main.normalizer.name, main.loss.name, main.target.options["order"]) == ("none", "mse", "channel_last")
    main = load_recipe(tiny, ["loss=smooth_l1", "target=pixels"]).objectives["main"]
    assert (main.normalizer.name, main.loss.name) == ("none", "smooth_l1")
    assert load_recipe(tiny, ["target=norm_pixels"]).objectives["main"].normalizer.options["eps"] == 0.5


def test_a_swapped_mask_keeps_the_options_that_still_mean_something(tiny: dict[str, Any]) -> None:
    tiny["mask"] = {"name": "random", "ratio": 0.6, "rounding": "ceil_hidden", "feed": "all"}
    mask = load_recipe(tiny, ["mask=block"]).mask
    assert (mask.options["ratio"], mask.options["feed"]) == (0.6, "all") and "rounding" not in mask.options


def test_swaps_come_before_options_whatever_their_order(tiny: dict[str, Any]) -> None:
    one = load_recipe(tiny, ["mask.min_area=3", "mask=block"])
    assert one == load_recipe(tiny, ["mask=block", "mask.min_area=3"]) and one.mask.options["min_area"] == 3


def test_either_lr_or_base_lr_and_either_epochs_or_max_steps(tiny: dict[str, Any]) -> None:
    recipe = load_recipe(tiny, ["optim.lr=1e-4", "train.max_steps=7"])
    assert (recipe.optim.lr, recipe.optim.base_lr, recipe.train.epochs, recipe.train.max_steps) == (1e-4, None, None, 7)
    for given in (["train.max_steps=7", "train.epochs=null"], ["train.epochs=null", "train.max_steps=7"]):
        assert load_recipe(tiny, given).train.max_steps == 7
    tiny["optim"] = {"lr": 1e-4, "base_lr": 1e-4}
    assert "lr or base_lr, and not both" in message(tiny)


def test_override_values_are_yaml(tiny: dict[str, Any]) -> None:
    recipe = load_recipe(tiny, ["image_size=[16, 24]", "mask={name: random, ratio: 0.5}", "data.batch_size=4"])
    assert recipe.image_size == (16, 24) and recipe.mask.options["ratio"] == 0.5 and recipe.batches.batch_size == 4


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("mask.ration=0.5", ["has no option 'ration'; did you mean 'ratio'?", "It takes: ratio, count, "]),
        ("mask.ratio=1.5", ["option 'ratio': should be less than 1", "got 1.5"]),
        ("mask.ratio=high", ["option 'ratio': should be a valid number", '"high"']),
        ("mask.count=true", ["option 'count'", "integer"]),
        ("optim.base_lr=.inf", ["must be a finite number"]),
        ("optim.base_lr=-1", ["greater than 0"]),
        ("encoder=vitt", ["unknown encoder 'vitt'; did you mean 'vit'?"]),
        ("loss=mes", ["unknown loss 'mes'; did you mean 'mse'?", "cross_entropy"]),
        ("trian.epochs=3", ["no key 'trian'; did you mean 'train'?"]),
        ("train.epoch=3", ["no option 'epoch'; did you mean 'epochs'?"]),
        ("image_size=big", ["image_size should be pixels"]),
        ("data.batchsize=3", ["no option 'batchsize'; did you mean 'batch_size'?"]),
        ("train.accumulate=3", ["must divide data.batch_size=8"]),
        ("seed=one", ["seed should be a valid integer"]),
        ("mask", ["should be key=value"]),
        ("mask.ratio.x=1", ["holds a value, not options"]),
        ("nothing.target=clip", ["a recipe has no key 'nothing'"]),
        ("nothing.at.target=clip", ["no component 'nothing.at.target'"]),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line_that_mends(tiny: dict[str, Any], override: str, parts: list[str]) -> None:
    text = message(tiny, override)
    assert len(text.splitlines()) == 1
    for part in parts:
        assert part in text


def test_a_mistake_in_a_file_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(Path(shipped()["mae"]).read_text().replace("ratio: 0.75", "mask_ration: 0.75"))
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "mask_ration" in text)
    assert str(caught.value).startswith(
        f"{path}:{line}: mask 'random' has no option 'mask_ration'; did you mean 'ratio'?"
    )


def test_several_mistakes_are_told_together(tiny: dict[str, Any]) -> None:
    assert len(message(tiny, "optim.base_lr=-1", "train.epochs=x", "sed=1").splitlines()) == 3


def test_several_objectives_stand_beside_the_flat_one(tiny: dict[str, Any]) -> None:
    import torch

    tiny["objectives"] = {
        "raw": {
            "head": {"name": "decoder", "embed_dim": 16, "depth": 1, "num_heads": 2},
            "target": "pixels",
            "weight": 0.5,
        }
    }
    recipe = load_recipe(tiny)
    assert list(recipe.objectives) == ["main", "raw"] and load_recipe(_as_dict(recipe.to_yaml())) == recipe
    out = mimkit.build(recipe)(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(out.loss, out.losses["main"] + 0.5 * out.losses["raw"])


@pytest.mark.parametrize(
    ("given", "fine"),
    [
        ([], False),
        (["data.crop_scale=[1,1]"], True),
        (["data.crop_scale=[1,1]", "data.color_jitter=0.2"], False),
    ],
)
def test_a_cached_target_needs_views_that_come_again(tiny: dict[str, Any], given: list[str], fine: bool) -> None:
    overrides = ["target=clip", "target.cache=true", *given]
    if fine:
        assert load_recipe(tiny, overrides).objectives["main"].target.options["cache"] is True
    else:
        with pytest.raises(
            UserError, match=r"^override 'target.cache=true': .* set data.crop_scale=\[1,1\] and [^\n]*$"
        ):
            load_recipe(tiny, overrides)


def test_a_sweep_is_every_combination_of_lists_without_brackets() -> None:
    assert sweep(["a.b=1,2", "c=[1,2]", "d=x,y"]) == [
        ("a.b=1", "c=[1,2]", "d=x"),
        ("a.b=1", "c=[1,2]", "d=y"),
        ("a.b=2", "c=[1,2]", "d=x"),
        ("a.b=2", "c=[1,2]", "d=y"),
    ]
    assert sweep([]) == [()]
