"""What every encoder owes to a probe: an image has the same features, bit for bit, wherever and whenever it is met."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimkit import registry
from mimkit.data.source import BadImage, Pixels, Source
from mimkit.evaluate import features
from mimkit.evaluate.embed import embed
from mimkit.evaluate.features import BATCH, encode, encode_alike, extract
from mimkit.evaluate.frozen import Frozen
from mimkit.saved.encoder import load, save_encoder
from mimkit.types import Encoder

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4}
ENCODERS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "beit": VIT,
    "eva": VIT,
    "swin": {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4, "patch_size": 4},
    "timm": {"model": "test_vit", "patch_size": 8},
}
SIZE = (32, 32)


class Photos(Source):
    """Noise, the same for the same number; numbers below 0 cannot be read."""

    def __init__(self, numbers: list[int]):
        super().__init__("photos", np.arange(len(numbers)) % 2, in_chans=3)
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def open(self, index: int) -> Pixels:
        if self.numbers[index] < 0:
            raise BadImage("is torn")
        draw = torch.Generator().manual_seed(self.numbers[index])
        return Pixels(torch.randint(0, 256, (3, 40, 36), dtype=torch.uint8, generator=draw))


def make(name: str) -> Encoder:
    """Random weights everywhere, so that biases, norms and tables count."""
    torch.manual_seed(3)
    encoder: Encoder = registry.build("encoder", name, ENCODERS[name], {"image_size": SIZE, "feed": "all"})
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.2)
    return encoder.eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_image_has_the_same_features_in_fit_and_test(tmp_path: Path, name: str) -> None:
    """Among many and among few, at another place in the batch, beside an image that cannot be read."""
    train, test = [*range(BATCH + 7), -1], [BATCH + 3, -1, 2]
    sources = {"train": Photos(train), "test": Photos(test)}
    frozen = Frozen(make(name), sources, "mean", tmp_path, {"train": "photos", "test": "photos"})
    for kind in ("mean", "tokens"):
        fit, seen = frozen.labelled("train", kind), frozen.labelled("test", kind)
        assert torch.equal(seen.features, fit.features[[BATCH + 3, 2]]) and seen.features.isfinite().all()
        assert seen.labels.tolist() == [0, 0] and frozen.unreadable == {"train": 1, "test": 1}
    batches = list(frozen.token_batches("train", 20, torch.Generator().manual_seed(1)))
    order = torch.randperm(len(train) - 1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        torch.cat([batch.features for batch in batches]), frozen.labelled("train", "tokens").features[order]
    )


def test_tokens_that_are_not_kept_have_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mimkit.evaluate import frozen

    kept = Frozen(make("vit"), {"test": Photos([1, 2, -1, 3, 4])}, "mean", tmp_path, {"test": "photos"})
    whole = [batch.features for batch in kept.token_batches("test", 2)]
    monkeypatch.setattr(frozen, "TOKENS_LIMIT", 0)
    anew = [batch.features for batch in kept.token_batches("test", 2)]
    assert torch.equal(torch.cat(anew), torch.cat(whole)) and kept.unreadable == {"test": 1}


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1])
def test_the_encoder_always_takes_as_many_images(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Kernels are chosen by shape, so equal shapes are what equal bits rest on, also where this machine's agree anyhow."""
    taken = []

    def noted(encoder: Encoder, images: Tensor, kind: Any) -> Tensor:
        taken.append(len(images))
        return encode(encoder, images, kind)

    monkeypatch.setattr(features, "encode", noted)
    encoder = make("vit").train()
    found = encode_alike(encoder, torch.zeros(count, 3, *SIZE, dtype=torch.uint8), "mean")
    assert found.shape == (count, 48) and taken == [BATCH] * -(-count // BATCH) and encoder.training
    rows = [len(part) for _, part in extract(encoder, Photos([5] * count), np.arange(count), "mean")]
    assert sum(rows) == count


@pytest.mark.parametrize("name", ENCODERS)
def test_two_embeddings_are_the_same_file(tmp_path: Path, name: str, image_files: Callable[[int], Path]) -> None:
    save_encoder(tmp_path, make(name), name, ENCODERS[name])
    for file in ("one.csv", "two.csv", "few.csv"):
        embed(tmp_path, str(image_files(9 if file != "few.csv" else 2)), tmp_path / file)
    one, two, few = ((tmp_path / file).read_bytes() for file in ("one.csv", "two.csv", "few.csv"))
    assert one == two
    rows = [[line.split(b",", 1)[1] for line in text.splitlines()] for text in (one, few)]
    assert rows[1] == rows[0][:3], "the features of an image do not depend on what lies beside it"
    assert load(tmp_path).embed_dim == ENCODERS[name].get("embed_dim", 64) * (2 if name == "swin" else 1)


@pytest.fixture
def image_files(tmp_path: Path) -> Callable[[int], Path]:
    """A folder of so many images; the first ones are the same in each."""
    from PIL import Image

    def write(count: int) -> Path:
        folder = tmp_path / f"images-{count}"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            picture = Photos([number]).open(0).pixels().permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(folder / f"{number}.png")
        return folder

    return write
