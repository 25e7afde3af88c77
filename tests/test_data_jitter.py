"""Colour jitter against torchvision, and its draws: the same for any number of workers."""

from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mimkit.data.batches import Batches
from mimkit.data.crops import RandomCrop
from mimkit.data.draws import Stream, uniforms
from mimkit.data.jitter import DRAWS, ColorJitter, jitter
from mimkit.data.sources.folder import Folder
from mimkit.data.sources.shapes import Shapes
from tests.test_data_batches import take

OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def photos(*shape: int) -> torch.Tensor:
    """Images with all values, clipped ones and grey areas among them."""
    images = torch.randint(-60, 316, shape, generator=torch.Generator().manual_seed(0)).clamp(0, 255)
    images[..., :3, :] = images[:, :1, :3, :]
    return images.to(torch.uint8)


def close(one: torch.Tensor, other: torch.Tensor, levels: int = 1) -> None:
    """Equal but for some levels where a float lies at the edge of two."""
    difference = (one.int() - other.int()).abs()
    assert difference.max() <= levels and difference.float().mean() < 1e-2


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("channels", [1, 3])
def test_each_order_is_that_of_torchvision(order: tuple[int, ...], channels: int) -> None:
    images = photos(8, channels, 19, 23)
    factors = torch.rand(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.6
    out = jitter(images, factors, torch.tensor([order] * 8))
    for image, three, ours in zip(images, factors.tolist(), out):
        for operation in order:
            image = OPERATIONS[operation](image, three[operation])
        close(ours, image, levels=3)  # one, enlarged by what comes after


@pytest.mark.parametrize("operation", range(3))
def test_one_operation_at_its_limits(operation: int) -> None:
    """Factors 0, 1 and 2; the others at 1 leave the image as it is, whatever their place in the order."""
    images = photos(6, 3, 9, 11)
    factors = torch.ones(6, 3, dtype=torch.float64)
    factors[:, operation] = torch.tensor([0, 0.5, 1, 1.37, 2, 0]).double()
    orders = torch.tensor(list(permutations(range(3))))
    out = jitter(images, factors, orders)
    for image, three, ours in zip(images, factors, out):
        close(ours, OPERATIONS[operation](image, float(three[operation])))


def test_many_channels_have_brightness_and_contrast() -> None:
    images = photos(2, 5, 8, 8)
    factors, orders = torch.tensor([[1.2, 0.5, 0.0]] * 2).double(), torch.tensor([[2, 1, 0]] * 2)
    grey = images.double().mean((1, 2, 3), keepdim=True)
    expected = ((images * 0.5 + grey * 0.5).floor() * 1.2).floor().clamp(max=255)
    close(jitter(images, factors, orders), expected.to(torch.uint8))


def test_factors_and_orders_have_torchvisions_distribution() -> None:
    """Against the bounds that torchvision makes of the strength, and its uniform permutation."""
    draws = uniforms(0, 0, Stream.COLOR, range(6000), DRAWS)
    white = torch.full((6000, 1, 1, 1), 100, dtype=torch.uint8)
    levels = ColorJitter(0.4)(white, draws).flatten()
    low, high = v2.ColorJitter(0.4).brightness
    assert abs(levels.min() - 100 * low) <= 1 and abs(levels.max() - 100 * high) <= 1
    assert abs(levels.float().mean() - 99.5) < 0.5
    seen = Counter((draws[:, 3] * 6).astype(int).tolist())
    assert sorted(seen) == list(range(6)) and min(seen.values()) > 850


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((61 + number, 47 + 3 * number)).save(tmp_path / f"{number:02}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_colours(folder: Path, workers: int) -> None:
    make = lambda n: Batches(Folder(path=str(folder)), (31, 23), 3, 5, seed=3, workers=n, change=ColorJitter(0.4))  # noqa: E731
    assert make(0).images is None
    assert torch.equal(take(make(workers), 1, 3), take(make(0), 0, 4)[1:])


def test_a_decoded_image_and_one_in_memory_get_the_same_colours() -> None:
    whole = RandomCrop(scale=(1, 1), ratio=(1, 1), flip=0.5)
    memory, decoded = (
        Batches(Shapes(num_images=7), (32, 32), 3, 3, crop=whole, change=ColorJitter(0.5)) for _ in range(2)
    )
    decoded.images = None
    assert memory.images is not None
    assert torch.equal(take(memory, 0, 4), take(decoded, 0, 4))


def test_jitter_changes_colours_and_neither_order_nor_crops() -> None:
    """The plain batch, jittered here with the draws of its samples, is the jittered batch."""
    make = lambda strength: Batches(Shapes(num_images=12), (16, 16), 3, 4, seed=5, change=ColorJitter(strength))  # noqa: E731
    plain, jittered = take(make(0.0), 0, 6), take(make(0.3), 0, 6)
    batches = make(0.3)
    for step, (images, expected) in enumerate(zip(plain, jittered)):
        epoch, samples = batches.plan.samples(step)
        draws = uniforms(5, epoch, Stream.COLOR, range(12), DRAWS)[samples]
        assert torch.equal(ColorJitter(0.3)(images, draws), expected)
    assert not torch.equal(plain, jittered)
