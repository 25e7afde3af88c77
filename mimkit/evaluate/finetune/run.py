"""One fine-tuning from its first step to its last: batch, gradient, update; after each epoch a line and a checkpoint."""

import json
import sys
import time
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.data.crops import RandomCrop
from mimkit.data.source import Source
from mimkit.data.views import views
from mimkit.disk import write_text
from mimkit.errors import UserError
from mimkit.evaluate.finetune.classifier import Classifier, build_optimizer
from mimkit.evaluate.finetune.images import Blend, LabelledBatches
from mimkit.evaluate.finetune.probe import Finetune
from mimkit.evaluate.frozen import Frozen
from mimkit.progress import Progress
from mimkit.saved.encoder import describe, load, untrained
from mimkit.schedule import Schedule
from mimkit.signals import StopRequest
from mimkit.types import Encoder, Images, Standardize
from mimkit.weights import checkpoint

TEST_BATCH = 250
LAYER_DECAY = 0.75  # of given weights


class Stopped(Exception):
    """A signal asked to stop; all that was done is saved."""


class Run:
    """All that a fine-tuning works on, begun anew or restored from its folder.

    images: to train on. frozen: where it works, the test images and the weights' file.
    Raises UserError where options, encoder and images do not fit each other.
    """

    def __init__(self, options: Finetune, frozen: Frozen, images: Source, folder: Path):
        assert frozen.weights is not None
        self.options, self.folder, self.device = options, folder, frozen.device
        self.test_images = frozen.sources["test"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            encoder = build_encoder(options, frozen.weights)
            self.model = Classifier(encoder, options.pool, frozen.classes).to(self.device)
        layer_decay = options.layer_decay or (LAYER_DECAY if options.init == "pretrained" else 1.0)
        self.optimizer = build_optimizer(self.model, options.weight_decay, layer_decay)
        mixes = bool(options.mixup or options.cutmix)
        batch_size = min(options.batch_size, len(images) // 2 * 2 if mixes else len(images))
        if mixes and batch_size % 2:
            raise UserError(
                f"finetune.batch_size={batch_size}: mixup and cutmix take images in pairs; an even number would be right"
            )
        self.batches = LabelledBatches(
            images,
            encoder.image_size,
            encoder.in_chans,
            batch_size,
            RandomCrop(scale=options.crop_scale, flip=options.flip),
            options.rand_augment,
            options.seed,
            options.workers,
            self.device,
        )
        standardize = getattr(encoder, "standardize", None) or Standardize(encoder.in_chans).to(self.device)
        smoothing = options.label_smoothing
        self.blend = Blend(
            standardize, options.erasing, options.mixup, options.cutmix, smoothing, frozen.classes, self.device
        )
        from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

        self.compare: Any = SoftTargetCrossEntropy() if mixes else LabelSmoothingCrossEntropy(smoothing)
        per_epoch = self.batches.steps_per_epoch
        self.rate = Schedule(
            peak=options.base_lr * batch_size / 256,
            min_lr=options.min_lr,
            warmup_steps=options.warmup_epochs * per_epoch,
            total_steps=options.epochs * per_epoch,
        )
        blank = torch.zeros(1, encoder.in_chans, *encoder.image_size, dtype=torch.uint8, device=self.device)
        with torch.no_grad():
            self.model.eval()(blank)  # whatever does not fit shows here
        state = checkpoint.restore(folder / "checkpoints", self.model, [self.optimizer]) or {}
        self.step: int = state.get("step", 0)
        self.lines: list[dict[str, Any]] = state.get("lines", [])
        self.seconds: float = state.get("seconds", 0.0)
        self.loss = torch.tensor(state.get("loss", 0.0), dtype=torch.float64, device=self.device)

    def fit(self, stop: StopRequest) -> list[dict[str, Any]]:
        """Train to the end; a line for each epoch. Raises Stopped, after saving, once a stop is asked for."""
        epochs, per_epoch = self.options.epochs, self.batches.steps_per_epoch
        stream = self.batches.start(self.step)
        with torch.random.fork_rng():
            while len(self.lines) < epochs:
                self.model.train()
                epoch = len(self.lines) + 1
                with Progress(f"fine-tuning, epoch {epoch} of {epochs}, steps", per_epoch) as progress:
                    progress.advance(self.step - (epoch - 1) * per_epoch)
                    while self.step < epoch * per_epoch:
                        self.leave_if(stop)
                        began = time.perf_counter()
                        self.advance(*next(stream))
                        self.seconds += time.perf_counter() - began
                        progress.advance(1)
                self.end_epoch(stop)
        return self.lines

    def advance(self, images: Images, labels: Tensor) -> None:
        """One step. All that is drawn in it follows from the seed and the step."""
        options = self.options
        seed = int(np.random.SeedSequence((options.seed, self.step)).generate_state(1)[0])
        torch.manual_seed(seed)
        images, wanted = self.blend(images, labels, seed)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        for part, wanted_of_part in zip(images.chunk(options.accumulate), wanted.chunk(options.accumulate)):
            loss = self.compare(self.logits(part), wanted_of_part) * (len(part) / len(images))
            loss.backward()
            self.loss += loss.detach()
        if options.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_grad)
        self.optimizer.step()
        self.step += 1

    def logits(self, images: Images) -> Tensor:
        """In float32; on a GPU the network computes in bf16."""
        half = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        with half:
            return self.model(images).float()

    def end_epoch(self, stop: StopRequest) -> None:
        """Test if that is due, note the epoch's line, and save."""
        epoch, last = len(self.lines) + 1, len(self.lines) + 1 == self.options.epochs
        loss = self.loss.item() / self.batches.steps_per_epoch
        top1, unreadable = self.test(stop) if last or epoch % self.options.test_every == 0 else (None, 0)
        self.lines.append(
            {
                "epoch": epoch,
                "loss": loss,
                "top1": top1,
                "lr": self.rate(self.step - 1),
                "seconds": round(self.seconds, 2),
                "unreadable": {"train": len(self.batches.bad), "test": unreadable},
            }
        )
        tested = "" if top1 is None else f", top-1 {top1:.2f} %"
        print(
            f"epoch {epoch} of {self.options.epochs}: loss {loss:.4f}{tested} ({self.seconds:.1f} s)",
            file=sys.stderr,
            flush=True,
        )
        self.loss.zero_()
        self.seconds = 0.0
        self.save()

    @torch.no_grad()
    def test(self, stop: StopRequest) -> tuple[float, int]:
        """Top-1 in percent of the readable test images, and how many were not readable."""
        encoder, right, bad = self.model.encoder, 0, dict[int, str]()
        count, (height, width) = len(self.test_images), encoder.image_size
        whole = (int(height / self.options.crop_pct), int(width / self.options.crop_pct))
        top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
        labels = self.test_images.labels
        assert labels is not None
        self.model.eval()
        for part in np.split(np.arange(count), range(TEST_BATCH, count, TEST_BATCH)):
            self.leave_if(stop)
            images = views(self.test_images, whole, encoder.in_chans, part, bad)
            images = images[:, :, top : top + height, left : left + width].to(self.device)
            predicted = self.logits(images).argmax(1).cpu().numpy()
            right += sum(int(p == labels[i]) for p, i in zip(predicted, part) if i not in bad)
        if len(bad) == count:
            raise UserError(f"none of the {count} test images of {self.test_images.name} can be read")
        return 100 * right / (count - len(bad)), len(bad)

    def leave_if(self, stop: StopRequest) -> None:
        """Save and raise Stopped where a stop is asked for."""
        if stop:
            self.save()
            raise Stopped(
                f"stopped by {stop.name} after epoch {len(self.lines)} of {self.options.epochs}, step {self.step}"
            )

    def save(self) -> None:
        """Write metrics.jsonl and a checkpoint. Raises UserError where the loss was not finite, or the disk refuses."""
        if not isfinite(self.loss.item()) or not all(isfinite(line["loss"]) for line in self.lines):
            raise UserError(
                f"fine-tuning, step {self.step}: the loss is not finite; lower finetune.base_lr or set finetune.clip_grad"
            )
        state = {"lines": self.lines, "seconds": self.seconds, "loss": self.loss.item()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.lines))
            checkpoint.save(self.folder / "checkpoints", self.step, self.model, [self.optimizer], state, keep=1)
        except OSError as error:
            raise UserError(f"the fine-tuning cannot be saved in {self.folder}: {error.strerror}") from error


def build_encoder(options: Finetune, weights: Path) -> Encoder:
    """The encoder of the weights' file, or the same with random weights, with stochastic depth.

    A table of relative positions that all blocks shared becomes one for each, as BEiT and SimMIM fine-tune.
    Raises UserError where it has no stochastic depth and some is asked for, and where it cannot be of that image size.
    """
    name, trained, _ = describe(weights)
    changes: dict[str, Any] = {"rel_pos": "block"} if trained.get("rel_pos") == "shared" else {}
    if "drop_path" in trained:
        changes["drop_path"] = options.drop_path
    elif options.drop_path:
        raise UserError(f"finetune.drop_path={options.drop_path}: encoder '{name}' has none; take finetune.drop_path=0")
    make = load if options.init == "pretrained" else untrained
    return make(weights, options.image_size, **changes)
