"""The data path against the one that the field uses: torchvision's ImageFolder, Pillow and per-image transforms.

    python benchmarks/data.py FOLDER [--json]

FOLDER holds JPEGs. Both paths give 224-px random resized crops with flips as uint8, in this process, on one thread,
taking turns; the figure is the median over the rounds. The second comparison crops 32-px images held in memory, a batch
at a time on our side, one by one on the other.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import datasets, transforms

from mimkit.data.batches import Batches
from mimkit.data.sources.folder import Folder
from mimkit.data.sources.shapes import Shapes

ROUNDS = 5


def authors_transform(size: int) -> transforms.Compose:
    """What MAE's authors do, up to the uint8 tensor."""
    crop = transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])


def images_per_second(paths: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Median rate of each path, which returns how many images it gave; they take turns, after a round to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(ROUNDS + 1):
        for name, path in paths.items():
            start = time.perf_counter()
            count = path()
            if turn:
                rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def files(folder: str) -> dict[str, float]:
    """Decoding and cropping the files of a folder."""
    source = Folder(path=folder, labels="none")
    batches = Batches(source, (224, 224), 3, min(32, len(source)), max_bad=0)
    step = 0

    def ours() -> int:
        nonlocal step
        stream = batches.start(step)
        step += batches.steps_per_epoch
        return sum(len(views["image"]) for views in islice(stream, batches.steps_per_epoch))

    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "images").mkdir()
        for index in range(len(source)):
            link = Path(root) / "images" / f"{index}{Path(source.describe(index)).suffix}"
            link.symlink_to(Path(source.describe(index)).absolute())
        theirs = datasets.ImageFolder(root, authors_transform(224))
        return images_per_second({"mimkit": ours, "torchvision": lambda: sum(1 for _, _ in theirs)})


def memory() -> dict[str, float]:
    """Cropping 32-px images that lie in memory."""
    batches = Batches(Shapes(num_images=4096), (32, 32), 3, 256)
    assert batches.images is not None
    pictures = [Image.fromarray(np.asarray(image)) for image in batches.images[:512].permute(0, 2, 3, 1)]
    transform = authors_transform(32)

    def ours() -> int:
        return sum(len(views["image"]) for views in islice(batches.start(0), batches.steps_per_epoch))

    def theirs() -> int:
        return len(torch.stack([transform(picture) for picture in pictures]))

    return images_per_second({"mimkit": ours, "torchvision": theirs})


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of JPEGs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {"files, 224 px": files(arguments.folder), "in memory, 32 px": memory()}
    for rates in results.values():
        rates["ratio"] = rates["mimkit"] / rates["torchvision"]
    if arguments.json:
        print(json.dumps(results))
        return
    for name, rates in results.items():
        ours, theirs = rates["mimkit"], rates["torchvision"]
        print(f"{name:18} mimkit {ours:8.0f} img/s   torchvision {theirs:8.0f} img/s   {rates['ratio']:.2f}x")


if __name__ == "__main__":
    main()
