"""A whole bench: what it trains and scores, what it tells. The commands run in this process, which is quicker."""

import contextlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mimkit
from mimkit import strict_yaml
from mimkit.cli import app
from mimkit.compare.bench import compare
from mimkit.compare.request import Request
from mimkit.compare.work import Failed, Worker
from mimkit.errors import UserError
from mimkit.evaluate.score import score
from mimkit.train import loop
from tests.conftest import TINY

VIT = {"name": "vit", "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 4}
QUANTIZER = {"name": "quantizer", "vocab_size": 16, "code_dim": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
FED = {"name": "random", "ratio": 0.5, "feed": "all"}
WORDS = ["plain", "staged", "taught", "broken", "plain:mask.ratio=0.5,0.75", "broken:optim.lr=1e9",
         "target.norm=true", "train.warmup_epochs=0.5", "data.num_images=64", "bank=40", "knn.k=5"]  # fmt: skip


@dataclass
class Bench:
    """What a bench was asked, what it told, and the commands it ran."""

    request: Request
    words: list[list[str]]

    def run(self) -> dict[str, Any]:
        self.words.clear()
        assert compare(self.request)
        return self.results

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.request.out / "results.json").read_text())

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.results["rows"] if row["name"] == name)


def recipes(folder: Path, clip: Path) -> None:
    plain = TINY | {"encoder": VIT, "head": "linear", "mask": FED, "train": {"epochs": 1}}
    changes = {
        "plain": {"target": "norm_pixels"},
        "broken": {"target": "norm_pixels"},
        "taught": {"target": {"name": "clip", "model": f"local-dir:{clip}"}},
        "staged": {"target": {"name": "vq", "checkpoint": f"recipe:{folder / 'tokens.yaml'}"}},
        "tokens": {"mask": "none", "head": QUANTIZER, "target": "pixels"},
    }
    for name, more in changes.items():
        (folder / f"{name}.yaml").write_text(strict_yaml.dump(deepcopy(plain | {"method": name} | more)))


@contextlib.contextmanager
def in_this_process() -> Iterator[list[list[str]]]:
    """`Worker.run` without a process of its own and without a run's pictures; gives the list of the commands that ran."""
    ran: list[list[str]] = []

    def run(self: Worker, words: list[Any], log: Path) -> None:
        ran.append([*map(str, words), *self.common])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file, contextlib.redirect_stdout(file):
            try:
                app(ran[-1], standalone_mode=False)
            except UserError as error:
                raise Failed(str(error)) from error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "run", run)
        patch.setattr(loop, "draw", lambda run: None)
        yield ran


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Iterator[Bench]:
    """Two seeds of WORDS, done once."""
    folder = tmp_path_factory.mktemp("bench")
    recipes(folder, clip_folder)
    words = [str(folder / f"{word}.yaml") if "=" not in word else word for word in WORDS]
    with in_this_process() as ran:
        done = Bench(Request(tuple(words), 2, "images", None, ("knn",), folder / "out"), ran)
        done.run()
        done.first_words = list(ran)  # type: ignore[attr-defined]
        yield done


def test_rows_stand_in_the_order_of_the_command_then_untrained_then_teachers(bench: Bench) -> None:
    rows = bench.results["rows"]
    assert [(row["name"], row["kind"], row["status"]) for row in rows] == [
        ("plain mask.ratio=0.5", "recipe", "done"),
        ("plain mask.ratio=0.75", "recipe", "done"),
        ("staged", "recipe", "done"),
        ("taught", "recipe", "done"),
        ("broken", "recipe", "failed"),
        ("untrained vit 0.009 M", "untrained", "done"),
        ("teacher of taught", "teacher", "done"),
    ]
    assert rows[1]["recipe"] == "plain" and rows[1]["changes"] == ["mask.ratio=0.75"]
    assert bench.results["settings"]["applies"] == {"target.norm=true": ["taught"]}


RESULTS = {"format", "mimkit", "command", "started", "finished", "settings", "environment", "data", "notes", "rows"}
SEED = {
    "seed",
    "folder",
    "status",
    "error",
    "stage",
    "images",
    "seconds",
    "images_per_s",
    "flops",
    "flops_target",
    "flops_stage",
    "seconds_stage",
    "peak_memory",
    "parameters",
    "encoder_parameters",
    "loss",
    "scores",
    "health",
}
ROW = {"name", "kind", "recipe", "changes", "status", "error", "encoder", "seeds", "scores", "images", "seconds",
       "images_per_s", "flops", "peak_memory", "parameters", "encoder_parameters"}  # fmt: skip


def test_results_json_tells_all(bench: Bench) -> None:
    told = bench.results
    assert told.keys() == RESULTS
    assert told["finished"] and told["data"] == {"name": "shapes", "train": 64, "test": 20}
    settings = {"equal": "images", "budget": 64, "seeds": [0, 1], "probes": ["knn"]}
    assert settings.items() <= told["settings"].items() and told["settings"]["overrides"][-1] == "knn.k=5"
    for row in told["rows"]:
        assert row.keys() >= ROW and all(seed.keys() == SEED for seed in row["seeds"])
        for seed in row["seeds"]:
            folder = bench.request.out / seed["folder"]
            if row["status"] == "done":
                found = json.loads((folder / "eval.json").read_text())
                assert found["bank"] == found["images"]["train"] == 40
                value = found["probes"]["knn"]["top1"]
                error = pytest.approx((value * (100 - value) / 20) ** 0.5)
                assert seed["scores"]["knn"] == {"metric": "top1", "value": value, "standard_error": error}
            if row["status"] == "done" and row["kind"] == "recipe":
                assert seed["images"] == 64 and seed["peak_memory"] > 1e8 and 0 < seed["seconds"] < 60
                assert seed["health"].keys() >= {"effective_rank", "patch_similarity"}
                assert json.loads((folder / "bench.json").read_text())["flops"] == seed["flops"] > seed["flops_target"]
                assert "kNN top-1" in (folder / "log.txt").read_text()
    row = bench.row("plain mask.ratio=0.5")
    one, two = (seed["scores"]["knn"]["value"] for seed in row["seeds"])
    half = pytest.approx(12.7062 * abs(one - two) / 2, abs=1e-6)  # t for one degree of freedom; sd / √2 = |a - b| / 2
    assert row["scores"]["knn"] == {"metric": "top1", "mean": (one + two) / 2, "ci95": half, "values": [one, two]}
    assert bench.row("teacher of taught")["scores"]["knn"]["ci95"] is None


def test_a_recipe_that_fails_is_a_row_that_says_why(bench: Bench) -> None:
    row = bench.row("broken")
    assert "the loss or its gradient is not finite" in row["error"] and "\n" not in row["error"]
    assert [seed["status"] for seed in row["seeds"]] == ["failed", "failed"] and row["scores"] == {}
    assert "failed: step" in (bench.request.out / "results.md").read_text()
    assert "broken" in (bench.request.out / "report.html").read_text()


def test_a_stage_is_trained_once_for_each_seed_and_counted(bench: Bench) -> None:
    row = bench.row("staged")
    trained = [words[3] for words in bench.first_words if words[0] == "train"]  # type: ignore[attr-defined]
    assert len(set(trained)) == len(trained) == 2 * 6
    assert [seed["stage"] for seed in row["seeds"]] == ["runs/tokens/seed-0", "runs/tokens/seed-1"]
    recipe = (bench.request.out / "runs/staged/seed-1/recipe.yaml").read_text()
    assert f"checkpoint: {bench.request.out}/runs/tokens/seed-1" in recipe
    summary = json.loads((bench.request.out / "runs/tokens/seed-0/summary.json").read_text())
    assert summary["images"] == 64 and row["flops_stage"] > row["flops"] / 2 and row["seconds_stage"] > 0
    assert any(note.startswith("staged learns from a run of tokens") for note in bench.results["notes"])
    assert row["flops_target"] > 0 and bench.row("plain mask.ratio=0.5")["flops_stage"] == 0


def test_the_untrained_row_is_what_the_runs_begin_with(bench: Bench) -> None:
    for seed in bench.row("untrained vit 0.009 M")["seeds"]:
        torch.manual_seed(seed["seed"])
        begun = mimkit.build(bench.request.out / f"runs/taught/seed-{seed['seed']}/recipe.yaml").encoder
        kept = load_file(bench.request.out / seed["folder"] / "encoder.safetensors")
        assert all(torch.equal(kept[name], x) for name, x in begun.timm_model.state_dict().items())


def test_the_teachers_row_scores_the_mean_of_what_it_gives(bench: Bench) -> None:
    from mimkit.data.open import open_data
    from mimkit.evaluate.knn import knn_predict, top1

    model = mimkit.build(bench.request.out / "runs/taught/seed-0/recipe.yaml")
    teacher = model.objectives["main"].target
    data = open_data("shapes", model.recipe.data.options, (16, 16), 3)
    features, labels = [], []
    for source in (data.train, data.test):
        assert source is not None and source.labels is not None
        index = np.unique(np.linspace(0, len(source) - 1, min(40, len(source))).round().astype(int))  # bank=40
        images = torch.stack([source.read(int(each)) for each in index])
        features.append(teacher(images).values.mean(1).detach())
        labels.append(torch.from_numpy(source.labels[index]))
    by_hand = top1(knn_predict(features[0], labels[0], features[1], 5, 0.07), labels[1])
    assert bench.row("teacher of taught")["scores"]["knn"]["mean"] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("run", "probe", "line"),
    [
        ("plain_mask.ratio=0.5", "knn", "target 'norm_pixels' is no frozen network that gives features"),
        ("staged", "knn", "target 'vq' is no frozen network that gives features"),
        ("taught", "layers", "of=target: layers need an encoder"),
    ],
)
def test_what_is_no_teacher_is_not_scored_as_one(bench: Bench, tmp_path: Path, run: str, probe: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        list(score(bench.request.out / "runs" / run / "seed-0", [probe], ["of=target"], tmp_path / "eval.json"))


def test_the_same_command_again_trains_nothing_and_a_changed_one_what_changed(bench: Bench) -> None:
    before = bench.results["rows"]
    assert [again := bench.run()["rows"]][0][:4] == before[:4] and again[5:] == before[5:]
    assert {words[0] for words in bench.words} == {"train"}, "only what failed is tried again"
    assert all("--resume" in words and "broken" in words[1] for words in bench.words)
    one = replace(bench.request, words=(bench.request.words[0], "data.num_images=64", "bank=40", "knn.k=5"), seeds=1)
    Bench(one, bench.words).run()
    assert [words[0] for words in bench.words] == ["train", "eval"], "another recipe; the untrained encoder is the same"
    longer = replace(one, words=(*one.words, "train.epochs=2"), probes=("knn", "linear"))
    results = Bench(longer, bench.words).run()
    assert [words[0] for words in bench.words] == ["train", "eval", "eval"]
    assert results["rows"][0]["images"] == 128 and results["rows"][0]["scores"].keys() == {"knn", "linear"}
    assert (bench.request.out / "old" / "plain_seed-0-1" / "seed-0" / "summary.json").is_file()


def test_a_bench_of_which_no_row_is_done_leaves_with_1(bench: Bench, tmp_path: Path) -> None:
    """The teacher is missing: found when its recipe is built, a row's error and not the end of the others."""
    taught = next(word for word in bench.request.words if "taught" in word)
    words = ["bench", taught, "target.model=local-dir:nowhere", "--seeds", "1", "--probes", "knn"]
    assert app([*words, "--out", str(tmp_path / "out")], standalone_mode=False) == 1
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert [(row["kind"], row["status"]) for row in rows] == [("recipe", "failed"), ("untrained", "done")]
    assert "nowhere" in rows[0]["error"] and not (tmp_path / "out/runs/taught").exists()


@pytest.mark.parametrize("equal", ["flops", "seconds"])
def test_a_budget_may_be_of_operations_or_seconds(bench: Bench, tmp_path: Path, equal: str) -> None:
    """Of operations: those of 40 images are 40 images. Of seconds: as many as a timing says, to the whole step."""
    words = tuple(word for word in bench.request.words if "plain.yaml" in word or "num_images" in word)
    cost = json.loads((next(bench.request.out.glob("runs/plain*/seed-0/bench.json"))).read_text())
    budget = cost["flops"] * 40 / cost["images"] if equal == "flops" else 0.5
    done = Bench(Request(words, 1, equal, budget, ("knn",), tmp_path / "out"), bench.words).run()
    row = done["rows"][0]
    if equal == "flops":
        assert row["images"] == 40 and row["flops"] == pytest.approx(budget)
    else:
        rate = json.loads((tmp_path / "out/timing/plain/seed-0/summary.json").read_text())["images_per_s"]
        assert row["images"] == 8 * round(0.5 * rate / 8)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"probes": ("knnn",)}, "there is no probe 'knnn'; did you mean 'knn'"),
        ({"more": ("knn.k=0",)}, "probe 'knn', option 'k': should be greater than 0"),
        ({"more": ("linear.C=1",)}, "--probe does not name 'linear'"),
        ({"equal": "flop"}, "--equal flop; did you mean 'flops'"),
        ({"equal": "flops"}, "--equal flops needs --budget FLOPS"),
        ({"budget": 0.0}, "--budget 0 should be greater than 0"),
        ({"budget": 64.0, "more": ("train.epochs=3",)}, "'train.epochs=3': --budget says how long"),
        ({"more": ("mae", "mae:train.epochs=3")}, "'mae:train.epochs=3': all rows have the same budget"),
        ({"more": ("data=./nowhere",)}, "there is no data at './nowhere'"),
        ({"more": ("mae.yml",)}, "recipe mae.yml: no such file"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_any_work(bench: Bench, tmp_path: Path, change: dict[str, Any], line: str) -> None:
    words = (bench.request.words[0], *change.pop("more", ()))
    with pytest.raises(UserError, match=line):
        compare(replace(bench.request, words=words, out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_an_encoder_on_codes_has_its_untrained_row_too(tmp_path: Path, clip_folder: Path) -> None:
    """It can be built only after its stage was trained; both have the same tokenizer."""
    recipes(tmp_path, clip_folder)
    mage = {
        "name": "mage",
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 2,
        "tokenizer": f"recipe:{tmp_path / 'tokens.yaml'}",
    }
    head = {"name": "code_decoder", "embed_dim": 16, "depth": 1, "num_heads": 2}
    tree = TINY | {"method": "coded", "encoder": mage, "mask": "variable", "head": head, "target": "codes",
                   "train": {"epochs": 1}}  # fmt: skip
    (tmp_path / "coded.yaml").write_text(strict_yaml.dump(deepcopy(tree)))
    words = (str(tmp_path / "coded.yaml"), "data.num_images=32")
    with in_this_process() as ran:
        rows = Bench(Request(words, 1, "images", None, ("knn",), tmp_path / "out"), ran).run()["rows"]
    assert [(row["kind"], row["status"]) for row in rows] == [("recipe", "done"), ("untrained", "done")]
    assert rows[1]["name"].startswith("untrained mage") and rows[0]["encoder"] == rows[1]["encoder"] != ""
    one, two = (mimkit.load(tmp_path / "out" / row["seeds"][0]["folder"]).tokenizer.head.codebook for row in rows)
    assert torch.equal(one, two)


def test_scores_are_made_anew_where_labels_are_others(bench: Bench, tmp_path: Path) -> None:
    one = replace(bench.request, words=(bench.request.words[0], "data.num_images=64", "bank=40", "knn.k=5"), seeds=1)
    one = replace(one, out=tmp_path / "out")
    Bench(one, bench.words).run()
    path = tmp_path / "out/runs/plain/seed-0/eval.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"labels_sha256": "of others"}))
    Bench(one, bench.words).run()
    assert [words[0] for words in bench.words] == ["eval"]
    assert json.loads(path.read_text())["labels_sha256"] == told["labels_sha256"]
