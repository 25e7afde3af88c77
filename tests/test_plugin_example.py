"""The example of a plug-in: what it predicts, as a single file, and installed beside mimkit."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mimkit
from mimkit import registry
from mimkit.model import Model
from tests.conftest import ONE_THREAD

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"
FILE = PLUGIN / "mimkit_low_frequency" / "low_frequency.py"
STEPS = [
    "data=shapes",
    "data.num_images=20",
    "data.num_test=4",
    "data.batch_size=8",
    "train.max_steps=2",
    "probe.every=0",
]
TINY = ["image_size=16", "encoder.depth=1", "head.depth=1", "train.device=cpu"]


@pytest.fixture
def model(tiny: dict[str, Any]) -> Model:
    tiny["image_size"] = [16, 24]
    return mimkit.build(tiny, "target=low_frequency", "target.cutoff=0.2", plugins=[FILE])


def waves(frequency: tuple[float, float]) -> torch.Tensor:
    """An image (1, 3, 16, 24) around grey with `frequency` periods per pixel down and across."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    wave = torch.cos(2 * math.pi * (frequency[0] * rows + frequency[1] * columns))
    return (0.5 + 0.2 * wave).expand(1, 3, -1, -1)


@pytest.mark.parametrize(
    ("frequency", "stays"),
    [
        ((0, 4 / 24), True),
        ((0, 5 / 24), False),
        ((3 / 16, 0), True),
        ((2 / 16, 4 / 24), False),
        ((-2 / 16, 3 / 24), True),
    ],
)
def test_only_slow_waves_are_left(model: Model, frequency: tuple[float, float], stays: bool) -> None:
    """Against the pixels of the wave itself, or of plain grey; frequencies count by their length, in any direction."""
    target = model.objectives["main"].target
    image = waves(frequency) if stays else torch.full((1, 3, 16, 24), 0.5)
    expected = target.standardize(image).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(1, 24, 48)
    torch.testing.assert_close(target(waves(frequency)), expected, rtol=0, atol=2e-5)


def test_a_single_file_is_a_target_like_any_other(model: Model) -> None:
    main = model.recipe.objectives["main"]
    assert (main.target.name, main.normalizer.name, main.loss.name) == ("low_frequency", "per_patch", "mse")
    out = model(torch.rand(2, 3, 16, 24))
    assert out.prediction.shape == out.target.shape == (2, 18, 48)
    option = registry.options(registry.find("target", "low_frequency"), registry.ROLES["target"].facts)
    assert list(option) == ["cutoff"] and "periods per pixel" in option["cutoff"].doc


def run(*words: str | Path, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, filter(None, (site, ROOT))))
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )


def test_the_command_takes_the_file_or_the_installed_package(tmp_path: Path) -> None:
    """Installed into a folder of its own; without either, the name is unknown, in one line."""
    shutil.copytree(PLUGIN, tmp_path / "plugin")
    install = (
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        tmp_path / "site",
        tmp_path / "plugin",
    )
    done = run(*install, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train = ("mimkit", "train", "mae", "target=low_frequency", *TINY, *STEPS)
    for name, more, site in (("file", ["--plugin", FILE], None), ("installed", [], tmp_path / "site")):
        done = run(*train, "--out", tmp_path / name, *more, cwd=tmp_path, site=site)
        assert done.returncode == 0, done.stderr
        assert "name: low_frequency" in (tmp_path / name / "recipe.yaml").read_text()
    listed = run("mimkit", "list", "target", cwd=tmp_path, site=tmp_path / "site")
    assert "low_frequency" in listed.stdout and "cutoff" in listed.stdout
    done = run(*train, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "unknown target 'low_frequency'" in done.stderr and "--plugin FILE.py" in done.stderr


def test_an_installed_component_that_breaks_is_named_in_one_line(tmp_path: Path) -> None:
    """One whose module fails on import, and one whose name is taken."""
    info = tmp_path / "site" / "other-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (tmp_path / "site" / "broken_target.py").write_text("raise RuntimeError('out of order')\n")
    for entry, target, parts in (
        ("broken = broken_target", "broken", ["installed target 'broken' cannot be imported", "out of order"]),
        ("pixels = broken_target", "pixels", ["two targets are named 'pixels'", "uninstall"]),
    ):
        (info / "entry_points.txt").write_text(f"[mimkit.targets]\n{entry}\n")
        done = run("mimkit", "train", "mae", f"target={target}", *STEPS, cwd=tmp_path, site=tmp_path / "site")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert all(part in done.stderr for part in parts)
