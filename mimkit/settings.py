"""The plain sections of a recipe: batches (under `data`), `optim`, `train`, `probe`. Fields are options, defaults the field's."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from mimkit.geometry import Size

Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """A further view of each crop, for targets that read it by its name; without options it is the image itself.

    image_size: pixels, a side or [height, width], to which the same crop is brought; null is the recipe's.
    shift: the view lies up to shift - 1 pixels below and right of the image, both cut from a crop that many pixels larger.
    color_jitter: as data.color_jitter, of this view alone.
    hue: x turns the hues by a part of the colour circle in [-x, x], as one more change among those of color_jitter.
    jitter_prob: probability of these changes.
    grayscale: probability of losing the colours.
    blur: probability of a Gaussian blur, whose standard deviation is uniform in [0.1, 2] pixels.
    """

    image_size: Annotated[int, Gt(0)] | tuple[Annotated[int, Gt(0)], Annotated[int, Gt(0)]] | None = None
    shift: Annotated[int, Ge(0)] = 0
    color_jitter: Share = 0.0
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0
    jitter_prob: Share = 1.0
    grayscale: Share = 0.0
    blur: Share = 0.0

    def size(self, image_size: Size) -> Size:
        """Height and width of the view of images of `image_size`."""
        size = image_size if self.image_size is None else self.image_size
        return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How images become batches; these options stand in the recipe's `data`, beside those of the source.

    batch_size: images per optimizer step.
    workers: processes that decode images; data held in memory needs none.
    crop_scale: smallest and largest share of the image's area that a crop takes.
    crop_ratio: lowest and highest ratio of width to height of a crop.
    flip: probability of mirroring left to right.
    color_jitter: x changes brightness, contrast and saturation of a crop, each by a factor in [1-x, 1+x], in random order.
    max_bad: share of the files that may be unreadable before the run stops.
    repeats: crops of each image in a batch, each drawn for itself: first one of every image, then the next of every image.
    views: further views of each crop by name, as {tokens: {image_size: 112}}.
    """

    batch_size: Annotated[int, Gt(0)] = 256
    workers: Annotated[int, Ge(0)] = 0
    crop_scale: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]] = (0.2, 1.0)
    crop_ratio: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (3 / 4, 4 / 3)
    flip: Share = 0.5
    color_jitter: Share = 0.0
    max_bad: Share = 0.01
    repeats: Annotated[int, Gt(0)] = 1
    views: dict[str, ViewSettings] | None = None


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW; the rate warms up linearly, then falls along a half cosine or in steps, all per optimizer step.

    base_lr: rate for a batch of 256; it, min_lr and warmup_lr are multiplied by batch_size / 256.
    lr: the rate itself, instead of base_lr; it, min_lr and warmup_lr are taken as they are.
    min_lr: rate at the end of the cosine.
    warmup_lr: rate at the first step of the warm-up.
    schedule: after the warm-up a half cosine to min_lr, or steps.
    drop_epochs: epochs after which the rate is multiplied by drop_factor, for the schedule step.
    drop_factor: of each drop.
    weight_decay: decoupled; not for biases and other one-dimensional parameters.
    no_decay: last parts of names (cls_token, pos_embed) of further parameters that do not decay.
    betas: decay of the running means of gradient and squared gradient.
    eps: added to the root of the second mean.
    """

    base_lr: Annotated[float, Gt(0)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    min_lr: Annotated[float, Ge(0)] = 0.0
    warmup_lr: Annotated[float, Ge(0)] = 0.0
    schedule: Literal["cosine", "step"] = "cosine"
    drop_epochs: tuple[Annotated[float, Gt(0)], ...] = ()
    drop_factor: Annotated[float, Gt(0), Lt(1)] = 0.1
    weight_decay: Annotated[float, Ge(0)] = 0.05
    no_decay: tuple[str, ...] = ()
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.95)
    eps: Annotated[float, Gt(0)] = 1e-8


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Length, saving and machine.

    epochs: length in passes over the data; may be fractional.
    max_steps: length in optimizer steps, instead of epochs.
    warmup_epochs: passes during which the rate rises from optim.warmup_lr.
    clip_grad: largest norm of the gradient; null does not clip.
    accumulate: parts that a batch is split into to save memory; each counts by its number of images, so the gradient is
        the batch's, but for losses whose masks differ in size; refused for a loss that compares the images of a batch.
    checkpoint_every: epochs between checkpoints; one is always written at the end.
    keep_checkpoints: how many of the newest checkpoints stay on disk.
    log_every: optimizer steps between lines of metrics.jsonl.
    pictures_every: epochs between refreshed pictures; they are always drawn at the end.
    precision: auto is bf16 autocast on a GPU and float32 on a CPU.
    device: auto is a GPU where there is one.
    """

    epochs: Annotated[float, Gt(0)] | None = None
    max_steps: Annotated[int, Gt(0)] | None = None
    warmup_epochs: Annotated[float, Ge(0)] = 0.0
    clip_grad: Annotated[float, Gt(0)] | None = None
    accumulate: Annotated[int, Gt(0)] = 1
    checkpoint_every: Annotated[float, Gt(0)] = 1.0
    keep_checkpoints: Annotated[int, Gt(0)] = 2
    log_every: Annotated[int, Gt(0)] = 10
    pictures_every: Annotated[float, Gt(0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The online probe: weighted k nearest neighbours on frozen features of labelled images, never used in training.

    every: epochs between probes; the untrained encoder and the last one are always probed. 0: no probe at all.
    k: neighbours that vote.
    temperature: of the votes, exp(cosine / temperature), as in DINO.
    bank: most training images that are neighbours.
    queries: most test images that are classified.
    """

    every: Annotated[float, Ge(0)] = 1.0
    k: Annotated[int, Gt(0)] = 20
    temperature: Annotated[float, Gt(0)] = 0.07
    bank: Annotated[int, Gt(0)] = 20000
    queries: Annotated[int, Gt(0)] = 2000
