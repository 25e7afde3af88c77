"""The loop: what it writes, that it repeats and resumes to the bit, what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mimkit.data.jitter import ColorJitter
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.schedule import Schedule
from mimkit.train.loop import train
from mimkit.train.optim import build_optimizer
from mimkit.train.session import prepare


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()
    loaded = load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")
    return {name: tensor.clone() for name, tensor in loaded.items()}  # the file is mapped, and may change


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_folder_holds_what_the_contract_names(tmp_path: Path, tiny: dict[str, Any]) -> None:
    summary = train(load_recipe(tiny), tmp_path / "run")
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    step = "checkpoints/step-00000014"
    assert files >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "summary.json", "encoder.safetensors", "encoder.json",
        "checkpoints/last", "pictures/reconstruction.png", "pictures/loss.png",
        f"{step}/model.safetensors", f"{step}/optimizer.safetensors", f"{step}/state.json", f"{step}/manifest.json",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "images", "loss", "lr", "grad_norm", "images_per_s", "data_wait"} <= lines[2].keys()
    assert [line["step"] for line in lines if line.get("probe") == "knn"] == [0, 7, 14]
    assert summary["exit"] == "done" and summary["step"] == 14 and summary["images"] == 112
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_the_recipe_of_a_run_repeats_it(tmp_path: Path, tiny: dict[str, Any]) -> None:
    train(load_recipe(tiny), tmp_path / "one")
    train(load_recipe(tmp_path / "one" / "recipe.yaml"), tmp_path / "two")
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert same_bits(weights(tmp_path / "one"), weights(tmp_path / "two"))


CODEBOOK = ["head=quantizer", "head.vocab_size=16", "head.code_dim=4", "head.embed_dim=16", "head.depth=1",
            "head.num_heads=2", "head.revive=true", "mask=none", "target=pixels"]  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 7, 13])
@pytest.mark.parametrize("more", [[], CODEBOOK], ids=["decoder", "codebook"])
def test_a_run_cut_at_any_step_ends_with_the_same_bits(
    tmp_path: Path, tiny: dict[str, Any], cut: int, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal after `cut` steps; drop path, accumulation and jitter go along, since they draw and split."""
    tiny["encoder"]["drop_path"], tiny["train"]["accumulate"], tiny["data"]["color_jitter"] = 0.3, 2, 0.4
    recipe = load_recipe(tiny, more)
    train(recipe, tmp_path / "whole")
    from mimkit.model import Model
    from mimkit.train import loop

    stops: list[Any] = []
    enter = loop.StopRequest.__enter__
    monkeypatch.setattr(loop.StopRequest, "__enter__", lambda self: (stops.append(self), enter(self))[1])
    after = Model.after_step
    steps = iter(range(1, 100))

    def stop_at_cut(self: Model, progress: float) -> None:
        after(self, progress)
        if next(steps) == cut:
            stops[-1].name = "SIGTERM"

    monkeypatch.setattr(Model, "after_step", stop_at_cut)
    assert train(recipe, tmp_path / "cut")["exit"] == "SIGTERM"
    monkeypatch.undo()
    assert train(recipe, tmp_path / "cut", resume=True)["exit"] == "done"
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, tiny: dict[str, Any]) -> None:
    train(load_recipe(tiny), tmp_path / "run")
    before = weights(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000014" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1  # one flipped bit
    newest.write_bytes(data)
    (tmp_path / "run" / "checkpoints" / ".writing-step-00000020").mkdir()
    (tmp_path / "run" / "checkpoints" / ".writing-1-last").touch()  # a kill while the file `last` was written
    assert train(load_recipe(tiny), tmp_path / "run", resume=True)["exit"] == "done"
    assert same_bits(weights(tmp_path / "run"), before)
    assert not list((tmp_path / "run" / "checkpoints").glob(".writing*"))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, tiny: dict[str, Any]) -> None:
    recipe = load_recipe(tiny)
    train(recipe, tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    train(recipe, tmp_path / "run", resume=True)
    again = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(again) == len(metrics)


def test_a_non_finite_loss_stops_before_the_weights_are_touched(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimkit.losses import mse
    from mimkit.train import step

    calls = iter(range(100))  # the first is the trial before the folder is made
    right = mse.__call__
    monkeypatch.setattr(mse, "__call__", lambda self, p, w: right(self, p, w) * (math.nan if next(calls) == 5 else 1))
    seen: dict[str, torch.Tensor] = {}
    update = step.update

    def watch(run: Any, loss: torch.Tensor, norm: torch.Tensor) -> None:
        seen.update({name: p.detach().clone() for name, p in run.model.named_parameters()})
        seen["model"] = run.model
        update(run, loss, norm)

    monkeypatch.setattr(step, "update", watch)
    with pytest.raises(UserError, match="step 5: the loss or its gradient is not finite") as caught:
        train(load_recipe(tiny, ["probe.every=0"]), tmp_path / "run")
    assert "\n" not in str(caught.value)
    model: Any = seen.pop("model")
    assert all(torch.equal(p, seen[name]) for name, p in model.named_parameters())


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path: Path, tiny: dict[str, Any]) -> None:
    from mimkit.train.session import prepare
    from mimkit.train.step import backward

    gradients = []
    tiny["data"] |= {"num_images": 7, "num_test": 4}  # in four parts: 2, 2, 2, 1
    for parts in (1, 4):
        tiny["train"]["accumulate"] = parts
        run = prepare(load_recipe(tiny), tmp_path / f"run{parts}", resume=False)
        backward(run, next(run.batches.start()))
        gradients.append({name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-6)


def test_the_schedule_is_maes() -> None:
    """Hand-computed from lr_sched of the authors: lr·e/warm-up, then min + (lr - min)·(1 + cos(pi·(e-w)/(E-w)))/2."""
    rate = Schedule(peak=2.0, min_lr=0.5, warmup_steps=4, total_steps=12)
    assert [rate(step) for step in (0, 1, 4, 8)] == pytest.approx([0.0, 0.5, 2.0, 1.25])
    assert rate(12) == pytest.approx(0.5)


def test_biases_and_norms_do_not_decay_but_tokens_do(tiny: dict[str, Any]) -> None:
    import mimkit

    model = mimkit.build(tiny)
    groups = build_optimizer(model, load_recipe(tiny).optim).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    kept, decayed = ({names[id(p)] for p in group["params"]} for group in groups)
    assert groups[0]["weight_decay"] == 0 and groups[1]["weight_decay"] == 0.05
    assert all(name.endswith(("bias", "norm1.weight", "norm2.weight", "norm.weight")) for name in kept)
    assert {"encoder.timm_model.cls_token", "objectives.main.head.mask_token"} <= decayed
    assert not any("pos_embed" in name for name in kept | decayed)


def test_a_small_data_set_is_one_batch(tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["data"] |= {"num_images": 5}
    assert train(load_recipe(tiny), tmp_path / "run")["images"] == 2 * 5


def test_a_target_that_is_no_pixels_trains_to_the_end(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """The README's plug-in: pictures are drawn, and no image is scored."""
    from mimkit import registry
    from tests.test_registry import MEAN_COLOUR

    (tmp_path / "colour_to_the_end.py").write_text(MEAN_COLOUR)
    registry.load_plugin(tmp_path / "colour_to_the_end.py")
    summary = train(load_recipe(tiny, ["target=colour_to_the_end"]), tmp_path / "run")
    assert summary["exit"] == "done" and "mse" not in summary
    assert (tmp_path / "run" / "pictures" / "reconstruction.png").is_file()


def test_a_run_draws_batches_as_the_recipe_says(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Every option of the batches arrives: a run whose option is left out would train on other images."""
    tiny["data"] |= {"color_jitter": 0.4, "crop_scale": [0.3, 0.9], "crop_ratio": [0.9, 1.1], "flip": 0.25}
    batches = prepare(load_recipe(tiny), tmp_path / "run", resume=False).batches
    assert batches.looks.change == ColorJitter(0.4)
    assert (batches.crop.scale, batches.crop.ratio, batches.crop.flip) == ((0.3, 0.9), (0.9, 1.1), 0.25)
