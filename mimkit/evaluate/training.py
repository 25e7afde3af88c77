"""How a probe's head is trained on frozen features, and tested."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mimkit.data.batches import Batches
from mimkit.data.crops import RandomCrop
from mimkit.evaluate.features import Kind, encode_alike
from mimkit.evaluate.frozen import Frozen, Labelled, labels_of
from mimkit.progress import Progress
from mimkit.schedule import Schedule

WARMUP = 1 / 9  # of the steps: 10 of 90 epochs in MAE's linear and CAE's attentive probe


class Crops:
    """Features of random crops of the training images, encoded anew in every epoch, endlessly.

    batch_size: images per step; all of them where there are fewer. Images that do not fill a step wait for a later epoch.
    """

    def __init__(self, frozen: Frozen, kind: Kind, batch_size: int, crop: RandomCrop):
        self.encoder, self.kind, self.source = frozen.encoder, kind, frozen.readable("train")
        self.batch_size = min(batch_size, len(self.source))
        self.batches = Batches(
            self.source,
            self.encoder.image_size,
            self.encoder.in_chans,
            self.batch_size,
            crop=crop,
            device=frozen.device,
            max_bad=0,
        )

    def __iter__(self) -> Iterator[Labelled]:
        for step, views in enumerate(self.batches.start()):
            _, samples = self.batches.plan.samples(step)
            yield Labelled(encode_alike(self.encoder, views["image"], self.kind), labels_of(self.source, samples))


def train_on_crops(
    head: nn.Module, optimizer: torch.optim.Optimizer, crops: Crops, epochs: int, base_lr: float
) -> None:
    """Train for `epochs`; the rate rises to base_lr x batch size / 256 in the first ninth, then falls to 0."""
    steps = epochs * crops.batches.steps_per_epoch
    train(head, optimizer, crops, steps, Schedule(base_lr * crops.batch_size / 256, 0, WARMUP * steps, steps))


def train(
    head: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Labelled], steps: int, rate: Schedule
) -> None:
    """Up to `steps` steps of cross-entropy at the rate that is due, one for each of `batches`."""
    device = next(head.parameters()).device
    with Progress("training the probe, steps", steps) as progress:
        for step, batch in enumerate(islice(batches, steps)):
            if len(batch.labels) > 1:  # one image has no variance for a batch norm
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
                loss = F.cross_entropy(head(batch.features.to(device)), batch.labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            progress.advance(1)


@torch.no_grad()
def accuracy(head: nn.Module, batches: Iterable[Labelled]) -> float:
    """Top-1 in percent. The head is in eval mode from then on."""
    device = next(head.eval().parameters()).device
    right = [head(batch.features.to(device)).argmax(1).cpu() == batch.labels for batch in batches]
    return 100 * float(np.mean(torch.cat(right).numpy()))
