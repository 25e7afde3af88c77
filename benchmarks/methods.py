"""Every small recipe on the same images for the same number of epochs: the table of docs/methods.md.

    python benchmarks/methods.py --data CIFAR10_FOLDER --teacher local-dir:FOLDER [--epochs 3] [--out runs/methods]
                                 [--recipes mae milan ...] [--set KEY=VALUE ...]

Each recipe is trained by `mimkit train` in a process of its own, one after another; a run that is there already is not
repeated. Recipes whose target is a CLIP read the one of --teacher; `beit2` reads the tokenizer that `vqkd` trained here,
and is skipped without it. A recipe that fails is a row that says why.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mimkit.draft import draft, shipped

COLUMNS = ("recipe", "encoder", "target", "loss, first → last", "kNN, untrained → trained", "images/s", "minutes")


def overrides(name: str, data: str, teacher: str, epochs: float, out: Path) -> list[str]:
    """What a recipe is trained with besides its own settings."""
    target = draft(name).tree["target"]
    given = [f"data={data}", f"train.epochs={epochs}", f"probe.every={epochs}"]
    if isinstance(target, dict) and target["name"] == "clip":
        given.append(f"target.model={teacher}")
    if isinstance(target, dict) and target["name"] == "vq":
        given.append(f"target.checkpoint={out / 'vqkd'}")
    return given


def train(name: str, given: list[str], folder: Path) -> str:
    """Train unless it is done; gives the error's line, or an empty string."""
    if (folder / "summary.json").is_file():
        return ""
    words = [sys.executable, "-m", "mimkit", "train", name, *given, "--out", str(folder)]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def row(name: str, folder: Path) -> list[str]:
    """The figures of a finished run."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    tree = draft(folder / "recipe.yaml").tree
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    knn = f"{summary['knn_top1_untrained']:.1f} → {summary['knn_top1']:.1f}"
    encoder, target = tree["encoder"]["name"], tree["target"]["name"]
    rate, minutes = f"{summary['images_per_s']:.0f}", f"{summary['seconds'] / 60:.1f}"
    return [name, encoder, target, f"{losses[0]:.3f} → {losses[-1]:.3f}", knn, rate, minutes]


def main() -> None:
    """Train, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--recipes", nargs="+", default=sorted(name for name in shipped() if "/" not in name))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    names = sorted(given.recipes, key=lambda name: name == "beit2")  # after the tokenizer that it reads
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for name in names:
        words = [*overrides(name, given.data, given.teacher, given.epochs, given.out), *given.set]
        wrong = train(name, words, given.out / name)
        cells = [name, wrong, *[""] * (len(COLUMNS) - 2)] if wrong else row(name, given.out / name)
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
