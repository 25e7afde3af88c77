"""Two stages: a recipe that asks for a run of another recipe finds the newest finished one."""

import json
from pathlib import Path

import pytest

from mimkit.draft import draft, load_recipe
from mimkit.errors import UserError

PATH = ("target", "checkpoint")


def run(folder: Path, exit_reason: str) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"exit": exit_reason}))


def checkpoint(*given: str) -> str:
    return str(load_recipe("beit2", given).objectives["main"].target.options["checkpoint"])


def test_the_newest_finished_run_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number: 10 comes after 2. What was stopped, another recipe's and what holds no summary do not count."""
    monkeypatch.chdir(tmp_path)
    for name, ended in [("vqkd-2", "done"), ("vqkd-10", "done"), ("vqkd-11", "SIGTERM"), ("vqkd_vit_base-12", "done")]:
        run(Path("runs") / name, ended)
    Path("runs/vqkd-13").mkdir()
    assert draft("beit2").stages() == {PATH: "vqkd"}
    assert checkpoint() == "runs/vqkd-10"
    assert "checkpoint: runs/vqkd-10" in load_recipe("beit2").to_yaml()
    assert checkpoint("target.checkpoint=mine") == "mine"
    assert draft("beit2", ["target=pixels"]).stages() == {}


def test_without_a_run_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="no finished run of vqkd in runs/: `mimkit train vqkd` first, or target"
    ) as told:
        load_recipe("beit2")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="no recipe 'vqkdd'; did you mean 'vqkd'"):
        load_recipe("beit2", ["target.checkpoint=recipe:vqkdd"])
