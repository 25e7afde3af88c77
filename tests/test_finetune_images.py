"""What fine-tuning makes of the images: few labels, RandAugment, erasing, mixup; nobody else's random numbers change."""
# ruff: noqa: NPY002 (timm draws from numpy's global generator)

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data.crops import RandomCrop
from mimkit.data.open import open_data
from mimkit.data.sources.shapes import Shapes
from mimkit.errors import UserError
from mimkit.evaluate.finetune.images import Blend, LabelledBatches, RandAugment, drawn_from, few_labels, posterize
from mimkit.types import Standardize

POLICY = "rand-m9-mstd0.5-inc1"
CPU = torch.device("cpu")


def test_few_labels_are_balanced_nested_and_follow_from_the_seed() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), (100, 50, 10, 3)))
    tenth = few_labels(labels, 0.1, 0)
    assert np.bincount(labels[tenth]).tolist() == [10, 5, 1, 1]
    assert (np.diff(tenth) > 0).all() and np.array_equal(tenth, few_labels(labels, 0.1, 0))
    assert not np.array_equal(tenth, few_labels(labels, 0.1, 1))
    assert set(few_labels(labels, 0.02, 0)) < set(tenth) < set(few_labels(labels, 0.5, 0))
    assert np.array_equal(few_labels(labels, 1.0, 0), np.arange(163))


def global_state() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def batches(source: Shapes, step: int = 0, policy: str | None = POLICY, workers: int = 0) -> LabelledBatches:
    return LabelledBatches(source, (24, 24), 3, 8, RandomCrop(), policy, 5, workers, CPU)


def test_a_batch_follows_from_seed_and_step_and_leaves_the_global_generators_alone() -> None:
    source = Shapes(image_size=(24, 24), in_chans=3, num_images=40, num_test=10)
    before = global_state()
    stream = batches(source).start()
    whole = [next(stream) for _ in range(7)]  # into the second epoch
    random.random(), np.random.rand()
    later = next(batches(source).start(6))
    assert global_state()[2] == before[2]
    assert torch.equal(whole[6][0], later[0]) and torch.equal(whole[6][1], later[1])
    plain = next(batches(source, policy=None).start(6))
    assert torch.equal(plain[1], later[1]) and (plain[0] != later[0]).any((1, 2, 3)).float().mean() > 0.5


def test_the_global_generators_go_on_as_before() -> None:
    before = global_state()
    with drawn_from(3):
        inside = random.random(), np.random.rand()
    assert global_state() == before
    with drawn_from(3):
        assert (random.random(), np.random.rand()) == inside


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes and many sizes, one of them broken; the label can be seen: red is 10 + 100 times it."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        for number in range(12):
            folder = root / split / "abc"[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((30 + number, 40, 3), 10 + 100 * (number % 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (root / "train" / "b" / "4.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_go_with_the_images_also_where_one_stands_in_for_a_broken_one(photos: Path, workers: int) -> None:
    """By images whose label can be seen; with workers and without, files of any size."""
    source = open_data(str(photos), {}, (24, 24), 3).train
    loader = LabelledBatches(source, (24, 24), 3, 4, RandomCrop(), None, 0, workers, CPU)
    stream = loader.start()
    for _ in range(9):  # three epochs
        images, labels = next(stream)
        assert ((images[:, 0, 12, 12].int() - 10) // 100).tolist() == labels.tolist()
    stream.close()
    assert len(loader.bad) == 1


def test_randaugment_of_files_does_not_depend_on_workers(photos: Path) -> None:
    source = open_data(str(photos), {}, (24, 24), 3).train
    found = []
    for workers in (0, 2):
        stream = LabelledBatches(source, (24, 24), 3, 4, RandomCrop(), POLICY, 0, workers, CPU).start()
        found.append([next(stream) for _ in range(4)])
        stream.close()
    for (one, labels), (other, same) in zip(*found, strict=True):
        assert torch.equal(one, other) and torch.equal(labels, same)


def test_randaugment_is_timms_for_each_image_by_its_own_seed() -> None:
    """By timm's transform on Pillow images, and every operation at its strongest."""
    from timm.data.auto_augment import rand_augment_transform

    images = torch.randint(0, 256, (40, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = np.random.default_rng(0).random((40, 4))
    ours = RandAugment(POLICY, (24, 24), 3)(images, draws)
    hparams = {
        "translate_const": int(24 * 0.45),
        "img_mean": (124, 116, 104),
        "interpolation": Image.Resampling.BICUBIC,
    }
    theirs = rand_augment_transform(POLICY, hparams)
    for image, out, draw in zip(images, ours, draws[:, 0]):
        with drawn_from(int(draw * 2**32)):
            try:
                wanted = theirs(Image.fromarray(image.permute(1, 2, 0).numpy()))
            except ValueError:  # Pillow refuses 0 bits
                continue
        assert np.array_equal(np.asarray(wanted), out.permute(1, 2, 0).numpy())
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    assert not np.asarray(posterize(image, 0)).any()
    assert np.array_equal(np.asarray(posterize(image, 3)), np.asarray(image) & 0b11100000)
    strongest = RandAugment("rand-m10-n15-p1-inc1", (24, 24), 3)
    assert strongest(images, draws).shape == images.shape


def test_blending_is_timms_and_the_wanted_probabilities_sum_to_1() -> None:
    """Mixup before or after standardising is the same; erased places hold standard normal numbers."""
    from timm.data.mixup import Mixup

    standardize = Standardize(3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    images, labels = torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8), torch.arange(8) % 5
    for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0)):
        blended, wanted = Blend(standardize, 0.0, mixup, cutmix, 0.1, 5, CPU)(images, labels, 3)
        with drawn_from(3):
            pixels, theirs = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=5)(images / 255, labels)
        torch.testing.assert_close(blended, pixels, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(wanted, theirs)
        torch.testing.assert_close(wanted.sum(1), torch.ones(8))
    erased, same = Blend(standardize, 1.0, 0.0, 0.0, 0.1, 5, CPU)(images, labels, 3)
    changed = (erased - images / 255).abs() > 1e-4
    values = standardize(erased)[changed]
    assert same is labels and changed.flatten(1).any(1).all()
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    untouched, _ = Blend(standardize, 0.0, 0.0, 0.0, 0.1, 5, CPU)(images, labels, 3)
    assert untouched is images


@pytest.mark.parametrize(("policy", "channels"), [("rand-q9", 3), ("original", 3), (POLICY, 1)])
def test_what_randaugment_cannot_do_is_told(policy: str, channels: int) -> None:
    with pytest.raises(UserError, match=r"finetune\.rand_augment"):
        RandAugment(policy, (24, 24), channels)
