"""The endless stream of training batches, the same for any number of workers and from any step on."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimkit.data import jitter
from mimkit.data.crops import DRAWS, RandomCrop, render, resized_crop
from mimkit.data.draws import Stream, permutation, replacements, uniforms
from mimkit.data.looks import DRAWS as VIEW_DRAWS
from mimkit.data.looks import Change, Looks
from mimkit.data.source import BadImage, Size, Source
from mimkit.errors import UserError
from mimkit.settings import ViewSettings

WORKER_TIMEOUT = 300  # seconds without a batch after which a worker counts as hung
REPLACEMENTS = 32  # samples tried in place of one that cannot be read
Bad = dict[int, str]
Views = dict[str, UInt8[Tensor, "..."]]  # (B, C, H, W), each view of its own size


class Batches:
    """Random crops of a source as uint8 batches on a device, endlessly: `image` and further views by their names.

    Order, crops, flips and colours depend on (seed, epoch, sample) only; torch's and numpy's global generators are not touched.
    Small images (`Source.as_tensor`) lie on the device and are cropped there a whole batch at a time, without workers.

    batch_size: images per step of this rank; a step of all ranks takes world_size times as many.
    crop: random resized crop and flip.
    repeats: crops of each image in a batch.
    change: what happens to the colours of all views of a crop, such as `ColorJitter`.
    views: further views of each crop.
    seed: of the order, the crops and the colours.
    workers: processes that decode; 0 decodes in this one, on as many threads as torch has.
    rank, world_size: this process takes its part of each step's images.
    max_bad: fraction of the images that may be unreadable, rounded up to whole images; beyond it UserError stops.
    on_bad: called once per unreadable image with its file and the reason.

    An image that cannot be read is replaced by another sample, a function of (seed, epoch, image), and noted in
    `bad`: {index: reason}. Raises UserError where there are fewer images than one step takes.
    """

    def __init__(
        self,
        source: Source,
        image_size: Size,
        in_chans: int,
        batch_size: int,
        *,
        crop: RandomCrop | None = None,
        repeats: int = 1,
        change: Change | None = None,
        views: Mapping[str, ViewSettings] | None = None,
        seed: int = 0,
        workers: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        max_bad: float = 0.01,
        on_bad: Callable[[str, str], None] | None = None,
    ):
        self.source, self.batch_size, self.workers, self.device = source, batch_size, workers, torch.device(device)
        self.allowed_bad, self.on_bad = ceil(max_bad * len(source)), on_bad
        self.bad: Bad = {}
        self.steps_per_epoch = len(source) // (batch_size * world_size)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{source.name}: {len(source)} images are fewer than the {batch_size * world_size} of one step; "
                f"data.batch_size={max(1, len(source) // world_size)} would fit"
            )
        self.plan = Plan(len(source), batch_size, self.steps_per_epoch, seed, rank, world_size)
        self.crop, self.in_chans = crop or RandomCrop(), in_chans
        self.looks = Looks(image_size, change, views or {})
        self.draws = Draws(self.plan, self.looks, repeats)
        images = source.as_tensor(in_chans)
        self.images = None if images is None else images.to(self.device)

    def start(self, step: int = 0) -> Iterator[Views]:
        """Batches on the device from the global step on. Closing the iterator ends its workers.

        Raises UserError where too many images cannot be read, or a worker dies.
        """
        return self._from_memory(step) if self.images is not None else self._decoded(step)

    def _from_memory(self, start: int) -> Iterator[Views]:
        assert self.images is not None
        sizes = np.array([self.images.shape[2:]])
        epoch, draws = -1, self.draws
        for step in count(start):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                of_epoch = draws.table(epoch, range(draws.rows))
            _, samples = self.plan.samples(step)
            crops, colors, looks = (taken(table, draws.places(samples)) for table in of_epoch)
            boxes, flips = self.crop.boxes(sizes, crops)
            wanted = (np.tile(samples, draws.repeats), boxes, flips)
            index, box, flip = (torch.from_numpy(a).to(self.device, non_blocking=True) for a in wanted)
            rendered = {
                name: resized_crop(self.images[index], box, flip, size) for name, size in self.looks.sizes.items()
            }
            yield self.looks.finish(rendered, colors, looks)

    def _decoded(self, start: int) -> Iterator[Views]:
        steps = DecodedSteps(self.source, self.plan, self.crop, self.draws, self.looks, self.in_chans, self.allowed_bad)
        loader: Iterator[tuple[Views | None, Bad]]
        if self.workers:
            loader = iter(
                DataLoader(
                    steps,
                    batch_size=None,
                    sampler=count(start),
                    num_workers=self.workers,
                    timeout=WORKER_TIMEOUT,
                    pin_memory=self.device.type == "cuda",
                    generator=torch.Generator(),  # else the global one would be drawn from
                    worker_init_fn=ignore_ctrl_c,
                )
            )
        else:
            steps.map = ThreadPoolExecutor(torch.get_num_threads()).map
            loader = (steps[step] for step in count(start))
        while True:
            try:
                views, bad = next(loader)
            except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while handing a batch over
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                del loader  # else torch goes on to raise wherever a child ends, while it knows of a dead worker
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise UserError(
                    f"a data worker died ({reason}); mostly memory or /dev/shm has run out: try fewer than "
                    f"data.workers={self.workers}"
                ) from error.with_traceback(None)
            self._note(bad)
            if views is None:
                raise UserError(f"{self._bad_so_far()}; {REPLACEMENTS} samples tried in place of one were bad, too")
            yield {name: images.to(self.device, non_blocking=True) for name, images in views.items()}

    def _note(self, bad: Bad) -> None:
        """Keeps and tells of newly found bad images. Raises UserError where they are too many."""
        for index in bad.keys() - self.bad.keys():
            self.bad[index] = bad[index]
            if self.on_bad:
                self.on_bad(self.source.describe(index), bad[index])
        if len(self.bad) > self.allowed_bad:
            raise UserError(f"{self._bad_so_far()}; data.max_bad allows {self.allowed_bad}: raise it or mend the data")

    def _bad_so_far(self) -> str:
        index, reason = next(iter(self.bad.items()))
        share = f"{len(self.bad)} of {len(self.source)} images ({len(self.bad) / len(self.source):.1%})"
        return f"{self.source.name}: {share} cannot be read, such as {self.source.describe(index)}: {reason}"


def ignore_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one alone decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Plan:
    """Which samples a global step takes."""

    def __init__(self, num_images: int, batch_size: int, steps_per_epoch: int, seed: int, rank: int, world_size: int):
        self.num_images, self.steps_per_epoch, self.seed = num_images, steps_per_epoch, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def samples(self, step: int) -> tuple[int, np.ndarray]:
        """The step's epoch, and this rank's samples int64 (B,): its part of one permutation over all ranks."""
        epoch, step = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, permutation(self.seed, epoch, self.num_images)
        first = (step * self.world_size + self.rank) * self.batch_size
        return epoch, self.order[first : first + self.batch_size]


class Draws:
    """The random numbers of each crop: a row for each sample, then as many again for each further repeat."""

    def __init__(self, plan: Plan, looks: Looks, repeats: int):
        self.plan, self.looks, self.repeats = plan, looks, repeats
        self.rows = plan.num_images * repeats

    def places(self, samples: np.ndarray) -> np.ndarray:
        """The rows of a step's samples (B,): (repeats · B,), one repeat after the other."""
        return np.concatenate([samples + repeat * self.plan.num_images for repeat in range(self.repeats)])

    def table(self, epoch: int, rows: range) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
        """Numbers of the crops, of the colours that all views share, and of each view."""
        seed, names = self.plan.seed, list(self.looks.views)
        colors = uniforms(seed, epoch, Stream.COLOR, rows, jitter.DRAWS) if self.looks.change else None
        views = {
            name: uniforms(seed, epoch, Stream.VIEW, range(start + rows.start, start + rows.stop), VIEW_DRAWS)
            for start, name in zip(range(0, len(names) * self.rows, self.rows), names)
        }
        return uniforms(seed, epoch, Stream.CROP, rows, DRAWS), colors, views


def taken(table: Any, rows: np.ndarray) -> Any:
    """These rows of an array, of each array of a dict, or None of none."""
    if isinstance(table, dict):
        return {name: values[rows] for name, values in table.items()}
    return None if table is None else table[rows]


class DecodedSteps(Dataset[tuple[Views | None, Bad]]):
    """The batches by global step: uint8 images and their views, and the bad images met on the way.

    None in place of the images where no replacement could be read. `map`: how the images of a batch are worked through,
    as the builtin: one after another, as suits a worker process.
    """

    map: Callable[[Callable[[int], bool], Iterable[int]], Iterable[bool]] = map

    def __init__(
        self,
        source: Source,
        plan: Plan,
        crop: RandomCrop,
        draws: Draws,
        looks: Looks,
        in_chans: int,
        allowed_bad: int,
    ):
        self.source, self.plan, self.crop, self.draws = source, plan, crop, draws
        self.looks, self.in_chans = looks, in_chans
        self.bad: Bad = {}
        self.allowed_bad = allowed_bad

    def __getitem__(self, step: int) -> tuple[Views | None, Bad]:
        epoch, samples = self.plan.samples(step)
        rows, bad = self.draws.places(samples), Bad()
        sizes = {name: self.looks.sizes.get(name, self.looks.image_size) for name in ("image", *self.looks.views)}
        sizes["image"] = self.looks.image_size
        views = {
            name: torch.empty((len(rows), self.in_chans, *size), dtype=torch.uint8) for name, size in sizes.items()
        }

        def fill(place: int) -> bool:
            found = self._sample(epoch, int(rows[place]), bad)
            for name, image in (found or {}).items():
                views[name][place] = image[0]
            return found is not None

        return (views if all(self.map(fill, range(len(rows)))) else None), bad

    def _sample(self, epoch: int, row: int, bad: Bad) -> Views | None:
        """The crop of a row and its views (1, C, h, w), or those of the first readable replacement."""
        draws, colors, looks = self.draws.table(epoch, range(row, row + 1))
        for candidate in self._candidates(epoch, row % self.plan.num_images):
            try:
                if candidate in self.bad:
                    raise BadImage(self.bad[candidate])
                picture = self.source.open(candidate)
                boxes, flips = self.crop.boxes(np.array([picture.size]), draws)
                box, flip = tuple(boxes[0].tolist()), bool(flips[0])
                rendered = {
                    name: render(picture, box, flip, size, self.in_chans)[None]
                    for name, size in self.looks.sizes.items()
                }
                return self.looks.finish(rendered, colors, looks)
            except BadImage as error:
                bad[candidate] = self.bad[candidate] = str(error)
                if len(self.bad) > self.allowed_bad:
                    return None
        return None

    def _candidates(self, epoch: int, sample: int) -> Iterator[int]:
        yield sample
        yield from replacements(self.plan.seed, epoch, sample, self.plan.num_images, REPLACEMENTS).tolist()
