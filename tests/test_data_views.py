"""Further views of a crop: the same geometry, own colours, the same for any number of workers and from memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

import mimkit
from mimkit.data.batches import Batches, Views
from mimkit.data.crops import RandomCrop
from mimkit.data.jitter import ColorJitter
from mimkit.data.looks import Looks, blurred, recolored, shifted
from mimkit.data.sources.folder import Folder
from mimkit.data.sources.shapes import Shapes
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.settings import ViewSettings
from tests.conftest import TINY

WHOLE = RandomCrop(scale=(1, 1), ratio=(1, 1), flip=0)


def first(batches: Batches) -> Views:
    stream = batches.start(1)
    views = next(stream)
    stream.close()
    return views


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((61, 47), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    return tmp_path


VIEWS = {
    "small": ViewSettings(image_size=8),
    "near": ViewSettings(shift=5, color_jitter=0.4, hue=0.1, jitter_prob=0.8, grayscale=0.2, blur=0.5),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_views(photos: Path, workers: int) -> None:
    def make(workers: int) -> Views:
        source = Folder(path=str(photos))
        return first(Batches(source, (16, 16), 3, 4, repeats=2, change=ColorJitter(0.2), views=VIEWS, workers=workers))

    ours, theirs = make(workers), make(0)
    assert {name: tuple(x.shape) for name, x in ours.items()} == {
        "image": (8, 3, 16, 16),
        "small": (8, 3, 8, 8),
        "near": (8, 3, 16, 16),
    }
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_images_in_memory_get_the_views_that_decoded_ones_get() -> None:
    memory, decoded = (Batches(Shapes(num_images=7), (32, 32), 3, 3, crop=WHOLE, repeats=2, views=VIEWS) for _ in "ab")
    decoded.images = None
    for name, images in first(memory).items():
        difference = (images.int() - first(decoded)[name].int()).abs()
        assert difference.max() <= 3 and difference.float().mean() < 0.05


def test_repeats_are_other_crops_of_the_same_images_and_the_first_is_that_of_a_batch_without_them() -> None:
    plain, twice = (first(Batches(Shapes(num_images=7), (32, 32), 3, 3, repeats=n)) for n in (1, 2))
    assert torch.equal(twice["image"][:3], plain["image"]) and not torch.equal(twice["image"][3:], plain["image"])
    still = first(Batches(Shapes(num_images=7), (32, 32), 3, 3, repeats=2, crop=WHOLE))["image"]
    assert torch.equal(still[:3], still[3:])


def test_a_view_of_another_size_is_the_same_crop() -> None:
    views = first(Batches(Shapes(num_images=9), (32, 32), 3, 8, views={"small": ViewSettings(image_size=16)}))
    assert views["small"].shape[2:] == (16, 16)
    halved = F.resize(views["image"], [16, 16], antialias=True).float()
    assert (halved - views["small"].float()).abs().mean() < 6


def test_a_shifted_view_lies_below_and_right_by_as_many_pixels_as_drawn() -> None:
    crops = torch.arange(12 * 12, dtype=torch.uint8).view(1, 1, 12, 12).expand(3, -1, -1, -1)
    draws = np.array([[0.0, 0.0], [0.99, 0.5], [0.25, 0.99]])
    parts = shifted(crops, (8, 8), 4, draws)
    for part, (down, right) in zip(parts, [(0, 0), (3, 2), (1, 3)]):
        assert torch.equal(part, crops[0, :, down : down + 8, right : right + 8])
    looks = Looks((8, 8), views={"near": ViewSettings(shift=4)})
    assert looks.sizes == {"image": (12, 12)}
    done = looks.finish({"image": crops}, None, {"near": np.pad(draws, ((0, 0), (0, 10)))})
    assert torch.equal(done["image"], crops[..., :8, :8]) and torch.equal(done["near"], parts)


def test_a_blur_is_torchvisions_gaussian() -> None:
    images = torch.randint(0, 256, (4, 3, 20, 22), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0], dtype=torch.float64)
    for image, out, width in zip(images, blurred(images, sigma), sigma.tolist()):
        assert (F.gaussian_blur(image, [13, 13], [width, width]).int() - out.int()).abs().max() <= 1


def test_colours_of_a_view_change_where_the_draws_say_so() -> None:
    images = torch.randint(0, 256, (4, 3, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    draws = np.full((4, 10), 0.9)
    draws[1, 6] = 0.1  # grey
    draws[2, 7] = 0.1  # blurred
    draws[3, 5] = 0.1  # jittered: all factors 1 but the hue's, by 0.1 * (2 * 0.9 - 1)
    draws[3, :3] = 0.5
    view = ViewSettings(color_jitter=0.4, hue=0.1, jitter_prob=0.5, grayscale=0.5, blur=0.5)
    out = recolored(images, view, draws)
    assert torch.equal(out[0], images[0])
    assert (out[1].int() - F.rgb_to_grayscale(images[1], 3).int()).abs().max() <= 1
    assert torch.equal(out[2:3], blurred(images[2:3], torch.tensor([0.1 + 1.9 * 0.9], dtype=torch.float64)))
    assert (out[3].int() - F.adjust_hue(images[3], 0.08).int()).abs().max() <= 1


def test_a_recipes_views_are_checked_and_come_back_from_its_text() -> None:
    recipe = load_recipe(TINY, ["data.views={tokens: {image_size: 8}, near: {shift: 3}}"])
    assert recipe.batches.views == {"tokens": ViewSettings(image_size=8), "near": ViewSettings(shift=3)}
    import yaml

    assert load_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    for views, told in (
        ("{tokens: {imgsize: 8}}", "view 'tokens' has no option 'imgsize'; did you mean 'image_size'"),
        ("{image: {shift: 3}}", "not 'image'"),
        ("{near: {shift: 3, image_size: 8}}", "is shifted"),
        ("3", "named mappings"),
    ):
        with pytest.raises(UserError, match=told) as raised:
            load_recipe(TINY, [f"data.views={views}"])
        assert "\n" not in str(raised.value)


def test_a_model_makes_the_views_of_its_recipe_where_only_images_are_at_hand(tiny: dict[str, Any]) -> None:
    model = mimkit.build(tiny, "data.views={tokens: {image_size: 8}, near: {shift: 3}}")
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    views = model.views(images)
    assert views["near"] is images and views["tokens"].shape == (2, 3, 8, 8)
    assert views["tokens"].min() >= 0 and views["tokens"].max() <= 1
