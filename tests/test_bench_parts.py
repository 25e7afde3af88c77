"""Parts of a bench: operations counted by hand, intervals, which earlier runs hold, the table, who waits for whom."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mimkit
from mimkit.compare.cost import cost_of
from mimkit.compare.keep import claim, code_version, log_of, logged, plan_of
from mimkit.compare.report_rows import read_rows
from mimkit.compare.results import ci95, t95, training_seconds
from mimkit.compare.table import aligned, markdown, table
from mimkit.compare.work import Failed, Worker, alone
from mimkit.signals import StopRequest


def block(tokens: int, width: int) -> int:
    """Operations of a transformer block: twelve matrices of width², and queries times keys, weights times values."""
    return tokens * 2 * 12 * width**2 + 2 * 2 * tokens**2 * width


def test_the_operations_of_a_step_are_those_counted_by_hand(tiny: dict[str, Any]) -> None:
    """SimMIM with a plain ViT: 16 patches of 48, with a class token through 2 blocks, then 48 numbers for each of 8 hidden.

    The backward pass is twice the forward one, but no gradient of the pixels is asked for.
    """
    tiny |= {"mask": {"name": "random", "ratio": 0.5, "feed": "all"}, "head": "linear", "target": "pixels"}
    cost = cost_of(mimkit.build(tiny))
    by_hand = 3 * 2 * block(17, 24) + 2 * (2 * 16 * 48 * 24) + 3 * (2 * 8 * 24 * 48)
    assert cost.step == pytest.approx(by_hand, rel=0.01)
    assert cost.target == 0 and not cost.taught
    model = mimkit.build(tiny)
    assert cost.encoder_parameters == sum(p.numel() for p in model.encoder.parameters())
    assert cost.parameters == cost.encoder_parameters + 24 * 48 + 48 == sum(p.numel() for p in model.parameters())


def test_every_crop_of_an_image_counts(tiny: dict[str, Any]) -> None:
    """Twice the crops are twice the work, forward and backward."""
    one = cost_of(mimkit.build(tiny))
    two = cost_of(mimkit.build(tiny | {"data": {"name": "shapes", "batch_size": 8, "repeats": 2}}))
    assert two.step == 2 * one.step and two.target == 2 * one.target


def test_a_teachers_share_is_its_forward_pass(tiny: dict[str, Any], clip_folder: Path) -> None:
    """16 px in patches of 4: 17 tokens through 3 blocks, the projection of all tokens to 20; nothing backward."""
    target = {"name": "clip", "model": f"local-dir:{clip_folder}"}
    cost = cost_of(mimkit.build(tiny | {"target": target}))
    by_hand = 3 * block(17, 24) + 2 * 16 * 48 * 24 + 2 * 17 * 24 * 20
    assert cost.target == pytest.approx(by_hand, rel=0.01) and cost.taught
    plain = cost_of(mimkit.build(tiny | {"target": "norm_pixels"}))
    assert cost.step - cost.target == plain.step - 3 * 2 * 12 * 16 * (48 - 20), (
        "20 numbers for each of 12 places, not 48"
    )
    kept = cost_of(
        mimkit.build(tiny | {"target": target | {"cache": True}, "data": {"name": "shapes", "crop_scale": [1, 1]}})
    )
    assert kept.step == cost.step, "counted as if nothing were kept yet"


def test_an_interval_is_students() -> None:
    """Three values: t = 4.3027 for two degrees of freedom. scipy's quantiles to 0.1 %."""
    assert ci95([41.0, 42.0, 43.5]) == pytest.approx(4.302653 * 1.2583057 / 3**0.5, rel=1e-4)
    assert ci95([41.0]) is None
    student = pytest.importorskip("scipy.stats").t
    for degrees in range(1, 200):
        assert t95(degrees) == pytest.approx(student.ppf(0.975, degrees), rel=1e-3)


def test_the_seconds_of_training_come_from_the_rates_of_its_lines(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "probe": "knn", "seconds": 50.0},
        {"step": 2, "images": 20, "loss": 1.0, "images_per_s": 10.0},
        {"step": 5, "images": 50, "loss": 0.9, "images_per_s": 5.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert training_seconds(tmp_path) == 20 / 10 + 30 / 5


def test_only_what_a_bench_wrote_for_something_else_is_moved_aside(tmp_path: Path) -> None:
    folder, old = tmp_path / "runs" / "mae" / "seed-0", tmp_path / "old"
    claim(folder, "one", old)
    folder.mkdir()
    (folder / "recipe.yaml").write_text("of one")
    claim(folder, "one", old)
    assert (folder / "recipe.yaml").is_file() and not old.exists()
    for text in ("two", "three"):
        claim(folder, text, old)
        assert plan_of(folder).read_text() == text and not folder.exists()
    assert (old / "mae_seed-0-1" / "seed-0" / "recipe.yaml").read_text() == "of one"
    assert (old / "mae_seed-0-2" / "seed-0.yaml").read_text() == "two"
    (folder / "checkpoints").mkdir(parents=True)  # killed before it had a recipe
    claim(folder, "three", old)
    assert not folder.exists() and (old / "mae_seed-0-3" / "seed-0" / "checkpoints").is_dir()
    foreign = tmp_path / "runs" / "theirs" / "seed-0"
    foreign.mkdir(parents=True)
    claim(foreign, "mine", old)
    assert foreign.is_dir(), "not written by a bench: `mimkit train` refuses it"


def test_the_code_that_makes_the_numbers_has_a_version(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("a = 1\n")
    one = code_version([plugin])
    assert one == code_version([plugin]) != code_version([])
    plugin.write_text("a = 2\n")
    assert code_version([plugin]) != one


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    with alone(tmp_path) as lock, StopRequest() as stop:
        yield Worker([], lock, stop)


def test_how_a_process_ends_is_a_line(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words for an exit code, the signal's name otherwise; the log goes to the run's folder."""
    for code, line in [
        ("print('working'); raise ValueError('too hot')", "^ValueError: too hot$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"^ended by SIGKILL \(out of memory\?\)$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "^ended by SIGSEGV$"),
        ("raise SystemExit(3)", "^ended with exit code 3$"),
    ]:
        process = subprocess.Popen
        words = [sys.executable, "-c", code]
        with monkeypatch.context() as patch, pytest.raises(Failed, match=line):
            patch.setattr(subprocess, "Popen", lambda _, run=process, words=words, **more: run(words, **more))
            worker.run(["train"], tmp_path / f"{len(code)}.log")
    run = tmp_path / "seed-0"
    run.mkdir()
    for text in ("one\n", "two\n"):
        with logged(run) as log:
            log.write_text(text)
    assert (run / "log.txt").read_text() == "one\ntwo\n" and not log_of(run).exists()


def told(name: str, status: str, score: float | None, **more: Any) -> dict[str, Any]:
    scores = {} if score is None else {"knn": {"metric": "top1", "mean": score, "ci95": 0.5, "values": [score] * 3}}
    return {"name": name, "kind": "recipe", "status": status, "scores": scores, "error": None, "seeds": [], **more}


def test_the_best_row_stands_first_and_failed_ones_last(tmp_path: Path) -> None:
    rows = [
        told("broken", "failed", None, error="no | weights"),
        told("good", "done", 40.0),
        told("best | one", "partial", 42.25, flops=2e12, flops_stage=1e12, seconds=60.0, seconds_stage=30.0),
        told("to come", "waiting", None),
    ]
    lines = table(read_rows(tmp_path, {"rows": rows}), ["knn", "linear"])
    assert [line[0] for line in lines] == ["row", "best | one", "good", "broken"]
    assert lines[1][1:3] == ["42.2 ± 0.5", ""] and lines[1][4:6] == ["3.00 TFLOP", "90 s"]
    assert lines[3][1] == "failed: no | weights"
    text = markdown(lines).splitlines()
    assert text[2].startswith("| best \\| one | 42.2 ± 0.5 |") and {line.count(" | ") for line in text[2:]} == {7}
    plain = aligned(lines).splitlines()
    assert plain[3] == "broken      failed: no | weights" and plain[0].index("images/s") < plain[0].index("time")
    assert all(len(line) <= len(plain[0]) for line in plain[:3])
