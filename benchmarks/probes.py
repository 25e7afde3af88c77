"""How long the kNN and the linear probe take once the features are extracted.

    python benchmarks/probes.py [--json] [--widths 96 192 768]
    python benchmarks/probes.py [--json] --data TRAIN.npz TEST.npz

50 000 training and 10 000 test features in ten classes, as CIFAR-10 has them: mixtures of Gaussians whose variance falls
along the axes as that of real features does, or real ones from files that `mimkit embed` wrote. On two free CPU cores kNN
should take at most 20 s and the linear probe, which tries seven values of C, at most 60 s. Where other work shares the
machine, seconds of CPU time (of all threads together) tell more than seconds on the clock: both are printed.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mimkit.evaluate.knn import knn_predict, top1
from mimkit.evaluate.linear import fit_best

TRAIN, TEST, CLASSES, CLUSTERS = 50_000, 10_000, 10, 4
TARGETS = {"knn": 20, "linear": 60}  # seconds on two free cores

Split = tuple[Tensor, Tensor]


def mixture(width: int) -> tuple[Split, Split]:
    """Training and test features with labels: four clusters a class, standard deviations 1 / sqrt(axis), turned at random."""
    draw = torch.Generator().manual_seed(0)
    count = TRAIN + TEST
    labels = torch.randint(CLASSES, (count,), generator=draw)
    cluster = torch.randint(CLUSTERS, (count,), generator=draw)
    centres = 0.4 * torch.randn(CLASSES, CLUSTERS, width, generator=draw)
    features = (centres[labels, cluster] + torch.randn(count, width, generator=draw)) * torch.arange(
        1, width + 1
    ) ** -0.5
    features = features @ torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
    return (features[:TRAIN], labels[:TRAIN]), (features[TRAIN:], labels[TRAIN:])


def embedded(path: str) -> Split:
    """Features and labels that `mimkit embed` wrote."""
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["label"])


def measured(probe: Callable[[], Tensor], truth: Tensor) -> dict[str, float]:
    """Seconds on the clock and of CPU time that `probe` takes, and how often what it predicts is right."""
    clock, used = time.perf_counter(), os.times()
    predicted = probe()
    seconds, now = time.perf_counter() - clock, os.times()
    cpu = now.user + now.system - used.user - used.system
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "top1": round(top1(predicted, truth), 2)}


def both(train: Split, test: Split) -> dict[str, dict[str, float]]:
    """The figures of both probes."""
    return {
        "knn": measured(lambda: knn_predict(*train, test[0], 20, 0.07), test[1]),
        "linear": measured(lambda: fit_best(*train, None).predict(test[0]), test[1]),
    }


def main() -> None:
    """A line for each width and probe, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 192, 768])
    parser.add_argument("--data", nargs=2, metavar=("TRAIN.npz", "TEST.npz"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.data:
        train, test = map(embedded, given.data)
        results = {train[0].shape[1]: both(train, test)}
    else:
        results = {width: both(*mixture(width)) for width in given.widths}
    if given.json:
        print(json.dumps({"threads": torch.get_num_threads(), "widths": results}, indent=1))
        return
    print(f"{torch.get_num_threads()} threads\nwidth  probe   seconds  CPU seconds  target  top-1")
    for width, probes in results.items():
        for name, found in probes.items():
            times = f"{found['seconds']:7.1f}  {found['cpu_seconds']:11.1f}  {TARGETS[name]:6}"
            print(f"{width:5}  {name:<6}  {times}  {found['top1']:5.1f}")


if __name__ == "__main__":
    main()
