"""A look through the data before a run: what is there, and what is wrong with it."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mimkit.data.draws import permutation
from mimkit.data.open import Data
from mimkit.data.source import BadImage, Size, Source

HEADERS = 2000  # images of each split whose headers are read
EXAMPLES = 3  # bad images that are named


@dataclass(frozen=True)
class Survey:
    """What a look at a split found.

    images: their number. looked_at: how many headers were read.
    labelled: images with a label. classes: names, or None. largest, smallest: class name and number of its images.
    sizes: smallest, median and largest height and width (each by itself).
    modes: what pixels are, and in how many of the images looked at: {"RGB": 197, "L": 3}.
    bad: {file: reason}.
    """

    images: int
    looked_at: int
    labelled: int
    classes: list[str] | None
    smallest: tuple[str, int] | None
    largest: tuple[str, int] | None
    sizes: tuple[Size, Size, Size] | None
    modes: dict[str, int]
    bad: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.images} images" + (f", {self.labelled} with labels" if self.classes else ", no labels")]
        if self.classes and self.smallest and self.largest:
            extremes = f"{self.smallest[0]} has {self.smallest[1]} images, {self.largest[0]} {self.largest[1]}"
            lines.append(f"{len(self.classes)} classes: {extremes}")
        if self.sizes:
            smallest, median, largest = (f"{height}x{width}" for height, width in self.sizes)
            lines.append(f"height x width {smallest} to {largest}, median {median} ({self.looked_at} looked at)")
            lines.append("pixels: " + ", ".join(f"{mode} {count}" for mode, count in self.modes.items()))
        if self.bad:
            lines.append(f"{len(self.bad)} of {self.looked_at} cannot be read:")
            lines += [f"  {file}: {reason}" for file, reason in list(self.bad.items())[:EXAMPLES]]
        return "\n".join(lines)


def survey(data: Data) -> dict[str, Survey]:
    """What lies in the splits "train" and "test"; the same images are looked at each time."""
    splits = {"train": data.train, "test": data.test}
    return {name: survey_source(source) for name, source in splits.items() if source is not None}


def survey_source(source: Source) -> Survey:
    """What a source holds, from up to 2 000 headers."""
    sizes, bad = [], {}
    modes: Counter[str] = Counter()
    sample = np.sort(permutation(0, 0, len(source))[:HEADERS])
    for index in sample.tolist():
        try:
            picture = source.open(index)
            sizes.append(picture.size)
            modes[picture.mode] += 1
        except BadImage as error:
            bad[source.describe(index)] = str(error)
    smallest = largest = None
    if source.labels is not None and source.classes:
        counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes))
        smallest, largest = ((source.classes[i], int(counts[i])) for i in (counts.argmin(), counts.argmax()))
    return Survey(
        images=len(source),
        looked_at=len(sample),
        labelled=0 if source.labels is None else int((source.labels >= 0).sum()),
        classes=source.classes,
        smallest=smallest,
        largest=largest,
        sizes=extremes(np.array(sizes)) if sizes else None,
        modes=dict(modes.most_common()),
        bad=bad,
    )


def extremes(sizes: np.ndarray) -> tuple[Size, Size, Size]:
    """Minimum, median and maximum of heights and widths (N, 2)."""
    low, middle, high = sizes.min(0), np.median(sizes, 0).astype(int), sizes.max(0)
    return (int(low[0]), int(low[1])), (int(middle[0]), int(middle[1])), (int(high[0]), int(high[1]))
