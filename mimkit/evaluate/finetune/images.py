"""Labelled training images: a share of the labels, random crops by (seed, epoch, sample), timm's RandAugment."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mimkit.data.batches import REPLACEMENTS, Batches
from mimkit.data.crops import RandomCrop
from mimkit.data.draws import permutation, replacements
from mimkit.data.source import Source
from mimkit.errors import UserError
from mimkit.types import Size

ALONE = Lock()  # the modules that timm draws from are one for all threads


class LabelledBatches:
    """Random crops of labelled images and their labels, on the device, from any step on.

    policy: of RandAugment, in timm's words; None: none. batch_size, seed, workers, device: as those of `Batches`.
    bad: {index: reason} of the images that could not be read; another image stands in for each, with its own label.
    """

    def __init__(
        self,
        source: Source,
        image_size: Size,
        in_chans: int,
        batch_size: int,
        crop: RandomCrop,
        policy: str | None,
        seed: int,
        workers: int,
        device: torch.device,
    ):
        assert source.labels is not None
        self.labels = torch.from_numpy(source.labels).to(device)
        self.batches = Batches(
            source, image_size, in_chans, batch_size,
            crop=crop, seed=seed, workers=workers, device=device, max_bad=1.0,
            change=None if policy is None else RandAugment(policy, image_size, in_chans),
        )  # fmt: skip
        self.bad = self.batches.bad
        self.steps_per_epoch = self.batches.steps_per_epoch

    def start(self, step: int = 0) -> Iterator[tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]]:
        """Images and labels from the global step on. Raises UserError as `Batches.start` does."""
        for number, views in zip(count(step), self.batches.start(step)):
            epoch, samples = self.batches.plan.samples(number)
            yield views["image"], self.labels[[self._shown(epoch, int(sample)) for sample in samples]]

    def _shown(self, epoch: int, sample: int) -> int:
        """The sample, or the readable one that `Batches` put in its place."""
        if sample not in self.bad:
            return sample
        plan = self.batches.plan
        others = replacements(plan.seed, epoch, sample, plan.num_images, REPLACEMENTS)
        return next(int(other) for other in others if int(other) not in self.bad)


class RandAugment:
    """timm's RandAugment of 8-bit images, drawn for each image from its own seed.

    policy: in timm's words, such as rand-m9-mstd0.5-inc1.
    Raises UserError where timm does not know them, and for images of other than three channels.
    """

    def __init__(self, policy: str, size: Size, in_chans: int):
        from timm.data.transforms_factory import create_transform

        if in_chans != 3:
            raise UserError(
                f"finetune.rand_augment needs three channels, the encoder reads {in_chans}; take rand_augment=null"
            )
        try:
            if not policy.startswith("rand"):
                raise ValueError("it should begin with 'rand'")
            stages = create_transform(
                (3, *size),
                is_training=True,
                auto_augment=policy,
                interpolation="bicubic",
                separate=True,
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(
                f"finetune.rand_augment={policy}: timm does not know it ({error}); such as rand-m9-mstd0.5-inc1"
            ) from error
        self.transform: Any = stages[1]  # between the crop and the standardisation
        for operation in self.transform.transforms[0].ops:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize

    def __call__(self, images: UInt8[Tensor, "B 3 h w"], draws: np.ndarray) -> UInt8[Tensor, "B 3 h w"]:
        """Augmented images, from `draws` (B, n) in [0, 1), of which the first one counts."""
        from PIL import Image

        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        out = np.empty_like(pixels)
        with ALONE:
            for row, draw in enumerate(draws[:, 0]):
                with drawn_from(int(draw * 2**32)):
                    out[row] = self.transform(Image.fromarray(pixels[row]))
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous().to(images.device)


def posterize(image: Any, bits: int, **_: Any) -> Any:
    """timm's operation; it may ask for 0 bits, a black image, which Pillow refuses from its version 13 on."""
    from timm.data.auto_augment import posterize as with_bits

    return with_bits(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """What Python's and numpy's global generators draw inside follows from a 32-bit seed; after it they go on as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def few_labels(labels: Int[np.ndarray, " N"], share: float, seed: int) -> Int[np.ndarray, " n"]:
    """Indices of that share of each class's images, at least one of each, in ascending order.

    They follow from the seed, the same for every encoder; a smaller share's images are among those of a larger one.
    """
    chosen = []
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        chosen.append(images[permutation(seed, int(label), len(images))[: max(1, round(share * len(images)))]])
    return np.sort(np.concatenate(chosen))


class Blend:
    """What timm does to a whole batch: random erasing, then mixup or cutmix; and the classes that are wanted then.

    standardize: the encoder's, as erased places are filled with standard normal numbers.
    erasing: probability per image. mixup, cutmix: alpha of the Beta distribution, 0 is none; with both, one of them is
    drawn for each batch. label_smoothing: share of the wanted probability that is spread over all classes.
    """

    def __init__(
        self,
        standardize: Any,
        erasing: float,
        mixup: float,
        cutmix: float,
        label_smoothing: float,
        classes: int,
        device: torch.device,
    ):
        from timm.data.mixup import Mixup
        from timm.data.random_erasing import RandomErasing

        self.standardize = standardize
        self.erase = RandomErasing(erasing, mode="pixel", device=device) if erasing else None
        self.mix: Any = None
        if mixup or cutmix:
            self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=classes)

    def __call__(
        self, images: UInt8[Tensor, "B C H W"], labels: Int[Tensor, " B"], seed: int
    ) -> tuple[UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"], Int[Tensor, " B"] | Float[Tensor, "B K"]]:
        """Images, in [0, 1] units if anything is done to them, and labels or probabilities of the classes.

        Draws follow from `seed`, those of erased pixels from torch's global generator.
        """
        if self.erase is None and self.mix is None:
            return images, labels
        wanted = labels
        with drawn_from(seed):
            pixels = self.standardize(images)
            if self.erase is not None:
                pixels = self.erase(pixels)
            if self.mix is not None:
                pixels, wanted = self.mix(pixels, labels)
        return self.standardize.invert(pixels), wanted
