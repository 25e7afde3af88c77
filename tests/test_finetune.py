"""`mimkit eval --probe finetune`: it learns, a cut one ends with the same bits, settings are the authors', mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mimkit.draft import shipped, shipped_settings
from mimkit.errors import UserError
from mimkit.evaluate.finetune import run
from mimkit.evaluate.finetune.probe import Finetune
from mimkit.evaluate.finetune.run import Stopped
from mimkit.evaluate.options import read_order
from mimkit.evaluate.score import score
from mimkit.signals import StopRequest
from tests.conftest import ONE_THREAD, command
from tests.test_eval import save

DATA = ("data=shapes", "data.num_images=96", "data.num_test=40")
RICH = (  # every random draw that there is; 7 steps an epoch, the last one of 90 images shown
    "finetune.epochs=3", "finetune.batch_size=12", "finetune.drop_path=0.2", "finetune.mixup=0.8", "finetune.cutmix=1",
    "finetune.erasing=0.5", "finetune.rand_augment=rand-m9-mstd0.5-inc1", "finetune.labels=0.9", "finetune.clip_grad=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT with random weights, as a run would hand it over."""
    folder = tmp_path_factory.mktemp("vit")
    return save(folder, "vit", 1, embed_dim=24, depth=2, num_heads=2, patch_size=4)


def copy(encoder: Path, to: Path) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    for name in ("encoder.safetensors", "encoder.json"):
        (to / name).write_bytes((encoder / name).read_bytes())
    return to


def tuned(folder: Path, *options: str) -> dict[str, Any]:
    list(score(folder, ["finetune"], (*DATA, *options), folder / "eval.json"))
    report: dict[str, Any] = json.loads((folder / "eval.json").read_text())["probes"]["finetune"]
    return report


def kept(folder: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Weights and optimizer state of the last checkpoint; loss and score of each epoch."""
    (home,) = folder.glob("finetune-*")
    newest = home / "checkpoints" / (home / "checkpoints" / "last").read_text().strip()
    tensors = {
        f"{name}:{key}": value
        for name in ("model", "optimizer")
        for key, value in load_file(newest / f"{name}.safetensors").items()
    }
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    return tensors, [(line["epoch"], line["loss"], line["top1"], line["lr"]) for line in lines]


def test_it_learns_and_is_read_back(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("finetune.epochs=6", "finetune.batch_size=16", "finetune.base_lr=0.03", "finetune.test_every=3")
    folder = copy(encoder, tmp_path)
    first = tuned(folder, *options)
    _, lines = kept(folder)
    assert [top1 is not None for _, _, top1, _ in lines] == [False, False, True] * 2
    assert first["top1"] == lines[-1][2] and first["best_top1"] == max(lines[2][2], lines[5][2])
    assert lines[-1][1] < lines[0][1] - 0.05 and first["labelled_images"] == 96
    assert lines[0][3] == pytest.approx(0.03 * 16 / 256 * 5 / 12) and lines[-1][3] < lines[2][3]  # 2 epochs of warm-up
    monkeypatch.setattr(run, "Run", None)
    again = tuned(folder, *options)
    assert again["top1"] == first["top1"] and again["folder"] == first["folder"]
    for change in ("finetune.seed=1", "data.seed=1"):
        with pytest.raises(TypeError):
            tuned(folder, *options, change)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every fine-tuning be asked to stop after so many steps of its own."""
    done = {"steps": 0}
    advance = run.Run.advance

    def counted(self: run.Run, *batch: torch.Tensor) -> None:
        advance(self, *batch)
        done["steps"] += 1

    monkeypatch.setattr(run.Run, "advance", counted)
    monkeypatch.setattr(StopRequest, "__bool__", lambda self: done["steps"] >= steps)


@pytest.mark.parametrize("steps", [0, 3, 7, 20])
def test_a_cut_fine_tuning_ends_with_the_same_bits(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Cut before the first step, within an epoch, at its end, and within the last one, with all that draws random numbers."""
    whole, cut = (copy(encoder, tmp_path / name) for name in ("whole", "cut"))
    score_whole = tuned(whole, *RICH)["top1"]
    with monkeypatch.context() as patch:
        stop_after(steps, patch)
        torch.manual_seed(steps)  # what the process drew before does not count
        with pytest.raises(Stopped, match=f"step {steps}"):
            tuned(cut, *RICH)
    assert tuned(cut, *RICH)["top1"] == score_whole
    (one, lines), (other, same) = kept(whole), kept(cut)
    assert lines == same and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_in_parts_has_the_gradient_of_the_whole(encoder: Path, tmp_path: Path) -> None:
    options = ("finetune.epochs=1", "finetune.batch_size=24", "finetune.mixup=0.8")
    for parts in (1, 5):
        tuned(copy(encoder, tmp_path / str(parts)), *options, f"finetune.accumulate={parts}")
    (one, lines), (other, same) = (kept(tmp_path / str(parts)) for parts in (1, 5))
    assert same[0][1] == pytest.approx(lines[0][1], rel=1e-5)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


def test_from_scratch_the_given_weights_do_not_count(encoder: Path, tmp_path: Path) -> None:
    """Two encoders of the same shape: equal losses from random weights, others from their own."""
    (tmp_path / "other").mkdir()
    other = save(tmp_path / "other", "vit", 2, embed_dim=24, depth=2, num_heads=2, patch_size=4)
    losses = {}
    for init in ("random", "pretrained"):
        for name, source in (("one", encoder), ("two", other)):
            folder = copy(source, tmp_path / init / name)
            tuned(folder, "finetune.epochs=1", "finetune.batch_size=32", f"finetune.init={init}")
            losses[init, name] = kept(folder)[1][0][1]
    assert losses["random", "one"] == losses["random", "two"]
    assert losses["pretrained", "one"] != losses["pretrained", "two"]


def test_sigterm_saves_and_leaves_with_75_and_the_same_command_goes_on(encoder: Path, tmp_path: Path) -> None:
    """The real command, with files that workers decode, at another image size."""
    folder = copy(encoder, tmp_path / "vit")
    for number in range(40):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((30, 50, 3), 60 + 100 * (number % 2), dtype=np.uint8)
        Image.fromarray(pixels + np.uint8(number)).save(place / f"{number}.png")
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"no image")
    words = [
        "eval", "vit", "--probe", "finetune", "data=photos", "finetune.epochs=12", "finetune.batch_size=8",
        "finetune.workers=1", "finetune.image_size=24", "finetune.base_lr=0.1", "finetune.test_every=12",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "mimkit", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | ONE_THREAD,
    )  # fmt: skip
    end = time.monotonic() + 110
    while not list(folder.glob("finetune-*/metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75 and "stopped by SIGTERM" in output and "the same command goes on" in output, output
    before = len(next(folder.glob("finetune-*/metrics.jsonl")).read_text().splitlines())
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0 and f"epoch {before} of 12" not in done.stderr, done.stderr
    report = json.loads((folder / "eval.json").read_text())
    assert report["probes"]["finetune"]["top1"] == 100 and sum(report["unreadable"].values()) == 1
    assert "1 train images could not be read" in done.stdout or "1 test images could not be read" in done.stdout


# epochs, batch, rate at its peak, at the end, warm-up, layer decay, drop path, clipping: as the authors state them
SETTINGS: dict[str, tuple[Any, ...]] = {
    "mae_vit_base": (100, 1024, 2e-3, 1e-6, 5, 0.65, 0.1, None),
    "mae_vit_large": (50, 1024, 4e-3, 1e-6, 5, 0.75, 0.2, None),
    "mae_vit_huge": (50, 1024, 4e-3, 1e-6, 5, 0.75, 0.3, None),
    "beit_vit_base": (100, 1024, 4e-3, 1e-6, 20, 0.65, 0.1, None),
    "beit2_vit_base": (100, 1024, 5e-4, 1e-6, 20, 0.6, 0.2, None),
    "simmim_swin_base": (100, 2048, 5e-3, 1e-6, 20, 0.8, 0.1, 5.0),
    "simmim_vit_base": (100, 2048, 5e-3, 1e-6, 20, 0.65, 0.1, 5.0),
    "maskfeat_vit_base": (100, 512, 2e-3, 1e-6, 20, 0.65, 0.1, None),
    "milan_vit_base": (100, 1024, 4e-4, 1e-6, 5, 0.65, 0.1, None),
    "cae_vit_base": (100, 4096, 8e-3, 1e-6, 5, 0.65, 0.1, None),
}


def test_the_shipped_settings_are_no_recipes() -> None:
    assert shipped_settings().keys() == SETTINGS.keys()
    assert not any("finetune" in name for name in shipped())
    listed = command("list", "recipe").stdout.partition("FINE-TUNING SETTINGS")
    assert "mae_vit_large  " in listed[2] and "finetune/" not in listed[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_are_the_authors(name: str) -> None:
    probe = read_order(Path(), ["finetune"], ["data=shapes"], name).probes["finetune"]
    assert isinstance(probe, Finetune)
    epochs, batch, peak, last, *rest = SETTINGS[name]
    assert (probe.epochs, probe.batch_size) == (epochs, batch)
    assert (probe.base_lr * batch / 256, probe.min_lr) == pytest.approx((peak, last))
    assert [probe.warmup_epochs, probe.layer_decay, probe.drop_path, probe.clip_grad] == rest
    assert (probe.mixup, probe.cutmix, probe.label_smoothing, probe.erasing) == (0.8, 1.0, 0.1, 0.25)
    assert (probe.rand_augment, probe.crop_scale, probe.flip) == ("rand-m9-mstd0.5-inc1", (0.08, 1.0), 0.5)
    assert (probe.weight_decay, probe.pool, probe.crop_pct, probe.labels) == (0.05, "mean", 0.875, 1.0)


def test_options_go_before_settings_and_settings_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {name: shapes, seed: 3, batch_size: 8}\n")
    settings = tmp_path / "mine.yaml"
    settings.write_text("data: {name: shapes, num_images: 50}\nfinetune: {epochs: 7, flip: 0}\n")
    order = read_order(tmp_path, ["finetune"], ["finetune.epochs=9"], str(settings))
    probe: Any = order.probes["finetune"]
    assert (probe.epochs, probe.flip) == (9, 0) and order.data is not None
    assert order.data.options["num_images"] == 50 and order.data.options["seed"] != 3


MISTAKES = {
    "share of no labels": (("finetune.labels=0",), "greater than 0"),
    "unknown option": (("finetune.layerdecay=0.5",), "did you mean 'layer_decay'"),
    "a rate given to another probe": (("knn.k=3",), "--probe does not name 'knn'"),
    "odd batch with mixup": (("finetune.batch_size=9", "finetune.mixup=0.8"), "an even number"),
    "policy that timm does not know": (("finetune.rand_augment=rand-q9",), "timm does not know it"),
    "image size that does not fit": (("finetune.image_size=30",), "30x30"),
    "rate that lets the loss grow to infinity": (("finetune.base_lr=1e30", "finetune.warmup_epochs=0"), "not finite"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(encoder: Path, tmp_path: Path, name: str) -> None:
    options, told = MISTAKES[name]
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        tuned(copy(encoder, tmp_path), "finetune.epochs=2", *options)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("eval.json"))


def test_images_without_labels_are_refused(encoder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has no labels"):
        list(score(encoder, ["finetune"], [f"data={tmp_path}"], tmp_path / "eval.json"))


def test_encoders_without_what_is_asked_for_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "swin", 0, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=2, patch_size=4)
    with pytest.raises(UserError, match=r"finetune\.pool=mean"):
        tuned(tmp_path, "finetune.pool=cls")


def test_mistakes_in_a_settings_file_are_told_with_their_place(tmp_path: Path) -> None:
    for text, told in (
        ("finetune:\n  epochs: 3\n  ephocs: 3\n", "typo.yaml:3: probe 'finetune' has no option 'ephocs'"),
        ("finetun: {epochs: 3}\n", "typo.yaml:1: eval has no option 'finetun'; did you mean 'finetune'"),
        ("linear: {C: 1}\n", "typo.yaml:1: --probe does not name 'linear'"),
        ("finetune: 3\n", "typo.yaml:1: probe 'finetune' takes options"),
    ):
        (tmp_path / "typo.yaml").write_text(text)
        with pytest.raises(UserError, match=re.escape(told)):
            read_order(tmp_path, ["finetune"], ["data=shapes"], str(tmp_path / "typo.yaml"))
    with pytest.raises(UserError, match=r"my\.yaml: no such file"):
        read_order(tmp_path, ["finetune"], ["data=shapes"], "my.yaml")


def test_settings_that_do_not_exist_are_one_line_and_exit_code_2(encoder: Path) -> None:
    done = command("eval", encoder, "--probe", "finetune", "--settings", "mae_vit_bse", "data=shapes")
    assert done.returncode == 2 and done.stdout == "" and "did you mean 'mae_vit_base'" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
