"""Shared by all tests: a tiny recipe, and the real command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TINY: dict[str, Any] = {
    "method": "tiny",
    "image_size": 16,
    "encoder": {"name": "vit", "embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4},
    "mask": {"name": "random", "ratio": 0.75},
    "head": {"name": "decoder", "embed_dim": 16, "depth": 2, "num_heads": 2},
    "target": "norm_pixels",
    "data": {"name": "shapes", "num_images": 60, "num_test": 20, "batch_size": 8},
    "optim": {"base_lr": 0.01},
    "train": {"epochs": 2, "warmup_epochs": 0.5, "checkpoint_every": 1, "log_every": 2},
    "probe": {"every": 1},
    "seed": 3,
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A recipe that trains in seconds: 7 steps an epoch."""
    import copy

    return copy.deepcopy(TINY)


@pytest.fixture
def tiny_file(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """The tiny recipe as a file."""
    from mimkit import strict_yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(strict_yaml.dump(tiny))
    return path


def command(*arguments: str | Path, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `mimkit …` as a user would, in a process of its own."""
    words = [sys.executable, "-m", "mimkit", *map(str, arguments)]
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, env=os.environ | ONE_THREAD
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `make_clip`."""
    return make_clip(tmp_path_factory.mktemp("models") / "clip")


def make_clip(folder: Path) -> Path:
    """A tiny OpenCLIP with random weights in the folder layout that `local-dir:` names: 16 px, patch 4, 24 wide, 20 out."""
    import json

    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 16, "layers": 3, "width": 24, "head_width": 12, "patch_size": 4}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(11)
    model = open_clip.CLIP(embed_dim=20, vision_cfg=vision, text_cfg=text)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.1)
    folder.mkdir()
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    stated = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    config = {"model_cfg": {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": stated}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
