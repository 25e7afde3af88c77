"""`mimkit bench` in real processes, killed and stopped at random moments; what it leaves with."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mimkit.draft import load_recipe
from mimkit.evaluate.score import score
from mimkit.train.loop import train
from tests.conftest import ONE_THREAD

WORDS = ["bench", "tiny.yaml", "train.epochs=60", "train.checkpoint_every=5", "--seeds", "1", "--probes", "knn"]


def start(place: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "mimkit", *WORDS]
    return subprocess.Popen(
        words, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | ONE_THREAD
    )


def at_work(process: "subprocess.Popen[str]") -> bool:
    """Wait until the bench says that it has begun a piece of work; False if it ended before."""
    assert process.stdout is not None
    while letter := process.stdout.read(1):
        if letter == "…":
            return True
    return False


def test_a_bench_killed_and_stopped_at_random_moments_ends_with_the_same_scores(
    tmp_path: Path, tiny_file: Path
) -> None:
    """`MIMKIT_TEST_KILLS` kills (1 by default), a SIGTERM, then to the end; against `train` and `score` undisturbed."""
    dice = random.Random(5)
    for _ in range(int(os.environ.get("MIMKIT_TEST_KILLS", "1"))):
        process = start(tmp_path)
        if at_work(process):
            time.sleep(dice.uniform(0, 8))
        process.kill()
        process.communicate()
    process = start(tmp_path)
    stopped = at_work(process)
    time.sleep(dice.uniform(0, 4))
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    if stopped and process.returncode:
        assert process.returncode == 75 and "stopped; the same command goes on" in output, output
        assert json.loads((tmp_path / "bench/results.json").read_text())["rows"][0]["status"] == "waiting"
    process = start(tmp_path)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "untrained vit" in output and "\x1b" not in output, output
    rows = json.loads((tmp_path / "bench/results.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["done", "done"]

    run = tmp_path / "bench/runs/tiny/seed-0"
    train(load_recipe(run / "recipe.yaml"), tmp_path / "whole")
    whole, killed = (load_file(folder / "encoder.safetensors") for folder in (tmp_path / "whole", run))
    assert all(bool((whole[name] == killed[name]).all()) for name in whole)
    assert list(score(tmp_path / "whole", ["knn"], [], tmp_path / "eval.json"))
    wanted: Any = json.loads((tmp_path / "eval.json").read_text())
    assert rows[0]["scores"]["knn"]["values"] == [wanted["probes"]["knn"]["top1"]]
    told = (run / "log.txt").read_text()
    assert "done: 420 steps" in told and not (run.parent / "seed-0.log").exists()
    assert (tmp_path / "bench/report.html").is_file()
