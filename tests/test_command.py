"""The real command in processes of its own: mistakes, signals, kills, what it prints."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mimkit import strict_yaml
from tests import published
from tests.conftest import ONE_THREAD, command

MISTAKES = {
    "unknown command": ("trian",),
    "unknown option": ("train", "mae", "--reusme"),
    "unknown recipe": ("train", "mea"),
    "missing recipe file": ("train", "nowhere.yaml"),
    "unknown key": ("train", "mae", "trian.epochs=1"),
    "unknown option of a component": ("train", "mae", "mask.ration=0.5"),
    "wrong type": ("train", "mae", "train.epochs=many"),
    "wrong type of a component's option": ("train", "mae", "mask.ratio=high"),
    "unknown component": ("train", "mae", "encoder=vitt"),
    "missing folder": ("train", "mae", "data=./phtos"),
    "empty folder": ("train", "mae", "data=./empty"),
    "folder of text files": ("train", "mae", "data=./texts"),
    "image size that the patch does not divide": ("train", "mae", "image_size=30"),
    "resume without a run": ("train", "mae", "--resume"),
    "resume of a folder without a run": ("train", "mae", "--resume", "--out", "empty"),
    "duplicate key": ("train", "duplicate.yaml"),
    "no YAML": ("train", "broken.yaml"),
    "non-finite learning rate": ("train", "mae", "optim.lr=.nan"),
    "infinite learning rate": ("train", "mae", "optim.base_lr=.inf"),
    "output is a file": ("train", "mae", "--out", "file.txt/run"),
    "output is not empty": ("train", "mae", "--out", "texts"),
    "missing plug-in": ("train", "mae", "--plugin", "nowhere.py"),
    "checkpoint of another shape": ("train", "mae", "--resume", "--out", "run"),
    "unknown role": ("list", "encoders2"),
    "embed without a run": ("embed", "nowhere", "images", "-o", "x.npz"),
    "embed to another format": ("embed", "run", "images", "-o", "x.docx"),
    "export to the unknown": ("export", "run", "-o", "out", "--to", "tensorflow"),
    "show without a run": ("show", "empty"),
    "show of another encoder than the run's": ("show", "run", "images", "encoder.depth=3"),
    "show of two sets of images": ("show", "run", "images", "photos"),
    "eval of a folder without an encoder": ("eval", "empty", "data=images"),
    "eval on images without labels": ("eval", "run", "data=images"),
    "no GPU": ("train", "mae", "train.device=cuda"),
    "mask that hides everything": ("train", "mae", "mask.count=64", "--out", "new"),
    "import of a missing file": ("import", "nowhere.pth", "--as", "mae", "-o", "imported"),
    "published weights of another method": ("import", "milan.pth", "--as", "mae", "-o", "imported"),
    "weights of no known kind": ("import", "strange.pth", "--as", "mae", "-o", "imported"),
    "import as an unknown method": ("import", "milan.pth", "--as", "mialn", "-o", "imported"),
    "missing teacher": ("train", "maskdistill", "target.model=local-dir:nowhere"),
    "teacher of an unknown name": ("train", "eva", "target.model=ViT-B-17"),
    "missing tokenizer": ("train", "beit2"),
    "tokenizer of another grid": ("train", "beit2", "target.checkpoint=tokenizer"),
    "codebook of another size": ("train", "tiny.yaml", "target=vq", "target.checkpoint=other-size"),
    "run without a tokenizer": ("train", "tiny.yaml", "target=vq", "target.checkpoint=run"),
    "mask that follows what the target does not tell": ("train", "milan", "target=hog"),
    "head that needs a token for each place": ("train", "simmim", "head=decoder", "mask.feed=all"),
    "cached target under random crops": ("train", "maskdistill", "target.cache=true"),
    "unknown probe": ("eval", "run", "--probe", "knnn"),
    "segmentation without masks": ("eval", "run", "--probe", "segment"),
    "segmentation of a folder without masks": ("eval", "run", "--probe", "segment", "segment.data=images"),
    "output file that is a folder": ("embed", "run", "images", "-o", "empty.npz"),
    "output folder that is a file": ("export", "run", "-o", "file.txt", "--to", "timm"),
    "bench of an unknown recipe": ("bench", "mae", "mea"),
    "bench by an unknown probe": ("bench", "mae", "--probes", "knnn"),
    "bench of images without labels": ("bench", "tiny.yaml", "data=./images"),
    "plug-in that raises": ("train", "mae", "--plugin", "raises.py"),
    "plug-in whose name is taken": ("train", "mae", "--plugin", "pixels.py"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the mistakes are about."""
    from PIL import Image

    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    (folder / "empty.npz").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("no image")
    (folder / "file.txt").write_text("a file")
    (folder / "duplicate.yaml").write_text("method: a\nseed: 1\nseed: 2\n")
    (folder / "broken.yaml").write_text("method: [\n")
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(noise.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    (folder / "tiny.yaml").write_text(strict_yaml.dump(TINY))
    (folder / "raises.py").write_text("raise RuntimeError('at import')\n")
    (folder / "pixels.py").write_text("from mimkit.types import Target\n\n\nclass Mine(Target):\n    pass\n")
    torch.save({"model": published.tensors(published.milan())}, folder / "milan.pth")
    torch.save({"model": {"weight": torch.zeros(2)}}, folder / "strange.pth")
    done = command("train", "tiny.yaml", "train.epochs=1", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    quantizer = ("head.vocab_size=16", "head.code_dim=4", "head.embed_dim=16", "head.depth=1", "head.num_heads=2")
    tokenizer = ("head=quantizer", "mask=none", "target=pixels", *quantizer, "train.max_steps=1", "probe.every=0")
    done = command("train", "tiny.yaml", *tokenizer, "--out", "tokenizer", cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "tokenizer", folder / "other-size")
    told = folder / "other-size" / "tokenizer.json"
    told.write_text(told.read_text().replace('"vocab_size": 16', '"vocab_size": 32'))
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(place: Path, name: str) -> None:
    before = sorted(str(path) for path in place.rglob("*"))
    done = command(*MISTAKES[name], cwd=place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert sorted(str(path) for path in place.rglob("*")) == before, "nothing half-written"


def test_the_messages_name_what_would_be_right(place: Path) -> None:
    def says(*words: str) -> str:
        return command(*words, cwd=place).stderr

    assert "did you mean 'photos'" in says("train", "mae", "data=./phtos")
    assert "did you mean 'mae'" in says("train", "mea")
    assert "did you mean 'train'" in says("train", "mae", "trian.epochs=1")
    assert "patch sizes that fit: " in says("train", "mae", "image_size=30")
    assert "encoder.embed_dim" in says("train", "mae", "--resume", "--out", "run")


def test_train_prints_where_things_are_and_plain_lines(place: Path) -> None:
    done = command("train", "tiny.yaml", "--out", "printed", cwd=place)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\r" not in done.stdout
    assert "kNN top-1: untrained encoder" in done.stdout and "pictures:  printed/pictures" in done.stdout


def test_check_list_show_embed_and_export_work(place: Path) -> None:
    assert "images/s" in command("check", "tiny.yaml", cwd=place).stdout
    listed = command("list", cwd=place).stdout
    assert "random" in listed and "ratio: float > 0, < 1 = 0.75" in listed and "imagenet/mae_vit_base" in listed
    assert command("show", "run", "images", "-o", "shown.png", cwd=place).returncode == 0
    assert (place / "shown.png").read_bytes()[:4] == b"\x89PNG"
    done = command("show", "run", "images", "mask.ratio=0.5,0.9", "-o", "masks.png", cwd=place)
    assert done.returncode == 0 and done.stdout.startswith("masks.png: reconstructions of run"), done.stderr
    for kind in ("npz", "parquet", "csv"):
        done = command("embed", "run", "images", "-o", f"features.{kind}", cwd=place)
        assert done.returncode == 0 and "20 features of width 24" in done.stdout, done.stderr
    assert np.load(place / "features.npz")["features"].shape == (20, 24)
    assert command("export", "run", "-o", "timm_model", "--to", "timm", cwd=place).returncode == 0


def test_two_embeddings_of_the_same_images_are_bit_equal(place: Path) -> None:
    for name in ("one.npz", "two.npz"):
        assert command("embed", "run", "images", "-o", name, cwd=place).returncode == 0
    assert np.array_equal(np.load(place / "one.npz")["features"], np.load(place / "two.npz")["features"])


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mimkit", "train", *words],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | ONE_THREAD,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_75_within_ten_seconds(place: Path, number: signal.Signals) -> None:
    run = place / f"stopped-{number.name}"
    process = start(place, "tiny.yaml", "train.epochs=100000", "--out", str(run))
    wait_for(run / "metrics.jsonl", '"step": 4,')
    asked = time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75 and time.monotonic() - asked < 10, output
    assert f"stopped by {number.name}" in output
    step = json.loads((run / "summary.json").read_text())["step"]
    assert (run / "checkpoints" / "last").read_text().strip() == f"step-{step:08d}"


def wait_for(path: Path, text: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and text in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text} did not appear in {path}")


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(place: Path) -> None:
    """Real SIGKILLs, `MIMKIT_TEST_KILLS` of them (3 by default), each resumed with another number of workers."""
    kills = int(os.environ.get("MIMKIT_TEST_KILLS", "3"))
    words = [
        "tiny.yaml",
        "data=./images",
        "train.epochs=150",
        "train.checkpoint_every=3",
        "probe.every=0",
        "train.pictures_every=1000",
    ]
    assert start(place, *words, "--out", "undisturbed").wait(timeout=120) == 0
    dice = random.Random(kills)
    assert start(place, *words, "train.max_steps=1", "--out", "unused").wait(timeout=60) == 0
    run = place / "killed"
    done = 0
    while True:
        resume = ["--resume"] if (run / "recipe.yaml").is_file() else []
        process = start(place, *words, f"data.workers={done % 3}", "--out", "killed", *resume)
        if done < kills:
            if wait_started(run, process):
                time.sleep(dice.uniform(0.0, 1.5))
            process.kill()
            process.communicate()
            done += 1
        else:
            output = process.communicate(timeout=120)[0]
            assert process.returncode == 0, output
            break
    whole, killed = (_newest(place / name) for name in ("undisturbed", "killed"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_file(whole / file), load_file(killed / file)
        assert one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)
    assert _losses(place / "undisturbed") == _losses(run)


def wait_started(run: Path, process: subprocess.Popen[str]) -> bool:
    """Until the process has begun to train (or ended)."""
    size = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").is_file() else -1
    while process.poll() is None:
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size != size:
            return True
        time.sleep(0.02)
    return False


def _newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()


def _losses(run: Path) -> list[Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]
