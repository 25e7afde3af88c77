"""Boxes against torchvision, resampling against Pillow, draws against numpy's Generator."""

import numpy as np
import pytest
import torch
from numpy.random import Generator, Philox
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from mimkit.data.crops import DRAWS, RandomCrop, center_box, render, resized_crop
from mimkit.data.draws import Stream, permutation, replacements, uniforms
from mimkit.data.source import Pixels


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pillow_crop(image: torch.Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    top, left, height, width = box
    cut = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    across = cut.resize((size[1], height), Image.Resampling.BICUBIC)  # Pillow 13 takes rows first where that is cheaper
    return torch.from_numpy(np.array(across.resize(size[::-1], Image.Resampling.BICUBIC))).permute(2, 0, 1)


def feed_torch(monkeypatch, row: np.ndarray) -> None:
    pairs, places = iter(row[:20]), iter(row[20:22])
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda _, a, b: a + (b - a) * torch.tensor(next(pairs)))
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor([int(next(places) * high)]))


def test_draws_of_a_sample_are_its_row_of_the_epoch_table():
    """Against numpy's Generator over the same Philox."""
    table = Generator(Philox(key=np.array([7, 3], dtype=np.uint64))).random((11, DRAWS))
    np.testing.assert_array_equal(uniforms(7, 3, Stream.CROP, range(11), DRAWS), table)
    for sample in (0, 4, 10):
        np.testing.assert_array_equal(uniforms(7, 3, Stream.CROP, range(sample, sample + 1), DRAWS)[0], table[sample])


def test_streams_seeds_and_epochs_draw_different_numbers():
    rows = [uniforms(*key, range(1), 8)[0] for key in ((0, 0, Stream.CROP), (0, 1, Stream.CROP), (1, 0, Stream.CROP))]
    rows += [uniforms(0, 0, stream, range(1), 8)[0] for stream in (Stream.ORDER, Stream.REPLACEMENT)]
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_permutation_holds_each_sample_once():
    order = permutation(5, 2, 101)
    assert sorted(order.tolist()) == list(range(101))
    assert not np.array_equal(order, permutation(5, 3, 101))


def test_replacements_are_samples():
    tried = replacements(0, 0, 6, 13, 32)
    assert tried.min() >= 0 and tried.max() < 13
    assert len(set(tried.tolist())) > 5


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0), (0.01, 0.05)])
@pytest.mark.parametrize("size", [(37, 53), (400, 90), (90, 400), (1, 1), (2, 31)])
def test_boxes_are_those_of_torchvision(monkeypatch, size, scale):
    """Against torchvision's RandomResizedCrop.get_params, given the same random numbers."""
    crop = RandomCrop(scale=scale)
    draws = uniforms(0, 0, Stream.CROP, range(50), DRAWS)
    boxes, _ = crop.boxes(np.array([size] * 50), draws)
    for row, box in zip(draws, boxes):
        feed_torch(monkeypatch, row)
        expected = RandomResizedCrop.get_params(torch.empty(3, *size), list(scale), [3 / 4, 4 / 3])
        monkeypatch.undo()
        assert tuple(box) == expected


def test_flips_have_their_probability():
    draws = uniforms(0, 0, Stream.CROP, range(4000), DRAWS)
    sizes = np.full((4000, 2), 32)
    assert abs(RandomCrop(flip=0.3).boxes(sizes, draws)[1].mean() - 0.3) < 0.03
    assert not RandomCrop(flip=0.0).boxes(sizes, draws)[1].any()
    assert RandomCrop(flip=1.0).boxes(sizes, draws)[1].all()


@pytest.mark.parametrize(("image", "size"), [((32, 32), (32, 32)), ((37, 53), (29, 31)), ((20, 24), (48, 40))])
def test_batched_crop_is_that_of_pillow(image, size):
    """Against Pillow's crop and resize(BICUBIC), flipped by torch."""
    images = random_images(40, 3, *image)
    boxes, flips = RandomCrop().boxes(np.array([image] * 40), uniforms(0, 0, Stream.CROP, range(40), DRAWS))
    out = resized_crop(images, torch.from_numpy(boxes), torch.from_numpy(flips), size)
    assert flips.any() and not flips.all()
    for i in range(40):
        expected = pillow_crop(images[i], boxes[i], size)
        difference = (out[i].int() - (expected.flip(-1) if flips[i] else expected).int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.01


def test_batched_crop_of_the_whole_image_at_its_size_is_the_image():
    images = random_images(3, 5, 17, 13)
    whole = torch.tensor([[0, 0, 17, 13]] * 3)
    out = resized_crop(images, whole, torch.tensor([False, True, False]), (17, 13))
    assert torch.equal(out[0], images[0])
    assert torch.equal(out[1], images[1].flip(-1))


@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_rendered_crop_agrees_with_the_batched_one(channels):
    images = random_images(6, channels, 41, 59)
    boxes, flips = RandomCrop().boxes(np.array([[41, 59]] * 6), uniforms(1, 0, Stream.CROP, range(6), DRAWS))
    batched = resized_crop(images, torch.from_numpy(boxes), torch.from_numpy(flips), (31, 23))
    for i in range(6):
        single = render(Pixels(images[i]), tuple(boxes[i].tolist()), bool(flips[i]), (31, 23), channels)
        assert (single.int() - batched[i].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("image", "size", "box"),
    [
        ((100, 60), (32, 32), (20, 0, 60, 60)),
        ((60, 100), (32, 32), (0, 20, 60, 60)),
        ((30, 90), (20, 40), (0, 15, 30, 60)),
        ((1, 1), (32, 48), (0, 0, 1, 1)),
        ((1, 1000), (8, 8), (0, 499, 1, 1)),
    ],
)
def test_center_box_is_the_largest_of_the_views_shape(image, size, box):
    assert center_box(image, size) == box
